"""The command itself: its global options, what they mean for the commands below it, and how errors end."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from meshproto.cli import render
from meshproto.cli.exits import Exit, exit_code, sentence
from meshproto.client.asking import ANSWER_TIMEOUT_S, Answer
from meshproto.client.blocking import trust
from meshproto.client.errors import Document, Problem, Unreachable
from meshproto.client.node import Node
from meshproto.client.settings import (
    CA_VARIABLE,
    DEFAULT_NODE,
    NODE_VARIABLE,
    TOKEN_FILE_VARIABLE,
    BadSetting,
    read_token,
)

T = TypeVar("T")

COMPLETION_TIMEOUT_S = 2.0  # nobody waits longer for a name to be completed than to type it


EXIT_CODES = "\n  ".join(cleandoc(Exit.__doc__ or "").splitlines())

HELP = f"""Direct messages by name, through your own node.

\b
Examples:
  mesh send UserX "Hello UserX"
  df -h | mesh send UserX
  mesh send --bulk invoices.ndjson
  mesh chat UserX
  mesh inbox --follow
  mesh --node localhost:3001 status
  mesh doctor
  mesh demo

\b
{EXIT_CODES}"""


@dataclass
class Session:
    """What the global options say, for the command that follows them."""

    url: str
    token_file: Path | None
    ca: Path | None = None
    as_json: bool = False
    timeout_s: float = ANSWER_TIMEOUT_S

    @cached_property
    def node(self) -> Node:
        """The node; made when first needed, so that `--help` works with a missing token file."""
        token = None if self.token_file is None else _given(read_token, self.token_file, "--token-file")
        tls = None if self.ca is None else _given(trust, self.ca, "--ca")
        try:
            return Node(self.url, token, self.timeout_s, tls)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--node") from error

    def own_name(self) -> str:
        """The name of the node's user."""
        return str(self.node.status().document["name"])

    def show(self, answer: Answer, shown: Callable[[render.Screen, Document], None]) -> None:
        """An answer, for people or for programs."""
        if self.as_json:
            echo_json(answer.text)
        else:
            shown(render.Screen(), answer.document)


class Mesh(click.Group):
    """The group in which every error ends as a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what click knows how to end stays with click."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except UnicodeEncodeError as error:  # names and texts come from the system as bytes and leave as UTF-8
            raise click.UsageError("Only UTF-8 text can be sent: encode it first, for example as base64.") from error
        except Exception as error:
            session = ctx.find_object(Session)
            if session is not None and session.as_json and isinstance(error, Problem | Unreachable):
                echo_json(error.text)
            click.echo(f"mesh: {sentence(error)}", err=True)
            ctx.exit(exit_code(error))


def _remember_json(ctx: click.Context, _option: click.Parameter, chosen: bool) -> None:
    ctx.ensure_object(Session).as_json = chosen


def names(ctx: click.Context, _param: click.Parameter, begun: str) -> list[CompletionItem]:
    """The contacts whose names begin so; nobody, when the node does not say."""
    given = ctx.find_root().params
    url, token_file, ca = given.get("url"), given.get("token_file"), given.get("ca")
    session = Session(url or DEFAULT_NODE, token_file, ca, timeout_s=COMPLETION_TIMEOUT_S)
    try:
        known = [str(contact["name"]) for contact in session.node.contacts().document["contacts"]]
    except (Problem, Unreachable, click.ClickException):
        return []
    return [CompletionItem(name) for name in known if name.lower().startswith(begun.lower())]


json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_remember_json,
    help="JSON, for programs: the node's own, where it is the node that answers.",
)


@click.group(cls=Mesh, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--node", "url", envvar=NODE_VARIABLE, default=DEFAULT_NODE, show_default=True, help="Where your node is."
)
@click.option(
    "--token-file",
    envvar=TOKEN_FILE_VARIABLE,
    type=click.Path(path_type=Path),
    help="The file with the node's token; a node that listens on loopback only needs none.",
)
@click.option(
    "--ca",
    envvar=CA_VARIABLE,
    type=click.Path(path_type=Path),
    help="A file with certificates (PEM): who is trusted with https, in place of the system's.",
)
@click.version_option(package_name="meshproto", prog_name="mesh")
@click.pass_context
def mesh(ctx: click.Context, url: str, token_file: Path | None, ca: Path | None) -> None:
    """See HELP, which click shows in place of this."""
    ctx.obj = Session(url, token_file, ca)


def echo_json(text: str) -> None:
    """JSON is UTF-8 whatever the terminal's encoding is."""
    click.echo(render.spelled_json(text.rstrip("\n")))


def _given(read: Callable[[Path], T], path: Path, option: str) -> T:
    try:
        return read(path)
    except BadSetting as error:
        raise click.BadParameter(str(error), param_hint=option) from error
