"""A node with one other user, as far as a conversation needs it: events on a stream, a history, an outbox."""

import json
import queue
from contextlib import suppress
from typing import Any

from tests.cli.stub import Reply, Request, Stream, Stub, json_reply, message, problem_reply

NOW_MS = 1_795_343_300_000


class FakeNode:
    """`stub` listens. Whoever opens the stream gets what `tell` is told from then on, and the messages that came after
    the cursor they say."""

    def __init__(self, stub: Stub, name: str = "UserX") -> None:
        self.stub, self.name = stub, name
        self.inbox: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []
        self.behind = [0] * 100  # what each answer of the history says, the last one first
        self.read: queue.Queue[int] = queue.Queue()
        self.sent: dict[str, dict[str, Any]] = {}
        self.verdict: Reply | dict[str, Any] = {"status": "queued"}  # on what is sent
        self.opened: queue.Queue[Request] = queue.Queue()
        self.taken: queue.Queue[dict[str, Any]] = queue.Queue()
        self._streams: list[queue.Queue[dict[str, Any] | None]] = []
        self.contact: dict[str, Any] = {"name": name, "offered": None}
        stub.routes |= {
            "GET /status": lambda _: json_reply({"inbox": {"next": len(self.inbox)}}),
            f"GET /contacts/{name}": lambda _: json_reply(self.contact),
            f"GET /history/{name}": lambda _: json_reply({"messages": self.history, "behind": self.behind.pop()}),
            f"PUT /history/{name}": self._read,
            "GET /inbox/stream": self._stream,
            "POST /send": self._send,
        }

    def receives(self, text: Any) -> None:
        """A message of the other."""
        came = message(len(self.inbox) + 1, text, self.name)
        self.inbox.append(came)
        self.tell({"event": "message", **came})

    def tell(self, event: dict[str, Any]) -> None:
        """To everybody who listens."""
        for stream in self._streams:
            stream.put(event)

    def stands(self, message_id: str, status: str, reason: str | None = None) -> None:
        """How far a message has come."""
        told = {"id": message_id, "to": self.name, "status": status, "changed_at": NOW_MS, "reason": reason}
        self.sent[message_id] = told
        self.tell({"event": "outbox", "cursor": 1, **told})

    def is_there(self, online: bool | None) -> None:
        self.tell({"event": "presence", "name": self.name, "online": online, "seen": NOW_MS})

    def cut(self) -> None:
        """Every stream breaks off."""
        for stream in self._streams:
            stream.put(None)
        self._streams.clear()

    def _read(self, request: Request) -> Reply:
        self.read.put(json.loads(request.body)["read"])
        return json_reply({"unread": 0})

    def _send(self, request: Request) -> Reply:
        sent = json.loads(request.body)
        self.taken.put(sent)
        if isinstance(self.verdict, Reply):
            return self.verdict
        said = {"id": sent["id"], "to": sent["to"], **self.verdict}
        self.sent.setdefault(sent["id"], {**said, "changed_at": NOW_MS, "reason": None})
        self.stub.routes[f"GET /outbox/{sent['id']}"] = lambda _: json_reply(self.sent[sent["id"]])
        return json_reply(said, 202)

    def _stream(self, request: Request) -> Any:
        events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        after = int(request.query["after"])
        for came in self.inbox[after:]:
            events.put({"event": "message", **came})
        self._streams.append(events)

        def serve(stream: Stream) -> None:
            with suppress(OSError):
                stream.result({"event": "open", "cursor": after, "now": NOW_MS})
                self.opened.put(request)
                while (event := events.get()) is not None:
                    stream.result(event)

        return serve


__all__ = ["NOW_MS", "FakeNode", "problem_reply"]
