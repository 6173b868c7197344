"""The client for programs that never wait: :class:`Client`, whose methods return Deferreds, to be awaited or called
back. Streams are asynchronous iterators: `async for`, in a coroutine that Twisted runs (`Deferred.fromCoroutine`).

It has the names, results and errors of :class:`meshproto.client.Client`, and shares all with it but the waiting.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar, overload

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from meshproto.client.asking import ANSWER_TIMEOUT_S, Answer, Request
from meshproto.client.cursor import CursorFile
from meshproto.client.errors import NodeError, Problem, Unreachable
from meshproto.client.following import ENDED, Following
from meshproto.client.results import Draft, Found, Kept, Message, Page, Sent, Status
from meshproto.client.settings import PathLike, settings
from meshproto.client.steps import BULK_RETRY_S, RETRY_S, Bulk, Pause, Steps, Ways, make_id
from meshproto.client.twisted_node import Node
from meshproto.client.under_way import Drafts, IteratedDrafts

T = TypeVar("T")


class Client:
    """A user node, as its owner's program sees it. The arguments are those of :class:`meshproto.client.Client`, and
    `reactor`: Twisted's, unless a test has another."""

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        token_file: PathLike | None = None,
        ca: PathLike | None = None,
        timeout_s: float = ANSWER_TIMEOUT_S,
        retry_s: float = RETRY_S,
        reactor: Any = None,
    ) -> None:
        if reactor is None:
            from twisted.internet import reactor as the_reactor  # noqa: PLC0415 -- importing it installs one

            reactor = the_reactor
        self._reactor = reactor
        self.node = Node(reactor, settings(url, token, token_file, ca), timeout_s)
        self.url = self.node.url
        self._ways = Ways(self.url, reactor.seconds, retry_s)

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
    ) -> "Deferred[Sent]": ...

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
    ) -> "Deferred[list[Sent]]": ...

    def send(
        self,
        to: str | list[str] | tuple[str, ...],
        message: object,
        *,
        id: str | None = None,
        type: str = "",
        ttl_s: float | None = None,
        wait_s: float | None = None,
    ) -> "Deferred[Sent] | Deferred[list[Sent]]":
        """See :meth:`meshproto.client.Client.send`."""
        draft = Draft("", message, id, type, ttl_s, wait_s)
        if isinstance(to, str):
            return self._run(self._ways.send(to, draft)).addCallback(lambda results: results[0])
        return self._run(self._ways.send(list(to), draft))

    async def send_many(self, drafts: Iterable[Draft] | AsyncIterable[Draft]) -> AsyncGenerator[Sent, None]:
        """See :meth:`meshproto.client.Client.send_many`. The messages may come as they like: what is there is sent,
        also while the next is waited for."""
        source = _Source(drafts)
        bulk = Bulk(self.url, source.lines, self._ways.patience(BULK_RETRY_S))
        while await source.wait():
            try:
                bulk.begin((await self.node.status()).document)
                async with aclosing(self.node.send_lines(source.lines, source.more)) as results:
                    async for result in results:
                        sent = bulk.read(result)
                        source.wake()
                        yield sent
                        if bulk.is_done:
                            break
                    else:
                        bulk.end()
            except (Unreachable, Problem) as error:
                await self._pause(bulk.lost(error))
        if source.lines.failure is not None:
            raise source.lines.failure

    def answer(self, message: Message, answer: object, *, type: str = "", part: str = "") -> "Deferred[Sent]":
        """See :meth:`meshproto.client.Client.answer`."""
        return self._run(self._ways.answer(message, Draft("", answer, type=type), part))

    def inbox(
        self,
        *,
        after: int | None = None,
        sender: str | None = None,
        limit: int | None = None,
        wait_s: float | None = None,
    ) -> "Deferred[Page]":
        """See :meth:`meshproto.client.Client.inbox`."""
        return self._run(self._ways.inbox(after, sender, limit, wait_s))

    async def follow(
        self,
        cursor: PathLike | None = None,
        *,
        after: int | None = 0,
        sender: str | None = None,
        limit: int | None = None,
        on_lost: Callable[[NodeError], object] = lambda _: None,
    ) -> AsyncGenerator[Message, None]:
        """See :meth:`meshproto.client.Client.follow`."""
        stored = None if cursor is None else CursorFile(cursor)
        following = self._ways.following(stored, after, sender)
        left = limit
        while left is None or left > 0:
            try:
                async with aclosing(self._heard(following)) as messages:
                    async for message in messages:
                        yield message
                        following.done(message.cursor)
                        left = None if left is None else left - 1
                        if left == 0:
                            return
                raise Unreachable(self.url, ENDED)
            except (Unreachable, Problem) as error:
                pause_s, is_news = following.lost(error)
                if is_news:
                    on_lost(error)
                await self._pause(pause_s)

    def lookup(self, name: str) -> "Deferred[Found]":
        """See :meth:`meshproto.client.Client.lookup`."""
        return self._run(self._ways.lookup(name))

    def status(self) -> "Deferred[Status]":
        """See :meth:`meshproto.client.Client.status`."""
        return self._run(self._ways.status())

    def state(self, id: str, to: str) -> "Deferred[Kept]":
        """See :meth:`meshproto.client.Client.state`."""
        return self._run(self._ways.state(id, to))

    def cancel(self, id: str, to: str) -> "Deferred[Sent]":
        """See :meth:`meshproto.client.Client.cancel`."""
        return self._run(self._ways.cancel(id, to))

    async def _heard(self, following: Following) -> AsyncGenerator[Message, None]:
        """Over one connection."""
        if following.asks_whose:
            following.learn((await self.node.status()).document)
        async with aclosing(self.node.events(following.request())) as events:
            async for event in events:
                if following.heard(event) and event["event"] == "message":
                    yield Message.read(event)

    def _run(self, steps: Steps[T]) -> "Deferred[T]":
        return Deferred.fromCoroutine(self._carry_out(steps))

    async def _carry_out(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._take(step)
                except NodeError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _take(self, step: Request | Pause) -> Answer | None:
        if isinstance(step, Request):
            return await self.node.ask(step)
        await self._pause(step.seconds)
        return None

    def _pause(self, seconds: float) -> "Deferred[None]":
        return deferLater(self._reactor, seconds)


class _Source:
    """Where the messages of a stream come from. What is asked of it goes on when a connection breaks: the message that
    is then got is for the next one."""

    def __init__(self, drafts: Iterable[Draft] | AsyncIterable[Draft]) -> None:
        self._coming: AsyncIterator[Draft] | None = None
        if isinstance(drafts, AsyncIterable):
            self._coming = aiter(drafts)
            self.lines: Drafts = Drafts(make_id)
        else:
            self.lines = IteratedDrafts(iter(drafts), make_id)
        self._waiter: Deferred[None] | None = None
        self._asking = False

    async def wait(self) -> bool:
        """Wait for a message to send; False: all were sent and answered."""
        while not self.lines.wait():
            if self.lines.done:
                return False
            await self.more()
        return True

    def more(self) -> "Deferred[None]":
        """Fires when there may be another message, or room for one."""
        waiter = self._waiter = Deferred()
        if self._coming is not None and not self._asking and self.lines.has_room and not self.lines.done:
            self._asking = True
            Deferred.fromCoroutine(self._ask(self._coming))
        return waiter

    def wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.called:
            waiter.callback(None)

    async def _ask(self, coming: AsyncIterator[Draft]) -> None:
        try:
            self.lines.put(await anext(coming))
        except StopAsyncIteration:
            self.lines.done = True
        except Exception as error:  # told when what came before it has been sent
            self.lines.failure, self.lines.done = error, True
        self._asking = False
        self.wake()
