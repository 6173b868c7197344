"""`mesh`: the commands."""

import io
import json
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from meshproto.cli import contacts as keys
from meshproto.cli import machine, render
from meshproto.cli.exits import Exit
from meshproto.cli.group import Session, echo_json, json_option, mesh, names
from meshproto.cli.inbox import follow as follow_inbox
from meshproto.cli.inbox import read as read_inbox
from meshproto.cli.outbox import read as read_outbox
from meshproto.cli.sendfile import send_file
from meshproto.client.errors import Document, Problem

TEXT_BYTES_MAX = 1024 * 1024  # a node delivers at most this much at a time; more is refused before it is sent
SENT_LIMIT = 20  # a screenful
HISTORY_MAX = 500  # what a node tells at a time
STATUSES = ("waiting", "delivered", "expired", "refused", "cancelled")
ENDED_OTHERWISE = ("delivered", "expired", "refused")  # the states of a message that can be cancelled no more


def _seconds(_ctx: click.Context, _option: click.Parameter, length_s: float | None) -> float | None:
    """A length of time that JSON can carry: not negative, not infinite, whole where it is whole."""
    if length_s is None:
        return None
    if not math.isfinite(length_s) or length_s < 0:
        raise click.BadParameter(f"{length_s} is not a length of time.")
    return int(length_s) if length_s.is_integer() else length_s


@mesh.command()
@click.argument("name", required=False, shell_complete=names)
@click.argument("words", nargs=-1, metavar="[TEXT]")
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
@click.option(
    "--to", metavar="NAME", shell_complete=names, help="With --bulk: the recipient of the lines that name none."
)
@json_option
@click.pass_obj
def send(
    session: Session,
    name: str | None,
    words: tuple[str, ...],
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
    if len(words) > 1:  # put together they would not be what was typed: the shell has eaten spaces, and more
        raise click.UsageError(f"TEXT is one argument, put it in quotes: mesh send {name} '{' '.join(words)}'.")
    message = _standard_input() if words in ((), ("-",)) else words[0]
    if not message:
        raise click.UsageError("There is nothing to send: give a TEXT, or write it to standard input.")
    answer = session.node.send(name, message, message_id=message_id, ttl_s=ttl_s, wait_s=wait_s)
    session.show(answer, render.sent)


@mesh.command()
@click.option("--follow", is_flag=True, help="Go on with the messages that come, until Ctrl-C.")
@click.option("--after", type=click.IntRange(min=0), help="Only what came after this cursor.")
@click.option("--from", "sender", metavar="NAME", shell_complete=names, help="Only from this sender.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many messages.")
@json_option
@click.pass_obj
def inbox(session: Session, follow: bool, after: int | None, sender: str | None, limit: int | None) -> None:
    """Show the messages received, oldest first.

    \b
    Example:
      mesh inbox --follow --from UserX
    """
    node = session.node
    if session.as_json and not follow:
        echo_json(node.inbox(after=after, sender=sender, limit=limit).text)
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
@click.argument("name", shell_complete=names)
@click.option(
    "--history",
    type=click.IntRange(min=0, max=HISTORY_MAX),
    metavar="MESSAGES",
    help=f"Show so many of the last messages, {HISTORY_MAX} at most; on a terminal some are shown unasked.",
)
@json_option
@click.pass_context
def chat(ctx: click.Context, name: str, *, history: int | None) -> None:
    """Talk with NAME: a conversation in the terminal.

    What they write appears while you type, and what you write shows how far it has come: whether it is delivered,
    or why it waits.

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
@click.argument("name", shell_complete=names)
@json_option
@click.pass_obj
def lookup(session: Session, name: str) -> None:
    """Show where NAME is and which key it has.

    \b
    Example:
      mesh lookup UserX
    """
    session.show(session.node.lookup(name), render.found)


@mesh.command()
@json_option
@click.pass_obj
def seeds(session: Session) -> None:
    """Show the mesh as your home seed sees it: who is there, where, and since when alive or dead.

    PHI is how surprising a seed's silence is: from 3 on it counts as dead. LAG is how many of its changes your home
    seed has not read yet: 0, but for moments.

    \b
    Example:
      mesh seeds
    """
    session.show(session.node.seeds(), render.seeds)


@mesh.command()
@json_option
@click.pass_obj
def status(session: Session) -> None:
    """Show how your node is.

    \b
    Example:
      mesh status --json
    """
    session.show(session.node.status(), render.status)


@mesh.command()
@json_option
@click.pass_obj
def contacts(session: Session) -> None:
    """Show whose keys your node knows, and whose key has changed.

    \b
    Example:
      mesh contacts
    """
    session.show(session.node.contacts(), keys.known)


@mesh.command()
@click.argument("name", shell_complete=names)
@click.argument("fingerprint", required=False)
@json_option
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
@click.argument("name", shell_complete=names)
@json_option
@click.pass_obj
def forget(session: Session, name: str) -> None:
    """Forget NAME's key: the next one seen for that name counts.

    \b
    Example:
      mesh forget UserX
    """
    session.show(session.node.forget(name), keys.forgotten)


@mesh.command()
@click.argument("name", required=False, shell_complete=names)
@json_option
@click.pass_obj
def fingerprint(session: Session, name: str | None) -> None:
    """Show your own key, or NAME's, to be compared by eye or with a telephone.

    \b
    Example:
      mesh fingerprint UserX
    """
    key = keys.whose(session.node, name)
    if session.as_json:
        echo_json(json.dumps({field: key[field] for field in ("name", "address", "fingerprint", "groups")}))
    else:
        keys.identify(render.Screen(), key)


@mesh.command()
@click.option("--to", metavar="NAME", shell_complete=names, help="Only what waits for this recipient.")
@click.option("--messages", is_flag=True, help="List the messages too, oldest first; with --json nothing else.")
@json_option
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
@click.option("--to", metavar="NAME", shell_complete=names, help="Only what was sent to this recipient.")
@click.option("--status", type=click.Choice(STATUSES), help="Only what stands so.")
@click.option("--limit", type=click.IntRange(min=1), default=SENT_LIMIT, show_default=True, help="At most so many.")
@json_option
@click.pass_obj
def sent(session: Session, *, to: str | None, status: str | None, limit: int) -> None:
    """Show what became of the messages you sent, newest first.

    \b
    Example:
      mesh sent --to UserX --status expired
    """
    _list(session, status=status, to=to, limit=limit, head=render.sent_none)


@mesh.command()
@click.argument("name", required=False, shell_complete=names)
@json_option
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
@click.option(
    "--to", metavar="NAME", shell_complete=names, help="Only for this recipient, if the id was used for several."
)
@json_option
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


__all__ = ("main", "mesh")


for _command in machine.COMMANDS:
    mesh.add_command(_command)


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


def _standard_input() -> str:
    """The text a program or a person hands in. Its last newline is the shell's, not part of the message."""
    stream = sys.stdin.buffer
    if stream.isatty():
        click.echo("Type the message; Ctrl-D on a line of its own sends it.", err=True)
    content = stream.read(TEXT_BYTES_MAX + 1)
    if len(content) > TEXT_BYTES_MAX:
        raise Problem(413, "Content Too Large", f"the text is longer than {TEXT_BYTES_MAX} bytes")
    return content.decode("utf-8", "surrogateescape").removesuffix("\n")


def _echo_message(message: Document) -> None:
    click.echo(json.dumps(message, separators=(",", ":")))


def _notice(text: str) -> None:
    click.echo(f"mesh: {text}", err=True)
