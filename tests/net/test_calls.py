"""Requests by id, answers in any order."""

import pytest
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from meshproto import wire
from meshproto.errors import (
    MeshError,
    NameTaken,
    PeerError,
    PeerRefused,
    SlowDown,
    TLSNeeded,
    Unreachable,
    UserNotFound,
)
from meshproto.net.calls import CALL_TIMEOUT_S, CALLS_PENDING_MAX, DIAL_TIMEOUT_S, Calls, dial
from meshproto.net.lines import Lines
from tests.net.far import Far, failure_of, no_result_of, result_of, start


class Setting:
    """Calls on a connection whose other side is at hand."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.told: list[tuple[str, bytes]] = []
        self.calls = Calls(self.clock, lambda method, params: self.told.append((method, bytes(params))))
        self.far = Far(Lines(self.calls, self.clock))

    def lookup(self, name: str = "UserY") -> "Deferred[wire.NamesResult]":
        """A request; its answer is a NamesResult here, because that is short."""
        return start(self.calls.call("lookup", wire.NameParams(name), wire.NamesResult))


def names(*given: str) -> wire.NamesResult:
    return wire.NamesResult(list(given), None)


# -- calls --------------------------------------------------------------------------------------------------------


def test_a_call_is_a_request_line_and_its_answer() -> None:
    """A call writes one request with an id of its own and returns the decoded result."""
    setting = Setting()
    said = setting.lookup()
    assert setting.far.asked == [{"jsonrpc": "2.0", "id": 1, "method": "lookup", "params": {"name": "UserY"}}]
    no_result_of(said)
    setting.far.answer(names("a"))
    assert result_of(said) == names("a")
    assert setting.clock.getDelayedCalls() == []


def test_answers_come_in_any_order() -> None:
    """Each answer goes to the call with its id."""
    setting = Setting()
    said = [setting.lookup(name) for name in ("a", "b", "c")]
    for request in reversed(setting.far.asked):
        setting.far.answer(names(request["params"]["name"]), request["id"])
    assert [result_of(one) for one in said] == [names("a"), names("b"), names("c")]


@pytest.mark.parametrize("error", [UserNotFound("no UserY"), NameTaken("by another"), SlowDown("", retry_after_s=2.5)])
def test_an_error_answer_is_raised(error: MeshError) -> None:
    """The errors that callers act on come back as themselves."""
    setting = Setting()
    said = setting.lookup()
    setting.far.refuse(error)
    raised = failure_of(said, type(error)).value
    assert (raised.detail, raised.retry_after_s) == (error.detail, error.retry_after_s)


def test_an_answer_that_does_not_fit_is_the_peers_fault() -> None:
    """A result of another shape raises PeerError, and the connection lives."""
    setting = Setting()
    said = setting.lookup()
    setting.far.answer(wire.Nothing())
    failure_of(said, PeerError)
    assert not setting.far.pipe.aborted


def test_an_answer_must_say_something() -> None:
    """Neither result nor error raises PeerError."""
    setting = Setting()
    said = setting.lookup()
    setting.far.say(b'{"jsonrpc":"2.0","id":1}\n')
    assert "neither" in failure_of(said, PeerError).getErrorMessage()


@pytest.mark.parametrize(
    "line",
    [
        wire.encode_result(99, wire.Nothing()),
        wire.encode_result("1", wire.Nothing()),
        wire.encode_error(None, SlowDown()),
        b'{"jsonrpc":"2.0"}\n',
    ],
)
def test_an_answer_to_nobody_is_ignored(line: bytes) -> None:
    """Ids that were not given out, of another type or null, disturb nobody."""
    setting = Setting()
    said = setting.lookup()
    setting.far.say(line)
    no_result_of(said)
    setting.far.answer(names())
    assert result_of(said) == names()


def test_a_seed_that_talks_nonsense_is_hung_up_on() -> None:
    """A line that is not JSON-RPC ends the connection; whoever waits hears of it, what follows is not read."""
    setting = Setting()
    said = setting.lookup()
    setting.far.say(b"HTTP/1.1 400 Bad Request\n" + wire.encode_result(1, names()))
    assert setting.far.pipe.aborted
    setting.far.lose()
    failure_of(said, Unreachable)


def test_why_a_seed_hung_up_is_the_reason() -> None:
    """An error to nobody that is the last thing a seed says before it closes is why the calls have failed; one that
    something came after is not."""
    parting = wire.encode_error(None, TLSNeeded("this port speaks TLS"))
    setting = Setting()
    said = setting.lookup()
    setting.far.say(parting)
    setting.far.lose()
    assert failure_of(said, Unreachable).getErrorMessage() == "TLS needed: this port speaks TLS"
    setting = Setting()
    said = setting.lookup()
    setting.far.say(parting + wire.encode_result(99, wire.Nothing()))
    setting.far.lose()
    assert "cleanly" in failure_of(said, Unreachable).getErrorMessage()


# -- time and loss ------------------------------------------------------------------------------------------------


def test_a_call_waits_for_call_timeout_s() -> None:
    """No answer in CALL_TIMEOUT_S raises Unreachable and ends the connection, and with it the calls that came later;
    an answer after that is ignored."""
    setting = Setting()
    said = setting.lookup()
    setting.clock.advance(CALL_TIMEOUT_S - 0.001)
    no_result_of(said)
    later = setting.lookup()
    setting.clock.advance(0.001)
    assert "no answer in 5 s" in failure_of(said, Unreachable).getErrorMessage()
    assert not setting.calls.connected
    assert setting.far.pipe.aborted
    setting.far.answer(names(), request_id=1)
    setting.far.lose()
    failure_of(later, Unreachable)
    assert setting.clock.getDelayedCalls() == []


def test_a_lost_connection_fails_all_that_wait() -> None:
    """Calls fail at once when the connection is lost, `lost` fires, and no timer is left."""
    setting = Setting()
    said = [setting.lookup(), setting.lookup()]
    setting.far.lose()
    for one in said:
        assert "cleanly" in failure_of(one, Unreachable).getErrorMessage()
    result_of(setting.calls.lost)
    assert not setting.calls.connected
    assert setting.clock.getDelayedCalls() == []
    failure_of(setting.lookup(), Unreachable)


def test_a_cancelled_call_is_forgotten() -> None:
    """Who cancels a call leaves no timer behind, and its answer disturbs nobody."""
    setting = Setting()
    said = setting.lookup()
    said.cancel()
    failure_of(said)
    assert setting.clock.getDelayedCalls() == []
    setting.far.answer(names())


def test_a_slow_answer_among_others_ends_nothing() -> None:
    """While something comes in the connection is alive: only the call that is overdue has failed."""
    setting = Setting()
    slow = setting.lookup()
    setting.clock.advance(CALL_TIMEOUT_S - 1.0)
    other = setting.lookup()
    setting.far.say(wire.encode_result(2, names()))
    assert result_of(other) == names()
    setting.clock.advance(1.0)
    failure_of(slow, Unreachable)
    assert not setting.far.pipe.aborted


def test_calls_pending_max() -> None:
    """CALLS_PENDING_MAX requests may wait; one more is refused at once, and an answer makes room."""
    from twisted.internet import reactor  # a fake clock would sort its timers at every call

    calls = Calls(reactor)
    far = Far(Lines(calls, Clock()))

    def ping() -> "Deferred[wire.Nothing]":
        return start(calls.call("ping", wire.Nothing(), wire.Nothing))

    said = [ping() for _ in range(CALLS_PENDING_MAX)]
    assert str(CALLS_PENDING_MAX) in failure_of(ping(), Unreachable).getErrorMessage()
    far.answer(wire.Nothing())
    assert result_of(said.pop()) == wire.Nothing()
    said.append(ping())
    far.lose()
    for one in said:
        failure_of(one, Unreachable)


# -- notifications ------------------------------------------------------------------------------------------------


def test_notifications_are_passed_on() -> None:
    """What has a method is a notification; without params there is nothing to tell."""
    setting = Setting()
    setting.far.say(b'{"jsonrpc":"2.0","method":"changed","params":{"name":"UserY","entry":null}}\n')
    setting.far.say(b'{"jsonrpc":"2.0","method":"changed"}\n')
    assert setting.told == [("changed", b'{"name":"UserY","entry":null}')]


def test_who_does_not_listen_is_not_told() -> None:
    """Without `notified` a notification is ignored."""
    far = Far(Lines(Calls(Clock()), Clock()))
    far.say(b'{"jsonrpc":"2.0","method":"changed","params":{}}\n')
    assert not far.pipe.aborted


def test_tell_is_a_notification_unless_the_peer_is_behind() -> None:
    """`tell` writes a request without id; to a peer that does not read, or is gone, it says False."""
    setting = Setting()
    assert setting.calls.tell("ping", wire.Nothing())
    assert setting.far.asked == [{"jsonrpc": "2.0", "method": "ping", "params": {}}]
    setting.far.pipe.buffer_bytes_max = 0
    assert setting.calls.tell("ping", wire.Nothing())
    assert not setting.calls.tell("ping", wire.Nothing())
    setting.far.lose()
    assert not setting.calls.tell("ping", wire.Nothing())
    assert len(setting.far.asked) == 2


def test_dial_says_why_it_failed() -> None:
    """An endpoint's failure becomes Unreachable; one without words is named by its class."""

    @implementer(IStreamClientEndpoint)
    class Broken:
        def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
            return fail(ValueError())

    error = failure_of(start(dial(lambda _: Broken(), "seed:1", Calls(Clock()), Clock())), Unreachable)
    assert error.getErrorMessage() == "ValueError"


def test_a_dial_has_a_time_limit() -> None:
    """Who does not take the connection in DIAL_TIMEOUT_S is Unreachable, and the endpoint is told to give up."""
    clock = Clock()
    given_up: list[Deferred[IProtocol]] = []
    connecting: Deferred[IProtocol] = Deferred(given_up.append)

    @implementer(IStreamClientEndpoint)
    class Silent:
        def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
            return connecting

    dialled = start(dial(lambda _: Silent(), "seed:1", Calls(clock), clock))
    clock.advance(DIAL_TIMEOUT_S - 0.001)
    no_result_of(dialled)
    clock.advance(0.001)
    assert "no connection in 2 s" in failure_of(dialled, Unreachable).getErrorMessage()
    assert given_up == [connecting]
    assert clock.getDelayedCalls() == []


def test_other_refusals_keep_the_seeds_words() -> None:
    """An error that is not one of those acted upon is a PeerRefused with the seed's code."""
    setting = Setting()
    said = setting.lookup()
    setting.far.say(b'{"jsonrpc":"2.0","id":1,"error":{"code":418,"message":"teapot"}}\n')
    refused = failure_of(said, PeerRefused).value
    assert (refused.status, refused.detail) == (418, "teapot: teapot")
