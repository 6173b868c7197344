"""The key file: a round trip, and what is said of a damaged one."""

import os
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproto.core.identity import KEY_BYTES, MAIL_KEYS_KEPT, Identity, b64
from meshproto.errors import BadState

NOW_MS = 1_795_343_300_123


def identity(seed: int) -> Identity:
    return Identity.create(random.Random(seed).randbytes, NOW_MS)


ME = identity(1)


def test_keys_come_from_entropy_only() -> None:
    """The same entropy makes the same keys, other entropy others; identity and mail keys differ."""
    assert identity(1).dump() == identity(1).dump() != identity(2).dump()
    assert bytes(ME.signing) != bytes(ME.mail)
    assert len(Identity.create(os.urandom, NOW_MS).key) == KEY_BYTES


def three_mail_keys() -> Identity:
    """A key file with as many mail keys as are kept."""
    mail_keys = tuple(identity(seed).mail for seed in range(MAIL_KEYS_KEPT))
    return Identity(ME.signing, mail_keys, tuple(NOW_MS - number for number in range(MAIL_KEYS_KEPT)))


@pytest.mark.parametrize("kept", [ME, three_mail_keys()])
def test_a_key_file_round_trip(kept: Identity) -> None:
    """What `dump` writes `load` reads: the same keys, the newest mail key first, and their ages."""
    again = Identity.load(kept.dump())
    assert again.key == kept.key
    assert [bytes(key) for key in again.mail_keys] == [bytes(key) for key in kept.mail_keys]
    assert again.made_at_ms == kept.made_at_ms
    assert bytes(again.mail) == bytes(kept.mail_keys[0])
    assert again.sign("UserX", [], 1) == kept.sign("UserX", [], 1)


def damaged(**fields: Any) -> bytes:
    return msgspec.json.encode(msgspec.json.decode(ME.dump()) | fields)


MAIL = msgspec.json.decode(ME.dump())["mail"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"\xff",
        b"null",
        ME.dump()[:-1],
        ME.dump() + b"x",
        damaged(identity="QQ"),
        damaged(identity="="),
        damaged(identity=b64(bytes(33))),
        damaged(other=1),
        damaged(mail=[]),
        damaged(mail=MAIL * (MAIL_KEYS_KEPT + 1)),
        damaged(mail=[{"secret": "QQ", "made_at": 1}]),
        damaged(mail=[{"secret": MAIL[0]["secret"]}]),
        damaged(mail=[{"x": "DEEP"}]).replace(b'"DEEP"', b"[" * 5000),
    ],
)
def test_a_damaged_key_file_is_said_to_be_one(text: bytes) -> None:
    """Whatever is wrong with it, the owner reads that the key file is damaged, and what to do."""
    with pytest.raises(BadState, match=r"the key file is damaged .* restore it from a backup"):
        Identity.load(text)


@settings(max_examples=200)
@given(st.integers(0, len(ME.dump()) - 1), st.binary(max_size=2))
def test_a_key_file_with_any_damage_is_bad_state_or_other_keys(at: int, noise: bytes) -> None:
    """Damage never raises anything but BadState."""
    text = ME.dump()
    try:
        Identity.load(text[:at] + noise + text[at + 1 :])
    except BadState as damage:
        assert b64(bytes(ME.signing)) not in damage.detail
