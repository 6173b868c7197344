"""Whose keys are known, and what happens when one changes: what SSH does with known_hosts.

The first key seen for a name is pinned. When the name answers with another one, nothing goes there or comes from there
until the owner trusts it. The other key is remembered beside the pinned one, and told of once.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from twisted.logger import Logger

from meshproto.core.identity import Record, fingerprint, unb64, verify
from meshproto.core.limits import Buckets, Rate
from meshproto.core.lookup import Located
from meshproto.errors import KeyChanged, NotFound, Unavailable, UserNotFound
from meshproto.net.clocks import NowMs
from meshproto.net.contacts_table import Contact, ContactsTable
from meshproto.wire import SignedRecord, fold

PINS_MAX: Final = 10_000
"""Contacts whose keys are kept in memory; the others are read from disk."""
CHANGED: Final = (
    "THE KEY OF A CONTACT HAS CHANGED: {reason}. Either they have a new key, or somebody pretends to be them: nothing "
    "goes to the new key or comes from it until you have compared its fingerprint and trusted it (mesh contacts)"
)
"""The line in the log, once for each key and now and then: nobody must be able to fill the log with it."""
NEWS: Final = Rate(per_s=1 / 60, burst=1.0)
"""Other keys of a contact that are taken note of, on disk and in the log, on the word of seeds: these may say another
one each time they are asked, and have themselves asked once a second for everyone that messages wait for. What is not
taken note of is refused all the same, and may be trusted."""
NEWS_IN_ALL: Final = Rate(per_s=1.0, burst=100.0)
"""Of all contacts: a seed may say it of ten thousand at a time."""


class _Pin(NamedTuple):
    key: str
    seq: int


class Contacts:
    log = Logger()

    def __init__(self, table: ContactsTable, now_ms: NowMs) -> None:
        self._table = table
        self._now_ms = now_ms
        self._pins: OrderedDict[str, _Pin] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()  # contacts that have written
        self._news = Buckets(NEWS, PINS_MAX)
        self._news_in_all = Buckets(NEWS_IN_ALL)

    async def check(self, located: Located, wanted: str | None = None) -> None:
        """Raises :class:`KeyChanged` unless the key is the one that was pinned, and has the fingerprint `wanted`, if
        one is; a new contact's key is pinned."""
        record = located.record
        if wanted is not None and wanted != (found := fingerprint(record.key_bytes)):
            await self.notice(located)
            raise KeyChanged(f"{record.name} has the key {found}, not {wanted}")
        name = fold(record.name)
        pin = self._pins.get(name)
        if pin is None or pin.seq < record.seq:
            try:
                key = await self._table.pin(record, located.signed, self._now_ms())
            except Unavailable:
                pin = self._pins.get(name)
                if pin is None:
                    raise
                key = pin.key  # that the record is a newer one can be written down another time
            pin = self._pins[name] = _Pin(key, record.seq if key == record.key else 0)
            if len(self._pins) > PINS_MAX:
                self._pins.popitem(last=False)
        if pin.key != record.key:
            known, found = fingerprint(unb64(pin.key)), fingerprint(record.key_bytes)
            await self.notice(located)
            raise KeyChanged(
                f"{record.name} answers with the key {found}, but you have exchanged messages with the key {known}. "
                f'If you know why, trust the new key: PUT /contacts/{record.name} {{"fingerprint": "{found}"}}'
            )

    async def knows(self, name: str) -> bool:
        """Whether a key is pinned for the name."""
        key = fold(name)
        if key in self._pins or key in self._known:
            return True
        if await self._table.get(name) is None:
            return False
        self._known[key] = None
        if len(self._known) > PINS_MAX:
            self._known.popitem(last=False)
        return True

    async def is_trusted(self, record: Record) -> bool:
        """Whether the owner has said that this is the name's key."""
        contact = await self._table.get(record.name)
        return contact is not None and contact.key == record.key and contact.verified_at is not None

    async def trust(self, name: str, wanted: str, locate: Callable[[], Awaitable[Located]]) -> Contact:
        """The owner says that the name's key has the fingerprint `wanted`: the pinned key is verified, the offered one
        is pinned, or what `locate` answers. Raises :class:`KeyChanged` when it is none of these, and for an unknown
        name what `locate` does; then nothing was changed."""
        contact = await self._table.get(name)
        signed = None if contact is None else _known(contact, wanted)
        if signed is None:
            signed = await self._ask(name, contact, wanted, locate)
        trusted = await self._table.trust(verify(signed), signed, self._now_ms())
        self._pins.pop(fold(name), None)
        return trusted

    async def get(self, name: str, print_: str | None = None) -> Contact:
        """Raises :class:`NotFound` for a name that is no contact, or has not the key with this fingerprint."""
        contact = await self._table.get(name)
        if contact is None:
            raise NotFound(f"{name} is no contact: no message was exchanged with that name, and no key trusted")
        known = fingerprint(unb64(contact.key))
        if print_ not in (None, known):
            raise NotFound(f"the contact {contact.name} has the key {known}, not {print_}")
        return contact

    async def forget(self, name: str, print_: str | None = None) -> Contact:
        """As if nothing had ever been exchanged. The contact as it was; raises what :meth:`get` does."""
        contact = await self.get(name, print_)
        await self._table.forget(name)
        self._pins.pop(fold(name), None)
        self._known.pop(fold(name), None)
        return contact

    async def _ask(
        self, name: str, contact: Contact | None, wanted: str, locate: Callable[[], Awaitable[Located]]
    ) -> SignedRecord:
        """The record of the key with this fingerprint, if the name answers with it now."""
        try:
            located = await locate()
        except UserNotFound:
            if contact is None:
                raise
            raise KeyChanged(_none_of(contact, wanted)) from None
        found = fingerprint(located.record.key_bytes)
        if found == wanted:
            return located.signed
        if contact is None:
            raise KeyChanged(f"{located.record.name} answers with the key {found}, not {wanted}: nothing was trusted")
        await self.notice(located)
        raise KeyChanged(_none_of(await self.get(name), wanted))

    async def notice(self, located: Located) -> None:
        """A seed says that the name has this key; when it is another than the pinned one, and than the one that was
        said before, that is written down, unless much was already."""
        record, now_ms = located.record, self._now_ms()
        name = fold(record.name)
        if self._news.take(name, now_ms / 1000) or self._news_in_all.take("", now_ms / 1000):
            return
        try:
            pinned = await self._table.offer(record, located.signed, now_ms)
        except Unavailable:
            return  # it will be said again
        if pinned is None:  # no news
            self._news.give_back(name, 1.0)
            self._news_in_all.give_back("", 1.0)
            return
        known, found = fingerprint(unb64(pinned)), fingerprint(record.key_bytes)
        self.log.warn(CHANGED, reason=f"{record.name} is known with the key {known}, and a seed says {found}")


def _known(contact: Contact, wanted: str) -> SignedRecord | None:
    """The record of the contact's keys that has this fingerprint."""
    if fingerprint(unb64(contact.key)) == wanted:
        return contact.signed
    if contact.offered is not None and fingerprint(unb64(contact.offered.key)) == wanted:
        return contact.offered.signed
    return None


def _none_of(contact: Contact, wanted: str) -> str:
    other = (
        f", and the key {fingerprint(unb64(contact.offered.key))} has used the name since" if contact.offered else ""
    )
    known = fingerprint(unb64(contact.key))
    return f"{contact.name} is known with the key {known}{other}: not {wanted}, so nothing was trusted"
