"""Both clients behind one face, so that one suite holds for both: what the blocking one returns, and what the other's
Deferreds bring. The tests that use it wait, and so are :func:`in_thread`, beside the reactor."""

import functools
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread, deferToThread

from meshproto import client as blocking
from meshproto.client import Draft, Found, Kept, Message, Page, Sent, Status

T = TypeVar("T")
Body = Callable[[Message], object]


Wait = Callable[[Callable[[], "Deferred[Any]"]], Any]


def in_thread(test: Callable[..., None]) -> Callable[..., Any]:
    """A test that waits, while the reactor runs."""

    @functools.wraps(test)
    async def run(**fixtures: Any) -> None:
        from twisted.internet import reactor

        try:
            await deferToThread(test, **fixtures)
        finally:
            await deferLater(reactor, 0)  # what was aborted last is closed by then

    return run


def from_thread(ask: Callable[[], "Deferred[Any]"]) -> Any:
    from twisted.internet import reactor

    return blockingCallFromThread(reactor, ask)  # type: ignore[arg-type]


class Stopped(Exception):
    """A program that dies within the body of its loop."""


class Driver:
    """`follow`: what was followed, each message after `body` was done with it; a body that raises ends it so. Who
    answers returns what to answer from `body`."""

    def __init__(self, url: str, **settings: Any) -> None:
        raise NotImplementedError

    def send(self, to: Any, message: object, **more: Any) -> Any:
        raise NotImplementedError

    def send_many(self, drafts: Iterable[Draft], told: Callable[[Sent], object] = lambda _: None) -> list[Sent]:
        raise NotImplementedError

    def follow(self, cursor: Any = None, *, body: Body = lambda _: None, **more: Any) -> list[Message]:
        raise NotImplementedError

    def answer(self, message: Message, answer: object, **more: Any) -> Sent:
        raise NotImplementedError

    def inbox(self, **more: Any) -> Page:
        raise NotImplementedError

    def lookup(self, name: str) -> Found:
        raise NotImplementedError

    def status(self) -> Status:
        raise NotImplementedError

    def state(self, id: str, to: str) -> Kept:
        raise NotImplementedError

    def cancel(self, id: str, to: str) -> Sent:
        raise NotImplementedError


class Blocking(Driver):
    def __init__(self, url: str, **settings: Any) -> None:
        self._client = blocking.Client(url, **settings)
        for name in ("send", "answer", "inbox", "lookup", "status", "state", "cancel"):
            setattr(self, name, getattr(self._client, name))

    def send_many(self, drafts: Iterable[Draft], told: Callable[[Sent], object] = lambda _: None) -> list[Sent]:
        results = []
        for sent in self._client.send_many(drafts):
            told(sent)
            results.append(sent)
        return results

    def follow(self, cursor: Any = None, *, body: Body = lambda _: None, **more: Any) -> list[Message]:
        messages = []
        for message in self._client.follow(cursor, **more):
            body(message)
            messages.append(message)
        return messages


class OnTwisted(Driver):
    """`wait`: asks in the reactor, and brings the result about."""

    def __init__(self, url: str, wait: Wait = from_thread, **settings: Any) -> None:
        from meshproto.client.on_twisted import Client

        self._client, self._wait = Client(url, **settings), wait
        for name in ("send", "answer", "inbox", "lookup", "status", "state", "cancel"):
            setattr(self, name, self._waiting(getattr(self._client, name)))

    def send_many(
        self, drafts: Iterable[Draft] | AsyncIterable[Draft], told: Callable[[Sent], object] = lambda _: None
    ) -> list[Sent]:
        async def collect() -> list[Sent]:
            results = []
            async for sent in self._client.send_many(drafts):
                told(sent)
                results.append(sent)
            return results

        return self._wait(lambda: Deferred.fromCoroutine(collect()))  # type: ignore[no-any-return]

    def follow(self, cursor: Any = None, *, body: Body = lambda _: None, **more: Any) -> list[Message]:
        async def collect() -> list[Message]:
            messages = []
            async for message in self._client.follow(cursor, **more):
                body(message)
                messages.append(message)
            return messages

        return self._wait(lambda: Deferred.fromCoroutine(collect()))  # type: ignore[no-any-return]

    def _waiting(self, ask: Callable[..., "Deferred[T]"]) -> Callable[..., T]:
        def asked(*positional: Any, **named: Any) -> T:
            result: T = self._wait(lambda: ask(*positional, **named))
            return result

        return asked


DRIVERS: dict[str, type[Driver]] = {"blocking": Blocking, "on_twisted": OnTwisted}
