"""Commands about this machine: the node's files, what may be wrong, and the command itself."""

from pathlib import Path

import click
from click.shell_completion import get_completion_class

from meshproto.cli import render
from meshproto.cli.group import EXIT_CODES, Session, json_option, mesh


@click.command()
@click.option(
    "--state",
    envvar="MESH_STATE",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The node's state directory, if it is not where a node of its name keeps it.",
)
@json_option
@click.pass_context
def doctor(ctx: click.Context, *, state: Path | None) -> None:
    """Look at what could be wrong, and say what to do.

    A line each: `ok`, `warning` or `wrong`. Looked at are the node and the versions, its seeds and what they know
    of you, the clock, your addresses as the seeds see them, and the state directory: keys, modes, database and free
    space. It ends with 8 when something is wrong.

    \b
    Examples:
      mesh doctor
      mesh doctor --json | jq -r 'select(.level != "ok") | .advice'
    """
    from meshproto.cli import doctor as consulted  # noqa: PLC0415 -- only this command looks at all of it

    session = ctx.ensure_object(Session)
    findings = consulted.examine(session.node, lambda name: consulted.state_of(state, name))
    ctx.exit(consulted.tell(findings, as_json=session.as_json))


_state_option = click.option(
    "--state",
    envvar="MESH_STATE",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The node's state directory; if it is not given: the one of USER_NAME, or of the node that answers.",
)


@click.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@_state_option
@click.option("--identity", is_flag=True, help="With the private keys, which are you.")
@click.pass_obj
def export(session: Session, file: Path, *, state: Path | None, identity: bool) -> None:
    """Write all that your node keeps, a line of JSON each.

    It goes to FILE, which must not be there yet, or to standard output. Contacts with their keys, what was sent and
    what became of it, what was received, and how far programs have come. It is of one moment, and the node may run
    meanwhile.

    \b
    Examples:
      mesh export userx.ndjson
      mesh export | jq -r 'select(.kind == "in") | .message'
    """
    from meshproto.cli import files  # noqa: PLC0415 -- brings the node's own code along, for these commands alone

    files.export(files.state_directory(state, session.own_name), file, identity=identity)


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@_state_option
@json_option
@click.pass_obj
def import_(session: Session, file: Path, *, state: Path | None) -> None:
    """Put an export into a state directory that is new.

    FILE is what `mesh export` wrote; - is standard input. No node may have used the state directory yet. All of it
    is taken or nothing: every line that does not read is told by its number.

    \b
    Example:
      mesh import userx.ndjson --state ~/userx
    """
    from meshproto.cli import files  # noqa: PLC0415 -- see export

    def nobody() -> str:
        raise click.UsageError("Where to? Give an empty state directory with --state DIR.")

    files.import_(file, files.state_directory(state, nobody), as_json=session.as_json)


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@_state_option
@json_option
@click.pass_obj
def backup(session: Session, target: Path, *, state: Path | None) -> None:
    """Copy your node's state directory while it runs.

    TARGET is a directory that is not there yet, or is empty. The copy is of one moment, and it is checked. To
    restore it, stop the node and put the copy in place of the state directory. A seed's state can be copied too.

    \b
    Example:
      mesh backup ~/backups/userx
    """
    from meshproto.cli import files  # noqa: PLC0415 -- see export

    files.back_up(files.state_directory(state, session.own_name), target, as_json=session.as_json)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes SHELL complete what you type.

    Commands, options, and the names of your contacts.

    \b
    Examples:
      echo 'eval "$(mesh completion bash)"' >> ~/.bashrc
      echo 'eval "$(mesh completion zsh)"' >> ~/.zshrc
      mesh completion fish > ~/.config/fish/completions/mesh.fish
    """
    kind = get_completion_class(shell)
    if kind is not None:
        click.echo(kind(mesh, {}, "mesh", "_MESH_COMPLETE").source())


@click.command()
def man() -> None:
    """Print this help as a manual page.

    \b
    Examples:
      mesh man | man -l -
      mesh man > ~/.local/share/man/man1/mesh.1
    """
    from meshproto.cli.man import page  # noqa: PLC0415 -- only this command needs it

    click.echo(page(mesh, EXIT_CODES), nl=False)


@click.command()
@click.option("--once", is_flag=True, help="End after the steps.")
@click.pass_context
def demo(ctx: click.Context, once: bool) -> None:
    """Run two seeds and two users on this machine and let them talk.

    \b
    Example:
      mesh demo --once
    """
    from meshproto.cli.demo import demonstrate  # noqa: PLC0415 -- only this command starts processes

    ctx.exit(demonstrate(render.Screen(), once=once))


COMMANDS = (doctor, export, import_, backup, completion, man, demo)
