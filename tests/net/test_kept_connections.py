"""The client under deliveries, on a clock that a test turns: which connections are kept, how many, how long; and who
waits how long."""

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.python.failure import Failure

from meshproto.core.reach import FAR
from meshproto.errors import NoAnswer, NotInTime, Unreachable
from meshproto.net import http_client
from meshproto.net.courier import peers
from meshproto.net.http_answer import Answer
from meshproto.net.http_client import (
    EXCHANGE_S,
    IDLE_MAX,
    IDLE_PER_HOST_MAX,
    KEEP_ALIVE_S,
    LARGE_BODY_BYTES,
    TARGETS_MAX,
    HTTPClient,
)
from meshproto.net.listening import FILES_FOR_IDLE
from meshproto.net.tls import Trust
from tests.net.far import failure_of, no_result_of, result_of
from tests.net.machine import Line, Machine

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Town:
    """A client, and recipients who have a port each."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.client: HTTPClient = peers(self.machine, Trust())

    def post(self, port: int = 3000, path: str = "", body: bytes = b"batch") -> "Deferred[Answer]":
        return self.client.post(f"http://192.0.2.7:{port}{path}/deliver", body, FAR)

    def delivered(self, port: int = 3000, path: str = "") -> None:
        """Somebody is sent something, and answers: over the connection that is there, or over a new one."""
        dialled = len(self.machine.dialled)
        for _, pipe in self.machine.pipes:
            pipe.take()
        posted = self.post(port, path)
        if len(self.machine.dialled) > dialled:
            self.machine.accept()
        (asked,) = [number for number, (_, pipe) in enumerate(self.machine.pipes) if pipe.writes]
        self.machine.answer(OK, number=asked)
        assert result_of(posted).status == 200

    @property
    def open(self) -> list[Line]:
        return [pipe for _, pipe in self.machine.pipes if not pipe.gone]

    def pass_time(self, seconds: float) -> None:
        self.machine.advance(seconds)
        self.machine.settle()


@pytest.fixture
def town() -> Town:
    return Town()


# -- what is kept -------------------------------------------------------------------------------------------------


def test_one_connection_for_each_of_many(town: Town) -> None:
    """IDLE_MAX recipients, each with an address of their own: all keep their connection."""
    for _ in range(2):
        for port in range(1, IDLE_MAX + 1):
            town.delivered(port)
    assert len(town.machine.dialled) == len(town.open) == IDLE_MAX


def test_idle_max(town: Town) -> None:
    """One more, and the one that was not used longest goes."""
    for port in range(1, IDLE_MAX + 1):
        town.delivered(port)
    town.delivered(1)
    town.delivered(IDLE_MAX + 1)
    town.machine.settle()
    assert [number for number, (_, pipe) in enumerate(town.machine.pipes, 1) if pipe.gone] == [2]
    town.delivered(1)
    assert len(town.machine.dialled) == IDLE_MAX + 1
    town.delivered(2)
    assert len(town.machine.dialled) == IDLE_MAX + 2


def test_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may not have many files open keeps fewer."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (int(3 / FILES_FOR_IDLE), 0))
    town = Town()
    for port in range(10):
        town.delivered(port)
    town.machine.settle()
    assert len(town.open) == 3


def test_idle_per_host_max(town: Town) -> None:
    """However many there were at a time."""
    many = 2 * IDLE_PER_HOST_MAX
    posted = [town.post() for _ in range(many)]
    for number in range(many):
        town.machine.accept(number)
        town.machine.answer(OK, number=number)
    assert [result_of(one).status for one in posted] == [200] * many
    assert len(town.open) == IDLE_PER_HOST_MAX


def test_keep_alive_s(town: Town) -> None:
    """So long a connection waits for the next request, after the last one."""
    town.delivered(1)
    town.pass_time(KEEP_ALIVE_S - 1)
    town.delivered(1)
    town.delivered(2)
    town.pass_time(KEEP_ALIVE_S - 1)
    assert len(town.open) == 2
    town.delivered(2)
    town.pass_time(1)
    assert [number for number, (_, pipe) in enumerate(town.machine.pipes, 1) if pipe.gone] == [1]
    town.delivered(1)
    assert len(town.machine.dialled) == 3
    town.pass_time(KEEP_ALIVE_S)
    assert town.open == [] and town.machine.getDelayedCalls() == []


@pytest.mark.parametrize("said", [OK, OK[:1], b"\r\n", b"HTTP/1.1 408 Too slow\r\nContent-Length: 0\r\n\r\n"])
def test_an_answer_before_a_request(town: Town, said: bytes) -> None:
    """Answers nothing: the connection is closed, and not used before it is gone."""
    town.delivered()
    town.machine.pipes[0][0].dataReceived(said)
    assert town.open[0].disconnecting
    town.delivered()
    assert len(town.machine.dialled) == 2


def test_users_behind_one_proxy(town: Town) -> None:
    """Share a connection: it is one of the host's, whatever the path."""
    town.delivered(path="/anna")
    town.delivered(path="/bert")
    assert len(town.machine.dialled) == 1
    assert town.open[0].take().startswith(b"POST /bert/deliver HTTP/1.1\r\nHost: 192.0.2.7:3000\r\n")


def test_a_port_that_goes_without_saying(town: Town) -> None:
    pending = town.client.post("http://192.0.2.7/deliver", b"", FAR)
    assert b"\r\nHost: 192.0.2.7\r\n" in town.machine.accept().take()
    assert town.machine.tcpClients[0][1] == 80
    town.machine.answer(OK)
    result_of(pending)


def test_an_address_is_connected_to_as_it_is(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """No resolver is asked, in a thread of its own, for what is known."""
    monkeypatch.delattr(Machine, "resolveHostName")
    for host in ("192.0.2.7", "[2001:db8::7]"):
        pending = town.client.post(f"http://{host}:3000/deliver", b"", FAR)
        town.machine.accept()
        town.machine.answer(OK)
        result_of(pending)


def test_a_connection_is_used_in_the_call_that_brings_an_answer(town: Town) -> None:
    """Whoever posts when they hear of an answer finds its connection free; and all is sent and told without a turn of
    the reactor."""
    then: list[Deferred[Answer]] = []
    town.post().addCallback(lambda _: then.append(town.post(body=b"next")))
    town.machine.accept().take()
    town.machine.answer(OK)
    assert town.open[0].take().endswith(b"\r\n\r\nnext")
    town.machine.answer(OK)
    assert result_of(then[0]).status == 200
    assert len(town.machine.dialled) == 1


def test_a_request_is_one_write(town: Town) -> None:
    """Unless copying its body would cost more than another."""
    for size, writes in ((LARGE_BODY_BYTES - 1, 1), (LARGE_BODY_BYTES, 2)):
        town.post(size, body=bytes(size))
        pipe = town.machine.accept()
        assert len(pipe.writes) == writes
        assert pipe.take().endswith(b"\r\n\r\n" + bytes(size))


def test_targets_max(town: Town) -> None:
    """What is remembered of URIs does not grow with them."""
    for port in range(TARGETS_MAX + 10):
        town.delivered(port % 60_000)
    assert http_client._target.cache_info().currsize == TARGETS_MAX


# -- who waits how long -------------------------------------------------------------------------------------------


def test_nobody_there(town: Town) -> None:
    """No connection in EXCHANGE_S: nothing was sent, and it is not tried any longer."""
    pending = town.post()
    town.pass_time(EXCHANGE_S - 1)
    no_result_of(pending)
    town.pass_time(1)
    error = failure_of(pending, Unreachable).value
    assert type(error) is NotInTime and error.detail == "no connection in 30 s"
    assert town.machine.connectors[0].stoppedConnecting
    assert town.machine.getDelayedCalls() == []


def test_a_peer_that_does_not_answer(town: Town) -> None:
    """The time counts from the call, however long it took to connect."""
    pending = town.post()
    town.pass_time(EXCHANGE_S - 1)
    town.machine.accept()
    no_result_of(pending)
    town.pass_time(1)
    assert failure_of(pending, NoAnswer).value.detail == "no answer in 30 s"
    assert town.open == []


@pytest.mark.parametrize("connected", [True, False])
def test_a_second_try_has_no_time_of_its_own(town: Town, connected: bool) -> None:
    """What was sent over a connection that turned out to be closed is not sent again after EXCHANGE_S."""
    town.delivered()
    pending = town.post()
    town.pass_time(EXCHANGE_S - 1)
    town.machine.lose()
    if connected:
        town.machine.accept()
    no_result_of(pending)
    town.pass_time(1)
    assert failure_of(pending, NoAnswer).value.detail == "no answer in 30 s"
    assert town.open == []


def test_a_second_try_that_reaches_nobody(town: Town) -> None:
    """The first may have arrived."""
    town.delivered()
    pending = town.post()
    town.machine.lose()
    connector = town.machine.connectors[-1]
    town.machine.tcpClients[-1][2].clientConnectionFailed(connector, Failure(ConnectionRefusedError()))
    assert "refused" in failure_of(pending, NoAnswer).value.detail


def test_cancelled_between_two_tries(town: Town) -> None:
    town.delivered()
    pending = town.post()
    town.machine.lose()
    pending.cancel()
    failure_of(pending, CancelledError)
    assert town.machine.connectors[-1].stoppedConnecting


def test_each_has_its_own_time(town: Town) -> None:
    """One timer for all of them, however many."""
    pending = []
    for _ in range(10):
        pending += [town.post() for _ in range(10)]
        assert len(town.machine.getDelayedCalls()) == 1
        town.pass_time(1)
    town.pass_time(EXCHANGE_S - 10)
    for second in range(10):
        for one in pending[10 * second : 10 * second + 10]:
            failure_of(one, Unreachable)
        for one in pending[10 * second + 10 :]:
            no_result_of(one)
        town.pass_time(1)


def test_a_closed_client_has_no_timers(town: Town) -> None:
    town.delivered(1)
    pending = town.post(2)
    closed = town.client.close()
    failure_of(pending, CancelledError)
    assert town.machine.getDelayedCalls() == []
    no_result_of(closed)
    town.machine.settle()
    result_of(closed)
