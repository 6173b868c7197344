"""What is shown: rich on a terminal, plain lines everywhere else.

All text comes from other people or may quote them, so all of it is made harmless first: a message must not be able to
move the cursor, set the window's title, turn the reading direction, or pass for a line of somebody else's.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import click

from meshproto.client.errors import Document

if TYPE_CHECKING:
    import rich.console

CONTINUATION = "    "  # in front of a message's further lines, so that none of them looks like a message of its own
NOTHING = "-"

# Controls (C0 but tab and newline, DEL, C1), separators of lines, changes of the reading direction, half characters.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
_UNITS_S = (("d", 86_400), ("h", 3_600), ("min", 60))


def harmless(text: str) -> str:
    """The text with everything a terminal would obey, but newline and tab, spelled out: ESC becomes `\\x1b`."""
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(value: object) -> str:
    """Anything as harmless text without a line break."""
    return harmless(str(value)).replace("\n", r"\n").replace("\t", r"\t")


def spelled_json(text: str) -> bytes:
    """The same JSON, harmless as well: what JSON lets stand raw (DEL, C1, direction) is written as its `\\u` escape."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}" if match[0] != "\r" else "\r", text).encode()


def message_text(message: object) -> str:
    """A message for people: a string as it is, any other value as compact JSON."""
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False, separators=(",", ":"))
    return harmless(text)


def moment(at_ms: int | None) -> str:
    """Local date and time."""
    if at_ms is None:
        return NOTHING
    try:
        return datetime.fromtimestamp(at_ms / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(at_ms)


def span(length_s: float) -> str:
    """A length of time in its largest unit."""
    for unit, unit_s in _UNITS_S:
        if length_s >= unit_s:
            return f"{int(length_s // unit_s)} {unit}"
    return f"{max(0, int(length_s))} s"


def _since(at_ms: int | None, now_ms: float) -> str:
    return NOTHING if at_ms is None else span((now_ms - at_ms) / 1000)


class Screen:
    """Standard output. `terminal` says whether it is one; None asks it."""

    def __init__(self, terminal: bool | None = None) -> None:
        self._console: rich.console.Console | None = None
        if sys.stdout.isatty() if terminal is None else terminal:
            from rich.console import Console  # noqa: PLC0415 -- a tenth of a second, for terminals only

            self._console = Console(force_terminal=terminal, highlight=False, markup=False, emoji=False)

    def line(self, text: str, style: str = "") -> None:
        """One line; not cut, so that a command in it can be copied."""
        if self._console is None:
            click.echo(text)
        else:
            self._console.print(text, style=style, soft_wrap=True)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows in aligned columns; no headings: the first column is what the others are about."""
        cells = [[one_line(cell) for cell in row] for row in rows]
        if self._console is None:
            lines = [*([[heading.upper() for heading in headings]] if headings else []), *cells]
            widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
            for line in lines:
                click.echo("  ".join(map(str.ljust, line, widths)).rstrip())
            return
        from rich.table import Table  # noqa: PLC0415 -- see __init__
        from rich.text import Text  # noqa: PLC0415

        table = Table(*headings, box=None, show_header=bool(headings), header_style="bold", pad_edge=False)
        for row in cells:
            table.add_row(Text(row[0], style="cyan"), *(Text(cell, overflow="fold") for cell in row[1:]))
        self._console.print(table)

    def message(self, document: Document) -> None:
        """One message of the inbox. The time is when it came here: when it was sent is only what the sender says."""
        at, sender = moment(document["received_at"]), one_line(document["from"]["name"])
        text = message_text(document["message"])
        if self._console is None:
            click.echo(f"{at}  {sender}  {text.replace(chr(10), chr(10) + CONTINUATION)}")
            return
        from rich.table import Table  # noqa: PLC0415 -- see __init__
        from rich.text import Text  # noqa: PLC0415

        # A column of its own, so that not even a wrapped line can begin where the times stand.
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_column(no_wrap=True)
        row.add_column(no_wrap=True)
        row.add_column(overflow="fold")
        row.add_row(Text(at, style="dim"), Text(sender, style="bold cyan"), Text(text))
        self._console.print(row)


def sent(screen: Screen, answer: Document) -> None:
    """What became of a message."""
    status, reason = one_line(answer["status"]), answer.get("reason")
    text = f"{status}  {one_line(answer['to'])}  {one_line(answer['id'])}"
    screen.line(f"{text}  ({one_line(reason)})" if reason else text, "green" if status == "delivered" else "yellow")


def found(screen: Screen, answer: Document) -> None:
    """Where a name is."""
    if answer["online"] is None:
        seen = "unknown: no seed can be reached, this is the last known address"
    else:
        seen = "online" if answer["online"] else f"offline, last seen {moment(answer['seen'])}"
    rows = [
        ("name", answer["name"]),
        ("address", answer["address"]),
        ("key", answer.get("groups", answer["fingerprint"])),  # an older node does not group it
        ("presence", seen),
        *(("uri", uri) for uri in answer["uris"]),
        ("home", answer["home"] or NOTHING),
        ("since", moment(answer["since"])),
    ]
    screen.table((), rows)


def seeds(screen: Screen, answer: Document) -> None:
    """The mesh as the home seed sees it."""
    if not answer["seeds"]:
        screen.line("No seed has answered this node yet: see `mesh doctor` for why.", "yellow")
        return
    detailed = all("since" in seed for seed in answer["seeds"])
    headings = ("seed", "address", "state", *(("since",) if detailed else ()), "users")
    screen.table((*headings, *(("phi", "lag") if detailed else ()), ""), [_seed(s, detailed) for s in answer["seeds"]])


def _seed(seed: Document, detailed: bool) -> tuple[object, ...]:
    """`detailed`: with how long it has been so, how surprising its silence is, and how much of it is not read yet; an
    older seed does not say."""
    name, home = seed["name"], "home" * seed["home"]
    state = {True: "alive", False: "dead", None: "unknown"}[seed["alive"]]
    if not detailed:
        return name, seed["address"], state, seed["users"], home
    phi = NOTHING if seed["phi"] is None else f"{seed['phi']:.1f}"
    return name, seed["address"], state, moment(seed["since"] or None), seed["users"], phi, seed["lag"], home


def status(screen: Screen, answer: Document) -> None:
    """The node's summary."""
    home, outbox, inbox = answer["home"], answer["outbox"], answer["inbox"]
    place = f"{home['name']} at {home['address']}, has had the name since {moment(home['since'])}" if home else NOTHING
    waiting = f"{outbox['waiting']} waiting for {outbox['recipients']} recipients"
    if outbox["oldest_at"] is not None:
        waiting += f", the oldest since {moment(outbox['oldest_at'])}"
    rows = [
        ("name", answer["name"]),
        ("address", answer["address"]),
        ("key", answer.get("groups", answer["fingerprint"])),
        *(("uri", uri) for uri in answer["uris"]),
        ("registered", "yes" if answer["registered"] else "no"),
        ("home", place),
        ("seeds", answer["seeds"]),
        ("outbox", waiting),
        ("inbox", f"{inbox['messages']} messages, the next after {inbox['next']}"),
        ("running", f"{span(answer['uptime_s'])}, version {answer['version']}"),
    ]
    if answer["problem"]:
        rows.append(("problem", one_line(answer["problem"])))
    screen.table((), rows)
    if disk := answer.get("disk"):  # an older node does not say
        screen.line(f"disk: {one_line(disk)}", "bold red")
    if changed := answer.get("contacts", {}).get("key_changed"):
        screen.line(f"keys: of {changed} contacts the key has changed: see mesh contacts", "bold red")
    if programs := answer.get("programs"):
        screen.table(("program", "target", "behind", "last error"), [_program(program) for program in programs])


def _program(program: Document) -> tuple[object, ...]:
    """What hands messages on to a program, and how many of them it has not taken yet."""
    return (
        program.get("kind", NOTHING),
        program.get("target", NOTHING),
        program.get("behind", NOTHING),
        (program.get("reason") or NOTHING),
    )


def queue(screen: Screen, answer: Document, now_ms: float | None = None, to: str | None = None) -> None:
    """What waits, per recipient; `to`: who was asked for."""
    if not answer["recipients"]:
        screen.line(one_line(f"Nothing waits for {to}." if to else "Nothing waits."))
        return
    now_ms = time.time() * 1000 if now_ms is None else now_ms
    rows = []
    for recipient in answer["recipients"]:
        next_try_at = recipient["next_try_at"]
        next_try = NOTHING if next_try_at is None else f"in {span((next_try_at - now_ms) / 1000)}"
        oldest, error = _since(recipient["oldest_at"], now_ms), recipient["reason"] or NOTHING
        rows.append((recipient["to"], recipient["waiting"], oldest, recipient["attempts"], next_try, error))
    screen.table(("to", "waiting", "oldest", "attempts", "next try", "last error"), rows)


def kept(screen: Screen, message: Document) -> None:
    """One message of the outbox: when it was sent, to whom, and how far it has come."""
    status, reason = one_line(message["status"]), message.get("reason")
    text = f"{moment(message['sent_at'])}  {one_line(message['to'])}  {status}  {one_line(message['id'])}"
    style = {"delivered": "green", "expired": "red", "refused": "red"}.get(status, "yellow")
    screen.line(f"{text}  ({one_line(reason)})" if reason else text, style)


def sent_none(screen: Screen, answer: Document) -> None:
    """An empty list is told."""
    if not answer["messages"]:
        screen.line("Nothing was sent, or nothing stands so.")


def retried(screen: Screen, answer: Document) -> None:
    """Who is tried again."""
    names = ", ".join(map(one_line, answer["retried"]))
    screen.line(f"Trying again: {names} ({answer['waiting']} messages wait)." if names else "Nothing waits.")


def cancelled(screen: Screen, answer: Document) -> None:
    """What came of giving a message up, for each of its recipients."""
    for result in answer.get("results", [answer]):
        under_way = "under way: it is cancelled if this attempt fails" if result["status"] == "delivering" else None
        sent(screen, {**result, "reason": result.get("reason") or under_way})
