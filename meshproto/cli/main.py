"""`mesh`: the commands."""

import io
import json
import math
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from inspect import cleandoc
from pathlib import Path
from typing import Any

import click

from meshproto.cli import contacts as keys
from meshproto.cli import render
from meshproto.cli.exits import Exit, exit_code, sentence
from meshproto.cli.inbox import follow as follow_inbox
from meshproto.cli.inbox import read as read_inbox
from meshproto.cli.node import Answer, Document, Node, Problem, Unreachable
from meshproto.cli.outbox import read as read_outbox
from meshproto.cli.sendfile import send_file

DEFAULT_NODE = "http://127.0.0.1:3000"
TEXT_BYTES_MAX = 1024 * 1024  # a node delivers at most this much at a time; more is refused before it is sent
SENT_LIMIT = 20  # a screenful
STATUSES = ("waiting", "delivered", "expired", "refused", "cancelled")
TOKEN_BYTES_MAX = 4096  # a token is some dozens of bytes; a longer file is some other file

ENDED_OTHERWISE = ("delivered", "expired", "refused")  # the states of a message that can be cancelled no more

EXIT_CODES = "\n  ".join(cleandoc(Exit.__doc__ or "").splitlines())

HELP = f"""Direct messages by name, through your own node.

\b
Examples:
  mesh send UserX "Hello UserX"
  df -h | mesh send UserX
  mesh send --bulk invoices.ndjson
  mesh inbox --follow
  mesh --node localhost:3001 status
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

    @cached_property
    def node(self) -> Node:
        """The node; made when first needed, so that `--help` works with a missing token file."""
        token = None if self.token_file is None else _token(self.token_file)
        try:
            return Node(self.url, token, tls=None if self.ca is None else _trust(self.ca))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--node") from error

    def own_name(self) -> str:
        """The name of the node's user."""
        return str(self.node.status().document["name"])

    def show(self, answer: Answer, shown: Callable[[render.Screen, Document], None]) -> None:
        """An answer, for people or for programs."""
        if self.as_json:
            _echo_json(answer.text)
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
                _echo_json(error.text)
            click.echo(f"mesh: {sentence(error)}", err=True)
            ctx.exit(exit_code(error))


def _seconds(_ctx: click.Context, _option: click.Parameter, length_s: float | None) -> float | None:
    """A length of time that JSON can carry: not negative, not infinite, whole where it is whole."""
    if length_s is None:
        return None
    if not math.isfinite(length_s) or length_s < 0:
        raise click.BadParameter(f"{length_s} is not a length of time.")
    return int(length_s) if length_s.is_integer() else length_s


def _remember_json(ctx: click.Context, _option: click.Parameter, chosen: bool) -> None:
    ctx.ensure_object(Session).as_json = chosen


_json_option = click.option(
    "--json", is_flag=True, expose_value=False, callback=_remember_json, help="The node's own JSON, for programs."
)


@click.group(cls=Mesh, help=HELP, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--node", "url", envvar="MESH_NODE", default=DEFAULT_NODE, show_default=True, help="Where your node is.")
@click.option(
    "--token-file",
    envvar="MESH_TOKEN_FILE",
    type=click.Path(path_type=Path),
    help="The file with the node's token; a node that listens on loopback only needs none.",
)
@click.option(
    "--ca",
    envvar="MESH_CA",
    type=click.Path(path_type=Path),
    help="A file with certificates (PEM): who is trusted with https, in place of the system's.",
)
@click.version_option(package_name="meshproto", prog_name="mesh")
@click.pass_context
def mesh(ctx: click.Context, url: str, token_file: Path | None, ca: Path | None) -> None:
    """See HELP, which click shows in place of this."""
    ctx.obj = Session(url, token_file, ca)


@mesh.command()
@click.argument("name", required=False)
@click.argument("text", required=False)
@click.option("--id", "message_id", help="The message's id: the same id sent again is the same message.")
@click.option(
    "--wait",
    "wait_s",
    type=float,
    metavar="SECONDS",
    callback=_seconds,
    help="How long to wait for the delivery before it is queued.",
)
@click.option("--ttl", "ttl_s", type=float, metavar="SECONDS", callback=_seconds, help="How long to keep trying.")
@click.option(
    "--bulk",
    "bulk_file",
    metavar="FILE",
    type=click.Path(path_type=Path, allow_dash=True),
    help="Send every line of FILE, a JSON object each; - is standard input.",
)
@click.option("--to", metavar="NAME", help="With --bulk: the recipient of the lines that name none.")
@_json_option
@click.pass_obj
def send(
    session: Session,
    name: str | None,
    text: str | None,
    *,
    message_id: str | None,
    wait_s: float | None,
    ttl_s: float | None,
    bulk_file: Path | None,
    to: str | None,
) -> None:
    """Send TEXT to NAME; without TEXT, or with -, standard input is the text.

    Put -- in front of a TEXT that begins with a dash: mesh send UserX -- -5

    With --bulk, a line of FILE is what `POST /send` takes: "to" and "message", and "id", "type", "ttl" and "wait" if
    you like. --to, --ttl and --wait are for the lines that do not say it themselves.

    It can be ended and begun again at any time: FILE.sending, beside FILE, keeps what was taken until all of it is
    through, so the same command goes on where it was, and nothing is sent twice. Lines that failed with 429 or 5xx are
    sent again by the same command; lines that failed otherwise stay failed: mend them, and send them in a file of their
    own. When FILE.sending is gone, the same command sends all of FILE anew. What comes from standard input is not kept:
    there give every line an "id", and it can be sent again without harm.

    \b
    Examples:
      mesh send UserX "Hello UserX"
      df -h | mesh send UserX
      mesh send --bulk invoices.ndjson
      jq -c '{message: .}' events.json | mesh send --bulk - --to UserX
    """
    if bulk_file is not None:
        if name is not None or message_id is not None:
            raise click.UsageError("With --bulk the lines have the names and the ids; --to names who gets the rest.")
        code = send_file(session.node, bulk_file, to=to, wait_s=wait_s, ttl_s=ttl_s, as_json=session.as_json)
        click.get_current_context().exit(code)
    if to is not None:
        raise click.UsageError("--to goes with --bulk: without it, mesh send NAME.")
    if name is None:
        raise click.UsageError("Missing argument 'NAME'.")
    message = _standard_input() if text is None or text == "-" else text
    answer = session.node.send(name, message, message_id=message_id, ttl_s=ttl_s, wait_s=wait_s)
    session.show(answer, render.sent)


@mesh.command()
@click.option("--follow", is_flag=True, help="Go on with the messages that come, until Ctrl-C.")
@click.option("--after", type=click.IntRange(min=0), help="Only what came after this cursor.")
@click.option("--from", "sender", metavar="NAME", help="Only from this sender.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many messages.")
@_json_option
@click.pass_obj
def inbox(session: Session, follow: bool, after: int | None, sender: str | None, limit: int | None) -> None:
    """Show the messages received, oldest first.

    \b
    Example:
      mesh inbox --follow --from UserX
    """
    node = session.node
    if session.as_json and not follow:
        _echo_json(node.inbox(after=after, sender=sender, limit=limit).text)
        return
    show = _echo_message if session.as_json else render.Screen().message
    try:
        if follow:
            messages = follow_inbox(node, after=after, sender=sender, limit=limit, notice=_notice)
        else:
            messages = read_inbox(node, after=after, sender=sender, limit=limit)
        for message in messages:
            show(message)
    except KeyboardInterrupt:
        if not follow:
            raise


@mesh.command()
@click.argument("name")
@click.option("--history", type=click.IntRange(min=0), metavar="MESSAGES", help="Show so many of the last messages.")
@_json_option
@click.pass_context
def chat(ctx: click.Context, name: str, *, history: int | None) -> None:
    """Talk with NAME: what they write appears while you type, and what you write shows how far it has come.

    Enter sends, Alt-Enter begins a new line, Ctrl-D or /quit ends. A node that goes away is waited for; what was typed
    meanwhile is sent when it is back.

    With pipes a line in is a message out, and a message in is a line out; it ends when the input does and the node has
    taken all of it. With --json everything that happens is a line out.

    \b
    Examples:
      mesh chat UserX
      tail -f app.log | mesh chat Operator
    """
    from meshproto.cli.chat import converse  # noqa: PLC0415 -- only this command has two sides

    session = ctx.ensure_object(Session)
    ctx.exit(converse(session.node, name, history=history, as_json=session.as_json))


@mesh.command()
@click.argument("name")
@_json_option
@click.pass_obj
def lookup(session: Session, name: str) -> None:
    """Show where NAME is and which key it has.

    \b
    Example:
      mesh lookup UserX
    """
    session.show(session.node.lookup(name), render.found)


@mesh.command()
@_json_option
@click.pass_obj
def seeds(session: Session) -> None:
    """Show the mesh as your home seed sees it: who is there, where, and since when alive or dead.

    \b
    Example:
      mesh seeds
    """
    session.show(session.node.seeds(), render.seeds)


@mesh.command()
@_json_option
@click.pass_obj
def status(session: Session) -> None:
    """Show how your node is.

    \b
    Example:
      mesh status --json
    """
    session.show(session.node.status(), render.status)


@mesh.command()
@_json_option
@click.pass_obj
def contacts(session: Session) -> None:
    """Show whose keys your node knows, and whose key has changed.

    \b
    Example:
      mesh contacts
    """
    session.show(session.node.contacts(), keys.known)


@mesh.command()
@click.argument("name")
@click.argument("fingerprint", required=False)
@_json_option
@click.pass_obj
def trust(session: Session, name: str, fingerprint: str | None) -> None:
    """Say that NAME's key is the one with this FINGERPRINT; without it, be shown the keys and asked.

    Ask NAME for the fingerprint by other means than this node: `mesh fingerprint` shows it there.

    \b
    Example:
      mesh trust UserX kzdv-vj2u-mndu-yauf
    """
    fingerprint = fingerprint or keys.choose(render.Screen(), session.node, name)
    session.show(session.node.trust(name, fingerprint), keys.changed)


@mesh.command()
@click.argument("name")
@_json_option
@click.pass_obj
def forget(session: Session, name: str) -> None:
    """Forget NAME's key: the next one seen for that name counts.

    \b
    Example:
      mesh forget UserX
    """
    session.show(session.node.forget(name), keys.forgotten)


@mesh.command()
@click.argument("name", required=False)
@click.pass_obj
def fingerprint(session: Session, name: str | None) -> None:
    """Show your own key, or NAME's, to be compared by eye or with a telephone.

    \b
    Example:
      mesh fingerprint UserX
    """
    keys.identify(render.Screen(), keys.whose(session.node, name))


@mesh.command()
@click.option("--to", metavar="NAME", help="Only what waits for this recipient.")
@click.option("--messages", is_flag=True, help="List the messages too, oldest first; with --json nothing else.")
@_json_option
@click.pass_obj
def queue(session: Session, *, to: str | None, messages: bool) -> None:
    """Show what waits to be delivered, and why.

    \b
    Example:
      mesh queue --to UserX --messages
    """
    if not messages:
        session.show(session.node.outbox(status="waiting", to=to), partial(render.queue, to=to))
        return
    _list(session, status="waiting", to=to, limit=None, head=partial(render.queue, to=to))


@mesh.command()
@click.option("--to", metavar="NAME", help="Only what was sent to this recipient.")
@click.option("--status", type=click.Choice(STATUSES), help="Only what stands so.")
@click.option("--limit", type=click.IntRange(min=1), default=SENT_LIMIT, show_default=True, help="At most so many.")
@_json_option
@click.pass_obj
def sent(session: Session, *, to: str | None, status: str | None, limit: int) -> None:
    """Show what became of the messages you sent, newest first.

    \b
    Example:
      mesh sent --to UserX --status expired
    """
    _list(session, status=status, to=to, limit=limit, head=render.sent_none)


@mesh.command()
@click.argument("name", required=False)
@_json_option
@click.pass_obj
def retry(session: Session, name: str | None) -> None:
    """Try at once to deliver what waits, for NAME or for everybody.

    \b
    Example:
      mesh retry UserX
    """
    session.show(session.node.retry(name), render.retried)


@mesh.command()
@click.argument("message_id", metavar="ID")
@click.option("--to", metavar="NAME", help="Only for this recipient, if the id was used for several.")
@_json_option
@click.pass_context
def cancel(ctx: click.Context, message_id: str, *, to: str | None) -> None:
    """Give up the message with this ID, if it is not delivered yet.

    \b
    Example:
      mesh cancel invoice-17
    """
    if not message_id:
        raise click.UsageError("Which message? `mesh queue --messages` shows the ids.")
    session = ctx.ensure_object(Session)
    answer = session.node.cancel(message_id, to)
    session.show(answer, render.cancelled)
    too_late = any(result["status"] in ENDED_OTHERWISE for result in answer.document.get("results", ()))
    ctx.exit(Exit.REFUSED if too_late else Exit.DONE)


@mesh.command()
@click.option(
    "--state",
    envvar="MESH_STATE",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The node's state directory, if it is not where a node of its name keeps it.",
)
@_json_option
@click.pass_context
def doctor(ctx: click.Context, *, state: Path | None) -> None:
    """Look at everything that could be wrong, and say what to do about it: a line each, `ok`, `warning` or `wrong`.

    Looked at are the node and the versions, its seeds and what they know of you, the clock, your addresses as the seeds
    see them, and the state directory: keys, modes, database and free space. It ends with 8 when something is wrong.

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


@mesh.command()
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True), default="-")
@_state_option
@click.option("--identity", is_flag=True, help="With the private keys, which are you.")
@click.pass_obj
def export(session: Session, file: Path, *, state: Path | None, identity: bool) -> None:
    """Write all that your node keeps to FILE, or to standard output: a line of JSON each.

    Contacts with their keys, what was sent and what became of it, what was received, and how far programs have come.
    It is of one moment, and the node may run meanwhile.

    \b
    Examples:
      mesh export userx.ndjson
      mesh export | jq -r 'select(.kind == "in") | .message'
    """
    from meshproto.cli import files  # noqa: PLC0415 -- brings the node's own code along, for these commands alone

    files.export(files.state_directory(state, session.own_name), file, identity=identity)


@mesh.command("import")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@_state_option
@_json_option
@click.pass_obj
def import_(session: Session, file: Path, *, state: Path | None) -> None:
    """Put what `mesh export` wrote to FILE into a state directory that no node has used yet; - is standard input.

    All of it is taken or nothing: every line that does not read is told by its number.

    \b
    Example:
      mesh import userx.ndjson --state ~/userx
    """
    from meshproto.cli import files  # noqa: PLC0415 -- see export

    def nobody() -> str:
        raise click.UsageError("Where to? Give an empty state directory with --state DIR.")

    files.import_(file, files.state_directory(state, nobody), as_json=session.as_json)


@mesh.command()
@click.argument("target", type=click.Path(path_type=Path))
@_state_option
@_json_option
@click.pass_obj
def backup(session: Session, target: Path, *, state: Path | None) -> None:
    """Copy your node's state directory to TARGET, whole, while the node runs; the copy is checked.

    To restore it, stop the node and put the copy in place of the state directory. A seed's state can be copied too.

    \b
    Example:
      mesh backup ~/backups/userx
    """
    from meshproto.cli import files  # noqa: PLC0415 -- see export

    files.back_up(files.state_directory(state, session.own_name), target, as_json=session.as_json)


@mesh.command()
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


def main() -> None:
    """The entry point. A character that the terminal's encoding lacks is spelled out rather than being an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    mesh(prog_name="mesh")


def _list(
    session: Session,
    *,
    status: str | None,
    to: str | None,
    limit: int | None,
    head: Callable[[render.Screen, Document], None],
) -> None:
    """Messages of the outbox, page by page; Ctrl-C is how a long list ends. `head` shows what the first page tells."""
    screen = render.Screen()
    try:
        for page in read_outbox(session.node, status=status, to=to, limit=limit):
            if not session.as_json and page.first:
                head(screen, page.document)
            for message in page.document["messages"]:
                if session.as_json:
                    _echo_message(message)
                else:
                    render.kept(screen, message)
    except KeyboardInterrupt:
        return


def _trust(path: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise click.BadParameter(f"{path} cannot be read as certificates: {error}", param_hint="--ca") from error


def _token(path: Path) -> str:
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_BYTES_MAX + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise click.BadParameter(f"{path} cannot be read as a token: {error}", param_hint="--token-file") from error
    if not token.isprintable() or not 0 < len(token) <= TOKEN_BYTES_MAX:
        raise click.BadParameter(f"{path} does not hold one line with a token.", param_hint="--token-file")
    return token


def _standard_input() -> str:
    """The text a program or a person hands in. Its last newline is the shell's, not part of the message."""
    stream = sys.stdin.buffer
    if stream.isatty():
        click.echo("Type the message; Ctrl-D on a line of its own sends it.", err=True)
    content = stream.read(TEXT_BYTES_MAX + 1)
    if len(content) > TEXT_BYTES_MAX:
        raise Problem(413, "Content Too Large", f"the text is longer than {TEXT_BYTES_MAX} bytes")
    if not content:
        raise click.UsageError("There is nothing to send: give a TEXT, or write it to standard input.")
    return content.decode("utf-8", "surrogateescape").removesuffix("\n")


def _echo_json(text: str) -> None:
    """JSON is UTF-8 whatever the terminal's encoding is."""
    click.echo(render.spelled_json(text.rstrip("\n")))


def _echo_message(message: Document) -> None:
    click.echo(json.dumps(message, separators=(",", ":")))


def _notice(text: str) -> None:
    click.echo(f"mesh: {text}", err=True)
