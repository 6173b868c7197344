"""A conversation through pipes: a line in is a message out, a message in is a line out.

Nothing in a line is a command, as a program's lines may begin with anything. Standard output has what the other says,
or with `--json` everything that happens; standard error has what a person has to know.
"""

import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import click

from meshproto.cli import render
from meshproto.cli.conversation import Entry
from meshproto.cli.exits import Exit
from meshproto.cli.talk import Talk, View
from meshproto.client.node import Node

LINE_BYTES_MAX = 1024 * 1024  # more than a node takes in a message: it says so, and the rest of the line is left out


class ChatLines(View):
    """Runs until standard input ends, and the node has taken all of it."""

    def __init__(self, node: Node, name: str, *, history: int, as_json: bool) -> None:
        self._as_json = as_json
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._worst = Exit.DONE
        self._input = sys.stdin.buffer
        self._talk = Talk(node, name, self, self._todo.put, history=history)
        self._away = False

    def run(self) -> Exit:
        """The highest exit code of what the node did not take. Raises what ended the conversation, if anything did."""
        self._talk.start()
        threading.Thread(target=self._read_lines, daemon=True).start()
        try:
            while (work := self._todo.get()) is not None:
                work()
                if self._error is not None:
                    raise self._error
        except KeyboardInterrupt:
            return Exit.FAILED
        finally:
            self._talk.stop()
        if self._error is not None:
            raise self._error
        return Exit(max(self._worst, self._talk.worst))

    def _read_lines(self) -> None:
        try:
            for number, line in enumerate(self._lines(), start=1):
                self._send(number, line.rstrip(b"\r\n"))
            self._talk.finish()
        except ValueError as error:  # what was read from is closed
            if not self._talk.stopped:
                self._error = error
        finally:
            self._todo.put(None)

    def _lines(self) -> Iterator[bytes]:
        while line := self._input.readline(LINE_BYTES_MAX):
            rest = line
            while len(rest) == LINE_BYTES_MAX and not rest.endswith(b"\n"):
                rest = self._input.readline(LINE_BYTES_MAX)
            yield line

    def _send(self, number: int, line: bytes) -> None:
        try:
            text = line.decode()
        except UnicodeDecodeError:
            self._worst = Exit.USAGE
            what = f"line {number} is not sent: only UTF-8 text can be, so encode it first, for example as base64"
            self._todo.put(lambda: self._notice(what))
        else:
            if text:
                self._talk.say(text, patient=True)

    # -- View ----------------------------------------------------------------------------------------------------

    def entry(self, entry: Entry, *, fresh: bool) -> None:
        if self._as_json:
            self._echo(_document(entry))
        elif not entry.own:
            text = entry.text.replace("\n", "\n" + render.CONTINUATION)
            click.echo(f"{render.moment(entry.at_ms)}  {render.one_line(entry.who)}  {text}")
        elif entry.reason is not None:
            self._notice(f"{entry.status}: {entry.text[:40]!r} ({entry.reason})")

    def presence(self) -> None:
        now = self._talk.conversation.presence
        if self._as_json:
            name = self._talk.conversation.name
            self._echo({"event": "presence", "name": name, "online": now.online, "seen": now.seen_ms})

    def connection(self, problem: str | None) -> None:
        was_away, self._away = self._away, problem is not None
        if self._as_json:
            self._echo({"event": "connection", "reason": problem})
        elif problem is not None:
            self._notice(f"{problem}. Trying again.")
        elif was_away:
            self._notice("The node is back.")

    def over(self, error: Exception) -> None:
        self._error = error

    def _echo(self, document: dict[str, Any]) -> None:
        click.echo(render.spelled_json(json.dumps(document, ensure_ascii=False, separators=(",", ":"))))

    def _notice(self, text: str) -> None:
        click.echo(f"mesh: {render.one_line(text)}", err=True)


def _document(entry: Entry) -> dict[str, Any]:
    if not entry.own:
        key, message_id = entry.key
        sender = {"name": entry.who, "key": key}
        return {"event": "message", "id": message_id, "from": sender, "text": entry.text, "at": entry.at_ms}
    return {
        "event": "sent",
        "id": entry.key[1],
        "text": entry.text,
        "at": entry.at_ms,
        "status": entry.status,
        "reason": entry.reason,
    }
