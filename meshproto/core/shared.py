"""A directory that several seeds share: what it is kept in."""

from collections.abc import Awaitable, Iterable
from typing import Protocol


class SharedStore(Protocol):
    """One value a key, in a store that several seeds share. All but `watch` and `unwatch` raise
    :class:`meshproto.errors.Unavailable` (with `retry_after_s`) when the store does not answer in time, or has nobody
    for this part of the keys."""

    def get(self, key: str) -> Awaitable[bytes | None]: ...

    def swap(self, key: str, before: bytes | None, after: bytes | None, ttl_ms: int) -> Awaitable[bool]:
        """Compare and set: writes `after` (None: deletes) with an expiry of `ttl_ms` if the value is still `before`
        (None: there is none), tells all who watch the key, and says whether it did."""

    def watch(self, keys: Iterable[str]) -> None: ...

    def unwatch(self, keys: Iterable[str]) -> None: ...

    def count(self) -> Awaitable[int]:
        """How many keys there are, roughly."""

    def identity(self) -> Awaitable[str]:
        """A random id of this directory, made by the first seed that comes."""

    def close(self) -> Awaitable[None]: ...
