"""The short way of lookups: it says what the long one says, to the byte, or nothing."""

import json
import random
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from meshproto.core.directory import CLAIM_TTL_S
from meshproto.core.effects import Log, Send
from meshproto.core.entry import URIS_BYTES_MAX
from meshproto.core.rates import COSTS, REQUESTS, REQUESTS_AT_ONCE
from meshproto.core.seed import LEASE_S, Seed
from meshproto.wire import LineError, Seeds, SignedRecord, decode_request, encode_error, encode_value, fold
from tests.core.users import entry_of, forged, signed, user, value_of

LINK = 1
HOMES = ("seedA", "seedB", "seedC")
"""The first is the one that is asked."""
START_S = 1_700_000_000.0
START_MS = int(START_S * 1000)
TTL_MS = int(CLAIM_TTL_S * 1000)
KELVIN = "\N{KELVIN SIGN}"
"""Its small form is the ASCII letter k."""
NAMES = ("UserX", "k", "a" * 64, "A-._0")


LOOKUP = b'{"jsonrpc":"2.0","id":%d,"method":"lookup","params":{"name":"%b"}}'


class Told(NamedTuple):
    """What a home says of a user."""

    home: str
    name: str
    record: SignedRecord
    since: int
    online: bool
    seen: int
    verified: bool
    farewells: tuple[SignedRecord, ...] = ()


def records(name: str) -> st.SearchStrategy[SignedRecord]:
    """Usual ones, forged ones, of several addresses, of other programs."""
    usual = st.builds(
        signed,
        st.just(name),
        st.sampled_from([1, START_MS, START_MS + 1]),
        owner=st.integers(1, 2),
        gone=st.booleans(),
    )
    uris = st.lists(st.sampled_from(["http://[::1]:1", "https://h:2/p?a=b", "http://h/\\", "http://\xe4", "u" * 300]))
    several = st.builds(lambda uris: user(1).sign(name, uris, START_MS), uris.filter(lambda uris: len(uris) <= 8))
    spaced = st.just(SignedRecord(signed(name, START_MS).record.replace(":", ": "), "A" * 86))
    return st.one_of(usual, usual.map(forged), several, spaced)


@st.composite
def tellings(draw: st.DrawFn) -> Told:
    name = draw(st.sampled_from(NAMES))
    edge = START_MS - TTL_MS
    return Told(
        home=draw(st.sampled_from(HOMES)),
        name=name,
        record=draw(records(name)),
        since=draw(st.sampled_from([0, START_MS - 5, 10**13])),
        online=draw(st.booleans()),
        seen=draw(st.sampled_from([0, edge - 1, edge, edge + 1, START_MS - 1, START_MS])),
        verified=draw(st.booleans()),
        farewells=draw(st.sampled_from([(), (signed(name, 1, owner=3, gone=True),)])),
    )


@st.composite
def usual_tellings(draw: st.DrawFn) -> Told:
    """What the short way is for, but for one thing or another."""
    name = draw(st.sampled_from(NAMES))
    gone = draw(st.sampled_from([False, False, False, True]))
    seen = draw(st.sampled_from([START_MS - 1, START_MS - 1, START_MS - TTL_MS, START_MS - TTL_MS - 1]))
    home, online = draw(st.sampled_from(HOMES)), draw(st.booleans())
    return Told(home, name, signed(name, START_MS, gone=gone), START_MS - 5, online, seen, verified=True)


REGISTER = b'{"jsonrpc":"2.0","id":0,"method":"register","params":%b}' % encode_value(
    signed("Registered", START_MS, owner=4)
)


def line_of(request: Any, **how: Any) -> bytes:
    return json.dumps(request, **how).encode()


ids: st.SearchStrategy[Any] = st.one_of(
    st.integers(-(2**53) - 1, 2**53 + 1), st.text(max_size=130), st.none(), st.booleans(), st.floats(allow_nan=False)
)
names = st.one_of(
    st.sampled_from([*NAMES, *map(str.upper, NAMES), *map(str.lower, NAMES)]),
    st.sampled_from([KELVIN, "", "a" * 65, "nobody", "no body", "UserX\n", "@", "\u0130", "\x00"]),
    st.text(max_size=5),
)
params: st.SearchStrategy[Any] = st.one_of(
    names.map(lambda name: {"name": name}), st.sampled_from([{}, [], None, {"name": 1}, {"name": "k", "more": [1]}])
)
lookups = st.builds(
    lambda request_id, params, without: {
        key: value
        for key, value in {"jsonrpc": "2.0", "id": request_id, "method": "lookup", "params": params}.items()
        if key not in without
    },
    ids,
    params,
    st.sampled_from([(), (), (), ("id",), ("jsonrpc",), ("method",), ("params",)]),
)
usual_lines = st.builds(
    lambda number, name: LOOKUP % (number, name.encode()),
    st.integers(0, 99),
    st.sampled_from([*NAMES, "userx", KELVIN, "nobody", "no body"]),
)
odd_lines = st.one_of(
    lookups.map(line_of),
    lookups.map(lambda request: line_of(request, ensure_ascii=False)),
    lookups.map(lambda request: line_of(request, indent=1).replace(b"\n", b" ") + b"\r"),
    lookups.map(lambda request: line_of({**request, "more": {"name": "k"}, "jsonrpc": "2.0"})),
    lookups.map(lambda request: line_of(dict(reversed(request.items())))),
    lookups.map(lambda request: line_of(request)[:-1] + b',"id":7}'),
    lookups.map(lambda request: line_of(request)[:-1] + b',"method":"ping"}'),
    st.sampled_from(["ping", "status", "LOOKUP"]).map(
        lambda method: line_of({"jsonrpc": "2.0", "id": 1, "method": method})
    ),
    st.binary(max_size=20).map(lambda junk: junk.replace(b"\n", b"")),
)
lines = st.lists(st.one_of(usual_lines, usual_lines, odd_lines), min_size=1, max_size=8)


def seed_of(told: list[Told], alive: tuple[str, ...]) -> Seed:
    rng = random.Random(1)
    seed = Seed("seedA", "seedA:1", now=START_S - 100, rng=rng, entropy=rng.randbytes)
    for one in told:
        value = value_of(one.record, since=one.since, online=one.online, seen=one.seen, farewells=one.farewells)
        seed.directory.put(fold(one.name), entry_of(value, one.home, verified=one.verified))
    for home in alive:
        seed.peering.liveness.heard(home, START_S)
    seed.opened(LINK, "10.0.0.1")
    return seed


def long_way(seed: Seed, line: bytes, now: float, link: int = LINK) -> list[bytes | Log]:
    """As the service does it."""
    try:
        effects = seed.receive(link, decode_request(line), now)
    except LineError as wrong:
        return [encode_error(wrong.request_id, wrong.error)]
    return [effect.line if isinstance(effect, Send) else effect for effect in effects if isinstance(effect, Send | Log)]


def short_way(seed: Seed, lines: list[bytes], now: float) -> list[bytes | Log]:
    """The short way as far as it goes, then one line on the long one, and so on."""
    said: list[bytes | Log] = []
    while lines:
        answers = seed.answers(LINK, lines, now)
        said += answers
        lines = lines[len(answers) :]
        if lines and not answers:
            said += long_way(seed, lines[0], now)
            lines = lines[1:]
    return said


def state(seed: Seed, now: float) -> tuple[object, ...]:
    """What may differ afterwards: also when the lease ends that the lines have renewed."""
    names = {name: seed.directory.best(name, START_MS) for name in seed.directory.entries}
    lookups = seed.status(now).lookups
    seed.tick(now + LEASE_S - 1)
    registered = seed.directory.best("registered", START_MS)
    return names, seed.dropped, seed.is_welcome(LINK), lookups, registered and registered.online


KNOWN = Told("seedA", "k", signed("k", START_MS), START_MS - 5, True, START_MS - 1, verified=True)


@settings(max_examples=600, deadline=None)
@example([KNOWN], [], [LOOKUP % (1, KELVIN.encode())], 0.0, False, False)
@given(
    st.one_of(
        st.lists(usual_tellings(), max_size=4, unique_by=lambda told: told.name), st.lists(tellings(), max_size=6)
    ),
    st.sets(st.sampled_from(HOMES[1:])).map(sorted),
    lines,
    st.sampled_from([0.0, 0.0, 0.001, 5.0, 8.0, 1e6]),
    st.booleans(),
    st.booleans(),
)
def test_both_ways_say_the_same(
    told: list[Told], alive: list[str], lines: list[bytes], later_s: float, registered: bool, lapsed: bool
) -> None:
    """Whatever is known of whom, whoever is alive, whenever and however it is asked: with the short way a seed says the
    same bytes as without, in the same order, and is the same afterwards."""
    seeds = [seed_of(told, tuple(alive)) for _ in range(2)]
    now = START_S + later_s
    for seed in seeds:
        if registered:  # over the link: it has a lease that each line renews
            seed.receive(LINK, decode_request(REGISTER), START_S)
            if lapsed:
                seed.tick(START_S + LEASE_S)
    short, long = seeds
    assert short_way(short, lines, now) == [said for line in lines for said in long_way(long, line, now)]
    assert state(short, now) == state(long, now)


REGISTERED, LAPSED, STRANGER, GUEST = LINKS = range(2, 6)
"""With a lease, with one that has run out, one over which nothing was right yet, and another."""
PING = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'


def seed_with_links(told: list[Told], alive: tuple[str, ...]) -> Seed:
    seed = seed_of(told, alive)
    for link in LINKS:
        seed.opened(link, "10.0.0.1")
        if link is not STRANGER:
            seed.receive(link, decode_request(PING), START_S)
    register = decode_request(REGISTER)
    seed.receive(LAPSED, register, START_S - LEASE_S)
    seed.tick(START_S)
    seed.receive(REGISTERED, register, START_S)
    return seed


@settings(max_examples=300, deadline=None)
@given(
    st.lists(usual_tellings(), max_size=4, unique_by=lambda told: told.name),
    st.sets(st.sampled_from(HOMES[1:])).map(sorted),
    st.lists(st.tuples(st.sampled_from([GUEST, REGISTERED, *LINKS]), st.one_of(usual_lines, odd_lines)), max_size=8),
    st.sampled_from([0.0, 0.001, 5.0]),
)
def test_many_links_are_told_the_same(
    told: list[Told], alive: list[str], asked: list[tuple[int, bytes]], later_s: float
) -> None:
    """A line of each of several links: what each is told, and what a seed is afterwards, is as if all of them had come
    on the long way, in their order."""
    asked = list(dict(asked).items())
    together, apart = [seed_with_links(told, tuple(alive)) for _ in range(2)]
    now = START_S + later_s
    said: list[list[bytes | Log]] = []
    left = asked
    while left:
        answers = together.answers_each([link for link, _ in left], [line for _, line in left], now)
        said += [[answer] for answer in answers]
        left = left[len(answers) :]
        if left:
            (link, line), *left = left
            said.append(long_way(together, line, now, link))
    assert said == [long_way(apart, line, now, link) for link, line in asked]
    assert state(together, now) == state(apart, now)


class TestWhatIsUsual:
    """Else the comparison would compare nothing."""

    @pytest.mark.parametrize(
        ("home", "online", "alive", "said"),
        [
            ("seedA", True, False, b'"home":"seedA","online":true,"seen":%d' % (START_MS + 1000)),
            ("seedB", True, True, b'"home":"seedB","online":true,"seen":%d' % (START_MS + 1000)),
            ("seedB", True, False, b'"home":"seedB","online":false,"seen":%d' % (START_MS - 1)),
            ("seedA", False, False, b'"home":"seedA","online":false,"seen":%d' % (START_MS - 1)),
        ],
    )
    def test_who_is_known(self, home: str, online: bool, alive: bool, said: bytes) -> None:
        """Here or elsewhere, online or not, in whatever case."""
        told = Told(home, "UserX", signed("UserX", START_MS), START_MS, online, START_MS - 1, verified=True)
        seed = seed_of([told], ("seedB",) if alive else ())
        for name in (b"UserX", b"userx"):
            (answer,) = seed.answers(LINK, [LOOKUP % (7, name)], START_S + 1)
            assert answer.startswith(b'{"jsonrpc":"2.0","id":7,"result":{"record":"{\\"name\\":\\"UserX\\"')
            assert said in answer

    def test_who_is_not_known(self) -> None:
        """As soon as something was right: what strangers may say before is counted."""
        seed = seed_of([], ())
        lines = [LOOKUP % (7, b"nobody")] * 3
        assert seed.answers(LINK, lines, START_S) == []
        seed.receive(LINK, decode_request(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'), START_S)
        assert [b'"code":404' in answer for answer in seed.answers(LINK, lines, START_S)] == [True] * 3
        assert seed.answers(LINK, lines, START_S) == long_way(seed, lines[0], START_S) * 3

    def test_of_many_links(self) -> None:
        """Up to the first that has to go the long way: by what it asks, or by what it is."""
        told = Told("seedA", "UserX", signed("UserX", START_MS), START_MS, True, START_MS - 1, verified=True)
        seed = seed_with_links([told], ())
        usual = LOOKUP % (7, b"UserX")
        for third, line, answered in ((GUEST, usual, 4), (GUEST, PING, 2), (STRANGER, usual, 2), (LAPSED, usual, 2)):
            answers = seed.answers_each([GUEST, REGISTERED, third, GUEST], [usual, usual, line, usual], START_S)
            assert answers == long_way(seed, usual, START_S, GUEST) * answered
        assert seed.answers_each([], [], START_S) == []

    def test_of_a_link_that_has_asked_too_much(self) -> None:
        """It gets its 429 on the long way, and the others go on."""
        told = Told("seedA", "UserX", signed("UserX", START_MS), START_MS, True, START_MS - 1, verified=True)
        seed = seed_with_links([told], ())
        dear, usual = PING.replace(b"ping", b"seeds"), LOOKUP % (7, b"UserX")
        seed.opened(LINK, "10.0.0.2")
        asks = 0
        while b'"code":429' not in long_way(seed, dear, START_S)[0]:  # type: ignore[operator]
            asks += 1
            assert asks <= REQUESTS.burst / COSTS[Seeds]
        asked = [usual, usual, usual]
        left = COSTS[Seeds] + 2 * REQUESTS_AT_ONCE  # too little for another of these
        while len(seed.answers_each([GUEST, LINK, GUEST], asked, START_S)) == 3:
            left -= 1
            assert left
        assert len(seed.answers_each([GUEST, LINK, GUEST], asked, START_S)) == 1
        assert b'"code":429' in long_way(seed, usual, START_S)[0]  # type: ignore[operator]
        assert len(seed.answers_each([GUEST, LINK, GUEST], asked, START_S + 1)) == 3

    def test_a_signature_is_checked_first(self) -> None:
        """On the long way, once."""
        told = Told("seedB", "UserX", signed("UserX", START_MS), START_MS, True, START_MS, verified=False)
        seed = seed_of([told], ())
        line = LOOKUP % (7, b"UserX")
        assert seed.answers(LINK, [line], START_S) == []
        assert long_way(seed, line, START_S) == seed.answers(LINK, [line], START_S)

    @pytest.mark.parametrize(("more_bytes", "short"), [(0, True), (1, False)])
    def test_answers_are_short(self, more_bytes: int, short: bool) -> None:
        """Whoever has many or long addresses is answered on the long way, so that answers can be gathered unweighed."""
        uris = ["http://a", "http://" + "b" * (URIS_BYTES_MAX - 24 + more_bytes)]
        record = user(1).sign("UserX", uris, START_MS)
        seed = seed_of([Told("seedA", "UserX", record, START_MS, True, START_MS, verified=True)], ())
        assert bool(seed.answers(LINK, [LOOKUP % (7, b"UserX")], START_S)) == short


def test_who_has_asked_too_much() -> None:
    """The burst is given to the last lookup; then nothing on the short way and 429 on the long one, until there is
    something again."""
    seed = seed_of([Told("seedA", "UserX", signed("UserX", START_MS), START_MS, True, START_MS, verified=True)], ())
    line = LOOKUP % (7, b"UserX")
    answered = 0
    while answers := seed.answers(LINK, [line] * 64, START_S):
        answered += len(answers)
        assert answered <= REQUESTS.burst
    while b'"result"' in (said := short_way(seed, [line], START_S)[0]):  # type: ignore[operator]
        answered += 1
    assert b'"code":429' in said  # type: ignore[operator]
    assert REQUESTS.burst - 2 * REQUESTS_AT_ONCE < answered <= REQUESTS.burst
    assert len(seed.answers(LINK, [line] * 64, START_S + 1)) == 64
