"""Connections to peers' nodes: where they may lead, and how much comes back."""

import gzip
import json

import pytest
from twisted.internet.defer import Deferred

from meshproto.core.reach import FAR, Kind, Reach
from meshproto.errors import NoAnswer, PeerError, PeerRefused, Unreachable
from meshproto.net.calls import Calls, dial
from meshproto.net.courier import REASON_CHARS_MAX, Courier, peers
from meshproto.net.dialling import Dialling
from meshproto.net.http_answer import HEAD_BYTES_MAX
from meshproto.net.http_client import ANSWER_BYTES_MAX, EXCHANGE_S, HTTPClient
from meshproto.net.tls import Trust
from tests.net.far import failure_of, no_result_of, result_of, start
from tests.net.machine import Machine

NEAR = FAR | {Kind.LOOPBACK, Kind.LINK_LOCAL}

PUBLIC = "192.0.2.7"
ATTEMPT_S = 1.0
"""Longer than Twisted waits until it tries a name's next address."""


@pytest.fixture
def machine() -> Machine:
    return Machine()


def deliver(machine: Machine, uri: str, reach: Reach = FAR, client: HTTPClient | None = None) -> "Deferred[bytes]":
    return start(Courier(client or peers(machine, Trust())).deliver(uri, b"batch", reach))


def http(code: int, body: bytes, *lines: bytes) -> bytes:
    head = [b"HTTP/1.1 %d So" % code, b"Content-Length: %d" % len(body), *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


def dial_seed(machine: Machine, address: str, given: str) -> "Deferred[None]":
    dialled = start(dial(Dialling(machine, Trust(), [given]), address, Calls(machine), machine))
    machine.advance(ATTEMPT_S)
    return dialled


# -- where a connection may lead ----------------------------------------------------------------------------------


def test_a_name_that_leads_to_the_senders_own_machine(machine: Machine) -> None:
    """DNS says what it likes: the address counts. Nothing is connected to, and the reason says why."""
    machine.names["peer.example"] = ["127.0.0.1"]
    refused = deliver(machine, "http://peer.example:6379")
    machine.advance(ATTEMPT_S)
    assert failure_of(refused, Unreachable).value.detail == (
        "http://peer.example:6379: it leads to 127.0.0.1, a loopback address: every machine's own; "
        "nothing was sent there"
    )
    assert machine.dialled == []


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "::1", "::ffff:7f00:1", "169.254.7.7", "fe80::1", "169.254.169.254", "0.0.0.0", "ff02::1"]
)
def test_addresses_a_strangers_record_may_not_lead_to(machine: Machine, address: str) -> None:
    """As a name's address and as they stand."""
    machine.names["peer.example"] = [address]
    for uri in ("http://peer.example", f"http://[{address}]" if ":" in address else f"http://{address}"):
        refused = deliver(machine, uri)
        machine.advance(ATTEMPT_S)
        assert "nothing was sent there" in failure_of(refused, Unreachable).value.detail
    assert machine.dialled == []


def test_a_name_that_changes_its_mind(machine: Machine) -> None:
    """DNS rebinding: an address that was good for the last connection says nothing about the next."""
    client = peers(machine, Trust())
    machine.names["peer.example"] = [PUBLIC]
    first = deliver(machine, "http://peer.example", client=client)
    machine.accept()
    machine.answer(http(200, b"{}", b"Connection: close"))
    assert result_of(first) == b"{}"
    machine.names["peer.example"] = ["169.254.169.254"]
    second = deliver(machine, "http://peer.example", client=client)
    machine.advance(ATTEMPT_S)
    failure_of(second, Unreachable)
    assert machine.dialled == [PUBLIC]


def test_the_good_ones_of_several_addresses(machine: Machine) -> None:
    """Those that may not be connected to are left out, those that may are tried."""
    machine.names["peer.example"] = ["127.0.0.1", PUBLIC, "169.254.169.254"]
    sent = deliver(machine, "http://peer.example:3000")
    machine.advance(ATTEMPT_S)
    assert machine.dialled == [PUBLIC]
    assert b"POST /deliver" in machine.accept().take()
    machine.answer(http(200, b"{}"))
    assert result_of(sent) == b"{}"


def test_a_neighbours_record_may_lead_to_this_machine(machine: Machine) -> None:
    """But not to what is never sent to."""
    near = deliver(machine, "http://127.0.0.1:3000", NEAR)
    machine.accept()
    machine.answer(http(200, b"{}"))
    assert result_of(near) == b"{}"
    never = deliver(machine, "http://169.254.169.254", NEAR)
    machine.advance(ATTEMPT_S)
    failure_of(never, Unreachable)
    assert machine.dialled == ["127.0.0.1"]


def test_a_neighbours_connection_is_not_lent_to_strangers(machine: Machine) -> None:
    """It is kept for the next neighbour, and a stranger's record that names the same place does not get it."""
    client = peers(machine, Trust())
    for _ in range(2):
        near = deliver(machine, "http://127.0.0.1:3000", NEAR, client)
        if not machine.pipes:
            machine.accept()
        machine.answer(http(200, b"{}"))
        assert result_of(near) == b"{}"
    machine.pipes[0][1].take()
    stranger = deliver(machine, "http://127.0.0.1:3000", FAR, client)
    machine.advance(ATTEMPT_S)
    failure_of(stranger, Unreachable)
    assert machine.dialled == ["127.0.0.1"] and machine.pipes[0][1].take() == b""
    for call in machine.getDelayedCalls():
        call.cancel()


def test_an_ipv6_address(machine: Machine) -> None:
    pending = deliver(machine, "http://[2001:db8::7]:3000")
    assert b"host: [2001:db8::7]:3000\r\n" in machine.accept().take().lower()
    machine.answer(http(200, b"{}"))
    assert (result_of(pending), machine.dialled) == (b"{}", ["2001:db8::7"])


@pytest.mark.parametrize("ip", ["127.0.0.1", "169.254.7.7", "169.254.169.254"])
@pytest.mark.parametrize("prefix", ["", "tls:"])
def test_a_name_of_a_seed_that_was_learnt_does_not_lead_to_this_machine(machine: Machine, ip: str, prefix: str) -> None:
    """Whoever tells of seeds chooses the name, and may have it lead anywhere."""
    machine.names["seed.example"] = [ip]
    refused = dial_seed(machine, f"{prefix}seed.example:6379", given="localhost:5001")
    assert f"it leads to {ip}" in failure_of(refused, Unreachable).value.detail
    assert machine.dialled == []


@pytest.mark.parametrize(
    ("address", "ip"),
    [("seed.example:5001", PUBLIC), ("127.0.0.1:5001", "127.0.0.1"), ("given.example:1", "127.0.0.1")],
)
def test_seeds_that_are_dialled(machine: Machine, ip: str, address: str) -> None:
    """One at its address, one whose address says that it is here, and one that was given, wherever that is."""
    machine.names.update({"seed.example": [PUBLIC], "given.example": ["127.0.0.1"]})
    dialled = dial_seed(machine, address, given="given.example:1")
    assert machine.dialled == [ip]
    machine.accept()
    result_of(dialled)


# -- what comes back ----------------------------------------------------------------------------------------------


def sent(machine: Machine) -> "Deferred[bytes]":
    pending = deliver(machine, f"http://{PUBLIC}:3000")
    machine.accept()
    return pending


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(machine: Machine, code: int) -> None:
    """A peer that sends us elsewhere has refused."""
    pending = sent(machine)
    machine.answer(http(code, b"", b"Location: http://192.0.2.99/deliver"))
    assert failure_of(pending, PeerRefused).value.status == code
    assert machine.dialled == [PUBLIC]


@pytest.mark.parametrize("encoding", [b"gzip", b"identity, gzip", b"GZIP", b"br", b"\x9b2J"])
def test_an_encoded_answer_is_never_unpacked(machine: Machine, encoding: bytes) -> None:
    """A thousandth of the bytes would pass every limit. It was not asked for either."""
    pending = sent(machine)
    assert b"accept-encoding: identity\r\n" in machine.pipes[-1][1].take().lower()
    machine.answer(http(200, gzip.compress(b"[]"), b"Content-Encoding: " + encoding))
    detail = failure_of(pending, PeerError).value.detail
    assert "is encoded" in detail and detail.isprintable()
    assert machine.pipes[-1][1].aborted


def test_an_answer_that_is_not_encoded_may_say_so(machine: Machine) -> None:
    pending = sent(machine)
    machine.answer(http(200, b"{}", b"Content-Encoding: identity"))
    assert result_of(pending) == b"{}"


@pytest.mark.parametrize("size", [1, 100, 64 * 1024])
def test_an_answers_head_is_bounded(machine: Machine, size: int) -> None:
    """Endless headers end the connection after HEAD_BYTES_MAX, in whatever pieces they come; the peer gets no second
    try at once."""
    pending = sent(machine)
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(HEAD_BYTES_MAX // 8))
    for start_at in range(0, len(head), size):
        if machine.pipes[-1][1].aborted:
            break
        machine.pipes[-1][0].dataReceived(head[start_at : start_at + size])
    machine.answer()
    assert (
        f"the head of the peer's answer is longer than {HEAD_BYTES_MAX} bytes"
        in failure_of(pending, NoAnswer).value.detail
    )
    assert len(machine.dialled) == 1


def test_a_head_up_to_the_limit_and_a_body_up_to_its_own(machine: Machine) -> None:
    """Each has its own room, however the pieces fall; so has the next answer on the same connection."""
    client = peers(machine, Trust())
    body = b" " * ANSWER_BYTES_MAX
    bare = len(http(200, body, b"X-Pad: ")) - len(body)
    answer = http(200, body, b"X-Pad: " + b"x" * (HEAD_BYTES_MAX - bare - 100), b"Y: " + b"y" * 95)
    assert len(answer) - len(body) == HEAD_BYTES_MAX
    for _ in range(2):
        pending = deliver(machine, f"http://{PUBLIC}:3000", client=client)
        if not machine.pipes:
            machine.accept()
        machine.answer(*(answer[at : at + 9_999] for at in range(0, len(answer), 9_999)))
        assert result_of(pending) == body
    assert len(machine.dialled) == 1
    for call in machine.getDelayedCalls():
        call.cancel()


def test_an_answer_that_never_ends(machine: Machine) -> None:
    """Interim answers (1xx) and chunks without end stop at the limit of bytes as well."""
    for endless in (b"HTTP/1.1 103 Early\r\n\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        pending = sent(machine)
        machine.pipes[-1][0].dataReceived(endless)
        more = endless if b"103" in endless else b"1\r\nx\r\n"
        times = 0
        while not machine.pipes[-1][1].aborted:
            machine.pipes[-1][0].dataReceived(more * 1000)
            times += 1
            assert times < 1000
        machine.answer()
        assert f"longer than {ANSWER_BYTES_MAX} bytes" in failure_of(pending, PeerError).value.detail


def test_an_answer_that_trickles(machine: Machine) -> None:
    """A byte a second is not an answer: EXCHANGE_S counts from the beginning."""
    pending = sent(machine)
    machine.answer(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(int(EXCHANGE_S) - 1):
        machine.advance(1)
        machine.answer(b"x")
    no_result_of(pending)
    machine.advance(1)
    assert "no answer in 30 s" in failure_of(pending, NoAnswer).value.detail


def test_a_peers_words_are_spelled_out_and_cut(machine: Machine) -> None:
    """Nothing in a problem document moves a cursor, begins a line of the log, or goes on for ever."""
    pending = sent(machine)
    problem = {"title": "No\x1b[2J\x9b\u202e", "detail": "\r\n2026-01-01 [UserX] forged " + "x" * 10_000}
    machine.answer(http(403, json.dumps(problem).encode()))
    detail = failure_of(pending, PeerRefused).value.detail
    assert detail.startswith(r"403 No\x1b[2J\x9b\u202e: \r\n2026-01-01 [UserX] forged xxx")
    assert detail.isprintable() and len(detail) <= REASON_CHARS_MAX + len("403 ")
