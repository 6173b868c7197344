"""The manual page, made of the very help that the command shows."""

from collections.abc import Iterator
from inspect import cleandoc

import click

from meshproto import __version__

VERBATIM = "\b"  # a paragraph that begins so is shown as it stands, as by click


def page(group: click.Group, exit_codes: str) -> str:
    """In roff, with the macros of man(7)."""
    return "\n".join(_lines(group, exit_codes)) + "\n"


def _lines(group: click.Group, exit_codes: str) -> Iterator[str]:
    ctx = click.Context(group, info_name=group.name or "mesh")
    about, *rest = _paragraphs(group.help or "")
    yield f'.TH MESH 1 "" "meshproto {__version__}" "User Commands"'
    yield from (".SH NAME", f"mesh {escaped('-')} {escaped(about.rstrip('.'))}")
    yield from (".SH SYNOPSIS", ".B mesh", r"[\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]")
    yield ".SH DESCRIPTION"
    yield from _told([part for part in rest if "Exit codes:" not in part])
    yield ".SH OPTIONS"
    yield from _options(group, ctx)
    yield ".SH COMMANDS"
    for name, command in sorted(group.commands.items()):
        yield from _command(name, command, ctx)
    yield ".SH ENVIRONMENT"
    yield from _environment(group)
    yield ".SH EXIT STATUS"
    yield from _told([VERBATIM + "\n" + cleandoc(exit_codes.partition("\n")[2])])


def _command(name: str, command: click.Command, above: click.Context) -> Iterator[str]:
    ctx = click.Context(command, parent=above, info_name=name)
    usage = " ".join(command.collect_usage_pieces(ctx))
    yield f".SS {escaped(f'mesh {name} {usage}')}"
    yield from _told(_paragraphs(command.help or ""))
    yield from _options(command, ctx)


def _options(command: click.Command, ctx: click.Context) -> Iterator[str]:
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx) if isinstance(param, click.Option) else None
        if record is not None:
            yield from (".TP", rf"\fB{escaped(record[0])}\fR", escaped(record[1]))


def _environment(group: click.Group) -> Iterator[str]:
    """Each variable once, with the options it stands for."""
    options: dict[str, set[str]] = {}
    for command in (group, *group.commands.values()):
        for param in command.params:
            if isinstance(param.envvar, str):
                options.setdefault(param.envvar, set()).add(param.opts[0])
    for variable, names in sorted(options.items()):
        yield from (".TP", rf"\fB{escaped(variable)}\fR", f"Stands for {escaped(' and '.join(sorted(names)))}.")
    yield from (".TP", r"\fBNO_COLOR\fR", "No colours, also on a terminal.")


def _paragraphs(text: str) -> list[str]:
    return [part for part in cleandoc(text).split("\n\n") if part.strip()]


def _told(paragraphs: list[str]) -> Iterator[str]:
    for paragraph in paragraphs:
        if paragraph.startswith(VERBATIM):
            yield from (".PP", ".nf")
            yield from map(escaped, paragraph.removeprefix(VERBATIM).strip("\n").splitlines())
            yield ".fi"
        else:
            yield from (".PP", escaped(" ".join(paragraph.split())))


def escaped(text: str) -> str:
    """As text, and not as a request or an escape; a dash is one that can be copied."""
    plain = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{plain}" if plain.startswith((".", "'")) else plain
