"""A conversation and a node: what is typed goes there, what happens there comes back.

Two threads, as the node's client waits for its answers: one reads the stream of events, the other hands over what was
typed, in order, one after the other. All they find is told through `tell`, as something to be done where the
conversation is shown, so that one thread only changes it.
"""

import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from secrets import token_hex

from meshproto.cli.conversation import FAILED, UNSENT, Conversation, Entry
from meshproto.cli.exits import exit_code, sentence, what
from meshproto.cli.following import RETRY_DELAY_S, stream
from meshproto.client.errors import Document, Problem, Unreachable, passes
from meshproto.client.node import Node

ID_BYTES = 12  # no two messages of one sender ever meet
AHEAD_MESSAGES = 100  # typed and not taken by the node: a pipe is read on when there is room again
LOOK_AGAIN_S = 0.2
LOOKS_MAX = 25  # five seconds: the history of some hundred thousand messages; then what there is of it is shown
CAUGHT_UP_MESSAGES = 50  # of what was sent from elsewhere, looked for at a time


class View:
    """What shows a conversation. Called by the thread that `tell` leads to."""

    def entry(self, entry: Entry, *, fresh: bool) -> None:
        """A message is there, or what is known of one has changed."""

    def presence(self) -> None:
        """The other has come or gone."""

    def connection(self, problem: str | None) -> None:
        """The node is there (again), or why it is not."""

    def over(self, error: Exception) -> None:
        """Nothing more will come: waiting does not help."""


class Talk:
    """`tell`: has something done by the thread that shows the conversation."""

    def __init__(
        self, node: Node, name: str, view: View, tell: Callable[[Callable[[], None]], None], *, history: int
    ) -> None:
        self.conversation = Conversation(name)
        self._node, self._to, self._view, self._tell, self._history = node, name, view, tell, history
        self._stopping = threading.Event()
        self._outgoing: queue.Queue[tuple[str, str] | None] = queue.Queue(AHEAD_MESSAGES)
        self.worst = 0  # the highest exit code of what the node did not take
        after = int(node.status().document["inbox"]["next"])
        names = self.conversation.name
        self._stream = stream(
            node, "message,outbox,presence", after=after, sender=name, names=names, sleep=self._stopping.wait
        )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until the node has taken what was typed."""
        self._outgoing.put(None)
        self._threads[1].join()

    def read_all(self) -> None:
        """What was shown counts as read, for everything else that shows what is unread."""
        with suppress(Unreachable, Problem):
            self._look_up(1)

    def stop(self) -> None:
        """Nothing more is told. What the node has not taken is not sent."""
        self._stopping.set()
        self._stream.close()

    @property
    def stopped(self) -> bool:
        return self._stopping.is_set()

    # -- what is typed -------------------------------------------------------------------------------------------

    def say(self, text: str, *, patient: bool = False) -> bool:
        """Send it; False: too much waits already. `patient`: then wait for room, in a thread of its own."""
        message_id = token_hex(ID_BYTES)
        if not patient and self._outgoing.full():
            return False
        at_ms = int(time.time() * 1000)

        def show() -> None:
            self._view.entry(self.conversation.typed(message_id, text, at_ms), fresh=True)

        self._tell(show)  # before anything can be known of it
        self._outgoing.put((message_id, text))
        return True

    def _write(self) -> None:
        while (typed := self._outgoing.get()) is not None and not self._stopping.is_set():
            self._hand_over(*typed)

    def _hand_over(self, message_id: str, text: str) -> None:
        """Until the node has it, or refuses it: the id makes it harmless that it may be handed over twice."""
        while not self._stopping.is_set():
            try:
                answer = self._node.send(self._to, text, message_id=message_id, wait_s=0).document
            except (Unreachable, Problem) as error:
                status = UNSENT if passes(error) else FAILED
                if status == FAILED:
                    self.worst = max(self.worst, exit_code(error))
                self._stands(message_id, status, what(error) if status == UNSENT else sentence(error), None)
                if status == FAILED:
                    return
                self._stopping.wait(RETRY_DELAY_S)
            else:
                self._stands(message_id, str(answer["status"]), answer.get("reason"), None)
                return

    def _stands(self, message_id: str, status: str, reason: object, changed_at_ms: int | None) -> None:
        def show() -> None:
            entry = self.conversation.stands(message_id, status, reason, changed_at_ms)
            if entry is not None:
                self._view.entry(entry, fresh=False)

        self._tell(show)

    # -- what happens --------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            for event in self._stream:
                self._heard(event)
        except Exception as error:  # also a fault of our own: nothing more will come
            reason = error
            self._tell(lambda: self._view.over(reason))

    def _heard(self, event: Document) -> None:
        match event.get("event"):
            case "open":
                self._tell(lambda: self._view.connection(None))
                self._catch_up(self._history)
            case "lost":
                why = what(event["error"])
                self._tell(lambda: self._view.connection(why))
            case "message":
                self._tell(lambda: self._came(event))
            case "outbox" if "missed" in event:
                self._catch_up(CAUGHT_UP_MESSAGES)
            case "recipient" if self.conversation.concerns(event):
                self._tell(lambda: self._held_up(event))
            case "outbox" if self.conversation.concerns(event):
                if not self.conversation.is_own(str(event["id"])):  # sent by other means, such as the page
                    self._catch_up(CAUGHT_UP_MESSAGES)
                self._stands(str(event["id"]), str(event["status"]), event.get("reason"), event.get("changed_at"))
            case "presence" if self.conversation.concerns(event):
                self._tell(lambda: self._seen(event))

    def _came(self, message: Document) -> None:
        entry = self.conversation.came(message)
        if entry is not None:
            self._view.entry(entry, fresh=True)

    def _held_up(self, event: Document) -> None:
        for entry in self.conversation.held_up(event.get("reason")):
            self._view.entry(entry, fresh=False)

    def _seen(self, event: Document) -> None:
        if self.conversation.seen(event["online"], event.get("seen")):
            self._view.presence()

    def _catch_up(self, limit: int) -> None:
        """What the history has and this has not, and how far those messages have come of which more is to be heard."""
        if limit:
            try:
                items = self._look_up(limit)
            except (Unreachable, Problem):
                items = []  # what comes from now on is shown all the same
            self._tell(lambda: self._remember(items))
        for entry in self.conversation.waiting():
            message_id = entry.key[1]
            if entry.status == UNSENT:
                continue
            try:
                kept = self._node.sent(message_id, self._to).document
            except (Unreachable, Problem):
                continue
            if "status" in kept:
                self._stands(message_id, str(kept["status"]), kept.get("reason"), kept.get("changed_at"))

    def _look_up(self, limit: int) -> list[Document]:
        """The latest of the history; they have been read by that. A node that is still making it is asked again."""
        for _ in range(LOOKS_MAX):
            answer = self._node.history(self.conversation.name, limit).document
            if not answer["behind"] or self._stopping.wait(LOOK_AGAIN_S):
                break
        items: list[Document] = answer["messages"]
        if items:
            self._node.read(self.conversation.name, items[-1]["pos"])
        return items

    def _remember(self, items: list[Document]) -> None:
        for entry in self.conversation.remember(items):
            self._view.entry(entry, fresh=False)
