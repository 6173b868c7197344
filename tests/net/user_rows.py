"""What goes into the tables of a user node, for their tests."""

from msgspec import Raw

from meshproto.core.envelope import MESSAGE_BYTES_MAX, Letter
from meshproto.core.identity import Record
from meshproto.net.outbox_table import Accepted, Draft
from meshproto.net.user_store import UserStore
from meshproto.wire import SignedRecord
from tests.net.on_clock import OnClock

NOW_MS = 1_000_000
LARGE = b'"' + b"x" * (MESSAGE_BYTES_MAX - 2) + b'"'


def draft(id_: str = "a", to: str = "Bob", text: bytes = b'"hi"', sent_at: int = NOW_MS, type_: str = "") -> Draft:
    return Draft(to.lower(), id_, to, type_, text, sent_at, sent_at + 1000)


def user(name: str = "Bob", key: str = "key1", seq: int = 1) -> tuple[Record, SignedRecord]:
    """A record and its signed text; the store does not verify, whoever calls it has."""
    record = Record(name, [f"http://192.0.2.{seq}:3000"], key, "mail", seq)
    return record, SignedRecord(f"record {name} {key} {seq}", f"sig{seq}")


def letter(id_: str, text: bytes = b'"hi"') -> Letter:
    return Letter(id_, Raw(text), NOW_MS)


def accept(disk: OnClock, store: UserStore, *drafts: Draft) -> Accepted:
    """What became of the last of them."""
    accepted = disk.run(store.outbox.accept(drafts))[-1]
    if isinstance(accepted, Exception):
        raise accepted
    return accepted
