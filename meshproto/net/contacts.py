"""Whose keys are known, and what happens when one changes: what SSH does with known_hosts.

The first key seen for a name is pinned. When the name answers with another one, nothing goes there or comes from there
until the owner trusts it.
"""

from collections import OrderedDict
from typing import Final, NamedTuple

from meshproto.core.identity import fingerprint, unb64
from meshproto.core.lookup import Located
from meshproto.errors import KeyChanged, Unavailable
from meshproto.net.clocks import NowMs
from meshproto.net.contacts_table import ContactsTable
from meshproto.wire import fold

PINS_MAX: Final = 10_000
"""Contacts whose keys are kept in memory; the others are read from disk."""


class _Pin(NamedTuple):
    key: str
    seq: int


class Contacts:
    def __init__(self, table: ContactsTable, now_ms: NowMs) -> None:
        self._table = table
        self._now_ms = now_ms
        self._pins: OrderedDict[str, _Pin] = OrderedDict()

    async def check(self, located: Located, wanted: str | None = None) -> None:
        """Raises :class:`KeyChanged` unless the key is the one that was pinned, and has the fingerprint `wanted`, if
        one is; a new contact's key is pinned."""
        record = located.record
        found = fingerprint(record.key_bytes)
        if wanted is not None and wanted != found:
            raise KeyChanged(f"{record.name} has the key {found}, not {wanted}")
        pin = self._pins.get(fold(record.name))
        if pin is None or pin.seq < record.seq:
            try:
                key = await self._table.pin(record, located.signed, self._now_ms())
            except Unavailable:
                if pin is None:
                    raise
                key = pin.key  # that the record is a newer one can be written down another time
            pin = self._pins[fold(record.name)] = _Pin(key, record.seq if key == record.key else 0)
            if len(self._pins) > PINS_MAX:
                self._pins.popitem(last=False)
        if pin.key != record.key:
            known = fingerprint(unb64(pin.key))
            raise KeyChanged(
                f"{record.name} answers with the key {found}, but you have exchanged messages with the key {known}. "
                f'If you know why, trust the new key: PUT /contacts/{record.name} {{"fingerprint": "{found}"}}'
            )

    async def knows(self, name: str) -> bool:
        """Whether a key is pinned for the name."""
        return fold(name) in self._pins or await self._table.get(name) is not None

    async def trust(self, located: Located, wanted: str) -> None:
        """Pin the key that the name answers with, if its fingerprint is `wanted`; else raises :class:`KeyChanged`."""
        record = located.record
        found = fingerprint(record.key_bytes)
        if found != wanted.lower():
            raise KeyChanged(f"{record.name} answers with the key {found}, not {wanted}: nothing was trusted")
        await self._table.trust(record, located.signed, self._now_ms())
        self._pins.pop(fold(record.name), None)
