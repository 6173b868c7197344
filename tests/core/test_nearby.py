"""What is made of announcements on the local network, which anybody there can make."""

from ipaddress import IPv4Interface, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from meshproto.core.meshkey import Handshake, Keyring, proven_text
from meshproto.core.nearby import (
    ADDRESSES_MAX,
    LABEL_CHARS_MAX,
    LAN_NETWORKS,
    NEARBY_MAX,
    Announcement,
    Nearby,
    is_lan,
    label_of,
    told,
)
from meshproto.core.reach import METADATA

HERE = [IPv4Interface("192.168.7.9/24"), IPv4Interface("172.17.0.1/16"), IPv4Interface("169.254.3.4/16")]
KEYS = Keyring("a key of sixteen characters", "another of as many or more")


def near(*said: Announcement, own: str = "", keys: Keyring | None = None) -> list[str]:
    """Where seeds are, after these announcements."""
    nearby = Nearby(own, None if keys is None else keys.marks() or [""])
    nearby.move(HERE)
    for one in said:
        nearby.heard(one)
    return nearby.addresses()


def seed(*hosts: str, label: str = "seedX", port: int = 5001, **text: str) -> Announcement:
    return Announcement(label, hosts or ("192.168.7.1",), port, told("seedX", "", tls=False) | text)


class TestWhere:
    @pytest.mark.parametrize(
        "host",
        [
            "8.8.8.8",  # elsewhere
            "192.168.8.1",  # private, but on no network of this machine
            "10.0.0.1",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.251",
            "169.254.169.254",  # where clouds keep credentials, though on a network of this machine
            "seed.example",
            "::1",
            "",
            "192.168.7.1.",
        ],
    )
    def test_no_address_that_is_not_on_a_network_of_this_machine(self, host: str) -> None:
        """Whoever announces it: neither as the only one, nor before one that is."""
        assert near(seed(host)) == []
        assert near(seed(host, "192.168.7.1")) == ["192.168.7.1:5001"]

    def test_one_address_of_each_seed(self) -> None:
        """However many it announces."""
        assert near(seed("192.168.7.1", "192.168.7.2", "169.254.1.1")) == ["192.168.7.1:5001"]

    def test_an_address_that_this_machine_has_too(self) -> None:
        """Of a bridge for containers, say: the last choice, and the only one for a seed on this very machine."""
        assert near(seed("172.17.0.1", "192.168.7.1")) == ["192.168.7.1:5001"]
        assert near(seed("172.17.0.1", "192.168.7.9")) == ["172.17.0.1:5001"]

    def test_addresses_max(self) -> None:
        """No more than ADDRESSES_MAX addresses of an announcement are looked at."""
        far = ["10.0.0.1"] * (ADDRESSES_MAX - 1)
        assert near(seed(*far, "192.168.7.1")) == ["192.168.7.1:5001"]
        assert near(seed(*far, "10.0.0.1", "192.168.7.1")) == []

    def test_two_seeds_at_one_address(self) -> None:
        """It is dialled once."""
        assert near(seed(label="a"), seed(label="b")) == ["192.168.7.1:5001"]

    def test_this_machine_moves(self) -> None:
        """What was heard on another network is over."""
        nearby = Nearby()
        nearby.move(HERE)
        nearby.heard(seed())
        nearby.move([IPv4Interface("192.168.7.9/24")])
        assert nearby.addresses() == []

    @given(st.ip_addresses(v=4))
    def test_local_networks_have_private_addresses(self, address: Any) -> None:
        """is_lan is true of private and link-local addresses alone, and of none of a cloud's."""
        assert is_lan(str(address)) <= (address.is_private and not address.is_loopback)
        assert all(not is_lan(str(host)) for host in METADATA)
        assert is_lan(str(IPv4Network(LAN_NETWORKS[0]).network_address + 1))


class TestWho:
    @pytest.mark.parametrize(
        "text",
        [
            {"version": "2"},
            {"version": ""},
            {"name": "no name"},
            {"name": ""},
            {"tls": "perhaps"},
            {"mesh": "nothex"},
            {"mesh": "0" * 17},
        ],
    )
    def test_what_does_not_read(self, text: dict[str, str]) -> None:
        """It is not taken; of a seed that was taken before, it is the end."""
        said = structs.replace(seed(), text=seed().text | text)
        assert near(said) == []
        assert near(seed(), said) == []

    @pytest.mark.parametrize("port", [0, -1, 65536])
    def test_no_port(self, port: int) -> None:
        assert near(seed(port=port)) == []

    def test_tls(self) -> None:
        assert near(seed(tls="yes")) == ["tls:192.168.7.1:5001"]

    def test_oneself(self) -> None:
        """A seed hears its own announcement, too."""
        assert near(seed(), own="seedX") == []

    def test_a_seed_takes_those_of_its_mesh(self) -> None:
        """One with a key takes those that announce one of its keys, one without takes those without; a user all."""
        first, second = KEYS.marks()
        other = Keyring("the key of quite another mesh").marks()[0]
        assert [bool(near(seed(mesh=mark), keys=KEYS)) for mark in (first, second, other, "")] == [1, 1, 0, 0]
        assert [bool(near(seed(mesh=mark), keys=Keyring())) for mark in (first, "")] == [0, 1]
        assert near(seed(mesh=other))

    def test_a_mark_is_no_proof(self) -> None:
        """What is announced is not what proves the key, in any handshake; it does not show it either."""
        (mark,) = Keyring("a key of sixteen characters").marks()
        shake = Handshake("", "", "", "")
        assert len(mark) == 16
        assert mark not in KEYS.prove("dialler", shake)
        assert not proven_text("dialler", shake).startswith(b"meshproto mark 1")

    def test_nearby_max(self) -> None:
        """NEARBY_MAX seeds are kept, the first that came; there is room again for each that takes its leave."""
        nearby = Nearby()
        nearby.move(HERE)
        for number in range(NEARBY_MAX + 10):
            nearby.heard(seed(f"192.168.7.{number + 1}", label=str(number)))
        assert nearby.addresses() == [f"192.168.7.{number + 1}:5001" for number in range(NEARBY_MAX)]
        nearby.withdrawn("0")
        nearby.withdrawn("nobody")
        nearby.heard(seed("192.168.7.200", label="new"))
        assert nearby.addresses()[-1] == "192.168.7.200:5001"

    @given(st.text("abc.-_", max_size=100))
    def test_a_name_as_a_label(self, name: str) -> None:
        """No dot, which would end it, and no more characters than DNS takes."""
        assert "." not in label_of(name)
        assert len(label_of(name)) <= LABEL_CHARS_MAX
