"""What `--directory` takes."""

from pathlib import Path

import pytest

from meshproto.errors import BadParams, BadState
from meshproto.net.redis_address import ADDRESSES_MAX, RedisAddress


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("redis://localhost:6379", RedisAddress((("localhost", 6379),))),
        ("redis://a:1,[2001:db8::1]:2/", RedisAddress((("a", 1), ("2001:db8::1", 2)))),
        ("rediss://a:1", RedisAddress((("a", 1),), tls=True)),
        ("redis://seeds@a:1", RedisAddress((("a", 1),), user="seeds")),
        ("redis://:p%40ss@a:1", RedisAddress((("a", 1),), password="p@ss")),
        ("redis://seeds:p@ss@a:1", RedisAddress((("a", 1),), user="seeds", password="p@ss")),
    ],
)
def test_addresses(text: str, found: RedisAddress) -> None:
    assert RedisAddress.parse(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "redis://",
        "redis:a:1",
        "http://secret@a:1",
        "redis://secret@a",
        "redis://secret@a:1/0",
        "redis://a:1,",
        "redis://a:1?b",
    ],
)
def test_what_is_none(text: str) -> None:
    """What is said of it has no password in it."""
    with pytest.raises(BadParams) as wrong:
        RedisAddress.parse(text)
    assert "secret" not in wrong.value.detail


def test_too_many() -> None:
    most = ",".join(f"a:{port}" for port in range(1, ADDRESSES_MAX + 1))
    assert len(RedisAddress.parse(f"redis://{most}").hosts) == ADDRESSES_MAX
    with pytest.raises(BadParams, match="some of the cluster's are enough"):
        RedisAddress.parse(f"redis://{most},b:1")


def test_a_password_in_a_file(tmp_path: Path) -> None:
    """Which only its owner can read; and what an address says in a log has no secret."""
    file = tmp_path / "password"
    file.write_text("open sesame\n")
    address = RedisAddress.parse("redis://seeds@a:1,b:2")
    with pytest.raises(BadState, match="others can read"):
        file.chmod(0o644)
        address.with_password_of(file)
    file.chmod(0o600)
    full = address.with_password_of(file)
    assert full == address._replace(password="open sesame")
    assert str(full) == "a:1,b:2"
    assert address.with_password_of(None) == address
    with pytest.raises(BadState, match="given twice"):
        full.with_password_of(file)
    file.write_bytes(b" \n")
    with pytest.raises(BadState, match="no password in"):
        address.with_password_of(file)
    file.write_bytes(b"\xff")
    with pytest.raises(BadState, match="not text"):
        address.with_password_of(file)
