"""A port that speaks TLS: who does not, who is slow, and certificates that change."""

import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest
import trustme
from twisted.logger import LogEvent, capturedLogs, formatEvent

from meshproto.errors import BadParams
from meshproto.net.tls_listening import HANDSHAKE_S, RENEW_S, check_endpoint, is_tls
from tests.net.tls_rig import Loud, Server, Speaker, Stranger, endpoint, write

# Twisted hands pyOpenSSL its own kind of certificate.
pytestmark = pytest.mark.filterwarnings("ignore:Passing pyOpenSSL:DeprecationWarning")


class Place:
    """A server on a fake clock, and one who trusts it."""

    def __init__(self, path: Path) -> None:
        self.ca = trustme.CA()
        self.file = write(self.ca.issue_cert("localhost"), path / "server.pem")
        self.server = Server()
        self.loud = Loud()
        self.server.listen(endpoint(self.file), self.loud)
        self.context = ssl.create_default_context()
        self.ca.configure_trust(self.context)

    def speaker(self) -> Speaker:
        return Speaker(self.server, self.context)

    def shown(self) -> object:
        """The certificate that a newcomer sees now."""
        speaker = self.speaker()
        speaker.shake_hands()
        speaker.leave()
        return speaker.serial()

    def renew(self) -> None:
        write(self.ca.issue_cert("localhost"), self.file)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def logged() -> Iterator[Sequence[LogEvent]]:
    with capturedLogs() as events:
        yield events


def lines(events: Sequence[LogEvent]) -> list[str]:
    return [formatEvent(event) for event in events]


# -- who is served ------------------------------------------------------------------------------------------------


def test_who_speaks_tls_is_served(place: Place) -> None:
    """TLS as the standard library speaks it: what is asked comes through, and no timer is left."""
    speaker = place.speaker()
    speaker.shake_hands()
    assert speaker.ask(b"hello?") == b"hello"
    assert place.loud.heard == b"hello?"
    assert place.server.getDelayedCalls() == []


def test_a_line_in_the_clear_is_told_what_to_write(place: Place) -> None:
    """Plain text gets a line of the seed's protocol at once that says how to dial, then the end; nothing reaches the
    protocol behind."""
    stranger = Stranger(place.server)
    answer = msgspec.json.decode(stranger.say(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n'))
    assert answer["id"] is None
    assert "this port speaks TLS: write tls:HOST:PORT" in answer["error"]["data"]["detail"]
    assert stranger.pipe.half_closed
    stranger.leave()
    assert place.loud.heard == b""
    assert place.server.getDelayedCalls() == []


def test_http_in_the_clear_is_told_what_to_write(place: Place) -> None:
    """A plain HTTP request gets one problem document, however much follows."""
    stranger = Stranger(place.server)
    head, _, body = stranger.say(b"POST /deliver HTTP/1.1\r\nHost: a\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert "https://HOST:PORT" in msgspec.json.decode(body)["detail"]
    assert b"Content-Length: %d" % len(body) in head
    assert [stranger.say(b"x" * 65536) for _ in range(16)] == [b""] * 16
    stranger.leave()
    assert place.loud.heard == b""


@pytest.mark.parametrize("says", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n"], ids=["nothing", "a part", "no TLS"])
def test_handshake_s(place: Place, says: bytes) -> None:
    """Whoever is not done with the handshake in HANDSHAKE_S is cut off, also with a byte every second."""
    stranger = Stranger(place.server)
    for byte in says:
        stranger.say(bytes([byte]))
    place.server.advance(HANDSHAKE_S - 0.001)
    assert not stranger.pipe.aborted
    place.server.advance(0.001)
    assert stranger.pipe.aborted
    stranger.leave()
    assert place.loud.made == len(place.loud.ended) == 1


def test_a_byte_now_and_then_is_no_handshake(place: Place) -> None:
    """The time limit counts from the connection: bytes do not prolong it."""
    stranger = Stranger(place.server)
    stranger.say(b"\x16")
    for byte in b"\x03\x01\x02\x00\x01\x00\x01\xfc":
        place.server.advance(HANDSHAKE_S / 8)
        stranger.say(bytes([byte]))
    assert stranger.pipe.aborted
    stranger.leave()


def test_after_the_handshake_there_is_time(place: Place) -> None:
    """HANDSHAKE_S is for the handshake alone."""
    speaker = place.speaker()
    speaker.shake_hands()
    place.server.advance(10 * HANDSHAKE_S)
    assert not speaker.pipe.aborted
    assert speaker.ask(b"still here?") == b"hello"


def test_tls_1_1_is_refused(place: Place) -> None:
    """A client of TLS 1.1 gets no connection."""
    place.context.set_ciphers("DEFAULT@SECLEVEL=0")
    place.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning):
        place.context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        place.speaker().shake_hands()


# -- the log ------------------------------------------------------------------------------------------------------


def test_who_does_not_trust_the_certificate_is_logged(place: Place, logged: Sequence[LogEvent]) -> None:
    """That somebody does not take this certificate stands in the log, in OpenSSL's words."""
    speaker = Speaker(place.server, ssl.create_default_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        speaker.shake_hands()
    speaker.leave()
    assert lines(logged) == ["no TLS with 192.168.1.1: tlsv1 alert unknown ca"]


def test_one_line_a_minute(place: Place, logged: Sequence[LogEvent]) -> None:
    """A hundred connections without TLS from one host are one line of the log; a minute later there is one more. Who
    connects and says nothing is none."""
    for _ in range(100):
        stranger = Stranger(place.server)
        stranger.say(b"hello\n")
        stranger.leave()
        Stranger(place.server).leave()
    assert lines(logged) == ["no TLS with 192.168.1.1: does not speak TLS"]
    place.server.advance(60)
    stranger = Stranger(place.server)
    stranger.say(b"hello\n")
    stranger.leave()
    assert len(logged) == 2


# -- certificates -------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used(place: Place) -> None:
    """New handshakes take the file as it is now, once RENEW_S has gone by."""
    first = place.shown()
    place.renew()
    assert place.shown() == first
    place.server.advance(RENEW_S)
    assert place.shown() != first


def test_a_broken_renewal_keeps_the_former(place: Place, logged: Sequence[LogEvent]) -> None:
    """A file that does not read leaves the certificate from before in use, is logged once, and is tried again."""
    first = place.shown()
    place.file.write_text("half a fi")
    for _ in range(3):
        place.server.advance(RENEW_S)
        assert place.shown() == first
    (line,) = lines(logged)
    assert line.startswith("the former certificate stays in use: ")
    place.renew()
    place.server.advance(RENEW_S)
    assert place.shown() != first


def test_endpoints_that_do_not_read(tmp_path: Path) -> None:
    """A file that is missing, is no certificate, or has the key of another one: a clear error before anything
    listens."""
    ca = trustme.CA()
    one, other = (write(ca.issue_cert("localhost"), tmp_path / name) for name in ("one.pem", "other.pem"))
    alone = tmp_path / "alone.pem"
    ca.issue_cert("localhost").cert_chain_pems[0].write_to_path(alone)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing\n")
    for described, says in (
        (endpoint(tmp_path / "none.pem"), "none.pem: No such file or directory"),
        (endpoint(alone, nonsense), "does not read"),
        (endpoint(nonsense), "does not read"),
        (endpoint(alone, other), "do not match"),
        (f"tls:{tmp_path}:5001", "written ssl:PORT"),
    ):
        with pytest.raises(BadParams, match=says):
            check_endpoint(described)
    assert check_endpoint(endpoint(one)) == endpoint(one)
    assert check_endpoint("tcp:5001") == "tcp:5001"
    assert is_tls(endpoint(one)) and not is_tls("tcp:5001")
