"""The client for programs that wait: :class:`Client`, on the standard library alone."""

import ssl
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar, overload

from meshproto.client.asking import ANSWER_TIMEOUT_S, Answer, Request
from meshproto.client.cursor import CursorFile
from meshproto.client.errors import NodeError, Problem, Unreachable
from meshproto.client.following import LOST
from meshproto.client.node import Node
from meshproto.client.results import Draft, Found, Kept, Message, Page, Sent, Status
from meshproto.client.settings import BadSetting, PathLike, settings
from meshproto.client.steps import BULK_RETRY_S, RETRY_S, Bulk, Pause, Steps, Ways, make_id
from meshproto.client.stream import Stream
from meshproto.client.under_way import IteratedDrafts

T = TypeVar("T")


class Client:
    """A user node, as its owner's program sees it. Any thread may use it.

    `url`: `http://127.0.0.1:3000`, or `unix:PATH`. `token`, or the file it is in, where the node asks for one. `ca`: a
    file with certificates (PEM) of those who are trusted with https. What is not given is what `mesh` would take:
    `MESH_NODE`, `MESH_TOKEN_FILE`, `MESH_CA`. `timeout_s`: for an answer, beyond what the node was asked to wait.
    `retry_s`: for how long a node that does not answer is asked again.

    Every method raises :class:`Problem` (one of its kinds) for what the node refuses, and :class:`Unreachable`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        token_file: PathLike | None = None,
        ca: PathLike | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retry_s: float = RETRY_S,
    ) -> None:
        given = settings(url, token, token_file, ca)
        tls = None if given.ca is None else trust(given.ca)
        self.node = Node(given.place.url, given.token, timeout_s, tls)
        self.url = self.node.url
        self._ways = Ways(self.url, time.monotonic, retry_s)

    @overload
    def send(
        self,
        to: str,
        message: object,
        *,
        id: str | None = None,
        type: str = "",
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> Sent: ...

    @overload
    def send(
        self,
        to: list[str] | tuple[str, ...],
        message: object,
        *,
        id: str | None = None,
        type: str = "",
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> list[Sent]: ...

    def send(
        self,
        to: str | list[str] | tuple[str, ...],
        message: object,
        *,
        id: str | None = None,
        type: str = "",
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> Sent | list[Sent]:
        """Send any JSON value to a name, or to several: then there is a result for each, in order, and one that failed
        has its `error`. It is asked again when the connection breaks: with its `id`, given or made up, it is the same
        message, and is delivered once."""
        draft = Draft("", message, id, type, ttl_s, wait_s)
        if isinstance(to, str):
            return self._run(self._ways.send(to, draft))[0]
        return self._run(self._ways.send(list(to), draft))

    def send_many(self, drafts: Iterable[Draft]) -> Iterator[Sent]:
        """Send a stream of messages; the results, in order, as they come. One that failed has its `error`, and the rest
        goes on. A few thousand are under way at a time, and kept: those that were not answered go out again when the
        connection breaks, and are the same messages. Nothing is sent but while the results are read."""
        lines = IteratedDrafts(iter(drafts), make_id)
        bulk = Bulk(self.url, lines, self._ways.patience(BULK_RETRY_S))
        while lines.wait():
            try:
                bulk.begin(self.node.status().document)
                with closing(self.node.send_lines(lines)) as results:
                    for result in results:
                        yield bulk.read(result)
                        if bulk.is_done:
                            break
                    else:
                        bulk.end()
            except (Unreachable, Problem) as error:
                time.sleep(bulk.lost(error))
        if lines.failure is not None:
            raise lines.failure

    def answer(self, message: Message, answer: object, *, type: str = "", part: str = "") -> Sent:
        """Send to whoever wrote a message, and nobody else: to their full address. The id is made of the message's, so
        that a program which was killed and answers again has answered once. `part`: when there are several answers to
        one message, which."""
        return self._run(self._ways.answer(message, Draft("", answer, type=type), part))

    def inbox(
        self,
        *,
        after: int | None = None,
        sender: str | None = None,
        limit: int | None = None,
        wait_s: float | None = None,
    ) -> Page:
        """A page of the inbox, oldest first. `wait_s`: an empty one is held back so long for a message."""
        return self._run(self._ways.inbox(after, sender, limit, wait_s))

    def follow(
        self,
        cursor: PathLike | None = None,
        *,
        after: int | None = 0,
        sender: str | None = None,
        limit: int | None = None,
        on_lost: Callable[[NodeError], object] = lambda _: None,
    ) -> Generator[Message, None, None]:
        """The messages of the inbox, and then those that come, for ever or until there were `limit`.

        `cursor`: a file that says how far this program has come; a message counts as done when the next one is asked
        for. A program that dies in between gets it again. `after`: where to begin when there is no such file yet; None:
        with what comes from now on. A node that goes away is waited for, and `on_lost` is told. Errors are another
        node than the cursor's (:class:`OtherNode`), and one that was never there (`retry_s`)."""
        if limit is not None and limit <= 0:
            return
        stored = None if cursor is None else CursorFile(cursor)
        following = self._ways.following(stored, after, sender)
        with closing(Stream(self.node, following)) as stream:
            left = limit
            for event in stream:
                if event["event"] == LOST:
                    on_lost(event["error"])
                elif event["event"] == "message":
                    message = Message.read(event)
                    yield message
                    following.done(message.cursor)
                    left = None if left is None else left - 1
                    if left == 0:
                        return

    def lookup(self, name: str) -> Found:
        """Where a name is. Raises :class:`UserNotFound`."""
        return self._run(self._ways.lookup(name))

    def status(self) -> Status:
        """The node at a glance."""
        return self._run(self._ways.status())

    def state(self, id: str, to: str) -> Kept:
        """How far a message has come, and what became of it. Raises :class:`NotFound`."""
        return self._run(self._ways.state(id, to))

    def cancel(self, id: str, to: str) -> Sent:
        """Give a message up. Raises :class:`MessageEnded` when it has come to its end already."""
        return self._run(self._ways.cancel(id, to))

    def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    answer = self._take(step)
                except NodeError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    def _take(self, step: Request | Pause) -> Answer | None:
        if isinstance(step, Request):
            return self.node.ask(step)
        time.sleep(step.seconds)
        return None


def trust(path: Path) -> ssl.SSLContext:
    """Whoever the certificates in a file stand for. Raises :class:`BadSetting`."""
    try:
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise BadSetting(f"{path} cannot be read as certificates: {error}") from error
