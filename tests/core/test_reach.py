"""Where a message may be sent: `meshproto.core.reach`, and what a seed lets be registered."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.reach import FAR, HOSTS_REMEMBERED_MAX, METADATA, Kind, check_origin, kind_of, reach_of
from meshproto.errors import Forbidden
from meshproto.wire import RegisterResult
from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import user


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("192.0.2.7", Kind.OTHER),
        ("10.0.0.1", Kind.OTHER),
        ("[2001:db8::1]", Kind.OTHER),
        ("127.0.0.1", Kind.LOOPBACK),
        ("127.9.8.7", Kind.LOOPBACK),
        ("::1", Kind.LOOPBACK),
        ("169.254.7.7", Kind.LINK_LOCAL),
        ("fe80::1", Kind.LINK_LOCAL),
        ("fe80::1%25eth0", Kind.LINK_LOCAL),
        ("0.0.0.0", Kind.NEVER),
        ("0.1.2.3", Kind.NEVER),
        ("::", Kind.NEVER),
        ("224.0.0.1", Kind.NEVER),
        ("ff02::1", Kind.NEVER),
        ("255.255.255.255", Kind.NEVER),
        ("240.0.0.1", Kind.NEVER),
        ("169.254.169.254", Kind.NEVER),
        ("100.100.100.200", Kind.NEVER),
        ("fd00:ec2::254", Kind.NEVER),
        ("example.org", None),
        ("notlocalhost", None),
        ("", None),
    ],
)
def test_kinds(host: str, kind: Kind | None) -> None:
    assert kind_of(host) is kind


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7F.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.0x1",
        "127.0.0.1.",
        "localhost",
        "LOCALHOST.",
        "some.localhost",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "::ffff:7f00:1",
        "::127.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2001:0:c000:201:0:0:80ff:fffe",
    ],
)
def test_loopback_however_it_is_spelled(host: str) -> None:
    """As resolvers read numbers, and IPv4 within IPv6."""
    assert kind_of(host) is Kind.LOOPBACK


@pytest.mark.parametrize("address", sorted(map(str, METADATA)))
def test_where_clouds_keep_credentials(address: str) -> None:
    """Never, not even for a neighbour; also the number alone, and within IPv6."""
    assert kind_of(address) is Kind.NEVER
    assert kind_of(address) is Kind.NEVER
    if "." in address:
        number = int(ipaddress.ip_address(address))
        assert kind_of(str(number)) is kind_of(hex(number)) is kind_of(f"::ffff:{address}") is Kind.NEVER


@given(st.from_regex(r"(0x|0)?[0-9a-f]{1,4}(\.(0x|0)?[0-9a-f]{1,3}){0,4}", fullmatch=True))
def test_numbers_are_read_as_resolvers_read_them(host: str) -> None:
    """What is an address for inet_aton is the same one here, and nothing else is one."""
    try:
        resolved = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        assert kind_of(host) is None
    else:
        assert kind_of(host) is kind_of(resolved)


class TestWhoMayRegisterWhat:
    @pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", ""])
    def test_from_this_machine(self, host: str) -> None:
        """Also through a unix socket, which has no host."""
        check_origin(["http://127.0.0.1:3000", "http://localhost:3000", "http://192.0.2.7"], host)
        with pytest.raises(Forbidden, match="link-local"):
            check_origin(["http://169.254.7.7:3000"], host)

    @pytest.mark.parametrize("host", ["192.0.2.9", "10.0.0.1", "2001:db8::9"])
    def test_from_elsewhere(self, host: str) -> None:
        check_origin(["http://192.0.2.7", "https://example.org:3000"], host)
        with pytest.raises(Forbidden, match=r"http://127\.1:3000 is a loopback address.* one that others reach"):
            check_origin(["http://192.0.2.7", "http://127.1:3000"], host)

    def test_from_the_link(self) -> None:
        check_origin(["http://[fe80::7]:3000"], "fe80::9%eth0")
        with pytest.raises(Forbidden, match="loopback"):
            check_origin(["http://[::1]:3000"], "fe80::9%eth0")

    @pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.9", "169.254.7.7", ""])
    @pytest.mark.parametrize("uri", ["http://0.0.0.0:3000", "http://169.254.169.254/x", "http://[ff02::1]:3000"])
    def test_from_nowhere(self, uri: str, host: str) -> None:
        with pytest.raises(Forbidden, match="messages are never sent: advertise one at which others reach this node"):
            check_origin([uri], host)


class TestReach:
    @pytest.mark.parametrize(
        ("own", "uri", "kind"),
        [
            ("http://localhost:3000", "http://127.0.0.1:3001", Kind.LOOPBACK),
            ("http://127.0.0.1:3000", "http://[::1]:3001", Kind.LOOPBACK),
            ("http://[fe80::1]:3000", "http://[fe80::2]:3000", Kind.LINK_LOCAL),
        ],
    )
    def test_as_far_as_others_must_come(self, own: str, uri: str, kind: Kind) -> None:
        """A node that says it is at a loopback address is reached from there alone, and so are those it writes to."""
        assert reach_of(uri, [own], neighbour=False) == FAR | {kind}
        for elsewhere in ("http://192.0.2.7:3000", "https://example.org", "http://0.0.0.0:3000"):
            assert reach_of(uri, [elsewhere], neighbour=False) == FAR

    def test_a_neighbour(self) -> None:
        assert reach_of("http://127.0.0.1:3001", ["http://192.0.2.7:3000"], neighbour=True) == FAR | {Kind.LOOPBACK}
        assert reach_of("http://192.0.2.8:3000", ["http://192.0.2.7:3000"], neighbour=True) == FAR

    @pytest.mark.parametrize("neighbour", [False, True])
    def test_a_name_leads_nowhere_near(self, neighbour: bool) -> None:
        """Whatever it led to when it was registered, also for a node that is itself at a loopback address."""
        for own in ("http://192.0.2.7:3000", "http://127.0.0.1:3000"):
            assert reach_of("http://rebind.example:8080/admin", [own], neighbour=neighbour) == FAR


class TestASeed:
    def test_a_loopback_address_is_taken_from_there_only(self) -> None:
        """A registration from elsewhere is refused with 403 and a sentence, and changes nothing."""
        mesh = SeedMesh("seedX")
        near, far = Client(mesh, "seedX"), Client(mesh, "seedX", trusted=False)
        record = user(1).sign("UserX", ["http://127.0.0.1:3000"], 1)
        error = far.refused("register", record)
        assert (error.code, error.message) == (403, "Forbidden")
        assert error.data.detail.startswith("http://127.0.0.1:3000 is a loopback address")
        assert not far.knows("UserX")
        near.call("register", record, RegisterResult)
        assert far.knows("UserX")

    def test_what_another_seed_has_taken_stays_as_it_is(self) -> None:
        """Whether it may be dialled is for those to say who would."""
        mesh = SeedMesh("seedX", "seedY")
        mesh.advance(5)
        Client(mesh, "seedX").call("register", user(1).sign("UserX", ["http://127.0.0.1:3000"], 1), RegisterResult)
        mesh.advance(5)
        assert Client(mesh, "seedY", trusted=False).knows("UserX")


def test_hosts_remembered_max() -> None:
    """What is remembered does not grow, and what was forgotten is read anew."""
    for _ in range(2):
        for number in range(HOSTS_REMEMBERED_MAX + 10):
            assert kind_of(f"127.0.{number // 256}.{number % 256}") is Kind.LOOPBACK
            assert kind_of(f"10.0.{number // 256}.{number % 256}") is Kind.OTHER
    assert kind_of.cache_info().currsize == HOSTS_REMEMBERED_MAX
