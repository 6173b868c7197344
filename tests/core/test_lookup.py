"""Whom to ask for a name, and what is remembered of the answers."""

from collections.abc import Callable
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.core import lookup
from meshproto.core.identity import Record
from meshproto.core.lookup import (
    CACHE_NAMES_MAX,
    FOUND_TTL_S,
    LOOKUP_S,
    MISSING_TTL_S,
    SLOW_S,
    WALK_WIDTH,
    Cache,
    Located,
    Said,
    Walk,
)
from meshproto.wire import SignedRecord

NOW = 1000.0
OTHERS = [f"seed{number}:5001" for number in range(8)]


def located(name: str = "Bob") -> Located:
    return Located(Record(name, ["http://192.0.2.1:3000"], "", "", 1), SignedRecord("", ""), None)


class TestWalk:
    def test_home_first(self) -> None:
        """The home seed is asked alone; the others only when it has answered."""
        walk = Walk("home:1", OTHERS, NOW)
        assert walk.next(NOW) == ["home:1"]
        assert walk.next(NOW) == []
        walk.heard("home:1", Said.MISSING)
        assert walk.next(NOW) == OTHERS[:WALK_WIDTH]

    def test_home_once(self) -> None:
        """The home seed is not asked again among the others."""
        walk = Walk("home:1", ["home:1", "b:1"], NOW)
        walk.next(NOW)
        walk.heard("home:1", Said.MISSING)
        assert walk.next(NOW) == ["b:1"]

    def test_without_home(self) -> None:
        """Without a home seed the others are asked at once."""
        assert Walk(None, OTHERS, NOW).next(NOW) == OTHERS[:WALK_WIDTH]

    def test_width(self) -> None:
        """As one answers one more is asked: WALK_WIDTH at a time."""
        walk = Walk(None, OTHERS, NOW)
        walk.next(NOW)
        assert walk.next(NOW) == []
        walk.heard(OTHERS[1], Said.MISSING)
        assert walk.next(NOW) == [OTHERS[WALK_WIDTH]]

    def test_slow(self) -> None:
        """Whoever has not answered after SLOW_S holds up nobody, and is listened to all the same."""
        walk = Walk("home:1", OTHERS, NOW)
        walk.next(NOW)
        assert walk.wake_at(NOW) == NOW + SLOW_S
        assert walk.next(NOW + SLOW_S) == OTHERS[:WALK_WIDTH]
        assert walk.wake_at(NOW + SLOW_S) == NOW + 2 * SLOW_S
        assert walk.next(NOW + 2 * SLOW_S) == OTHERS[WALK_WIDTH : 2 * WALK_WIDTH]
        assert walk.slow(NOW + 2 * SLOW_S) == ["home:1", *OTHERS[:WALK_WIDTH]]
        walk.heard("home:1", Said.FOUND)
        assert walk.verdict(NOW + 2 * SLOW_S) is Said.FOUND

    def test_time_is_up(self) -> None:
        """After LOOKUP_S it is over, whoever is still to be asked or to answer, and nothing is known."""
        walk = Walk(None, OTHERS, NOW)
        walk.next(NOW)
        walk.heard(OTHERS[0], Said.MISSING)
        assert not walk.over(NOW + LOOKUP_S - 0.01)
        assert walk.over(NOW + LOOKUP_S)
        assert walk.verdict(NOW + LOOKUP_S) is Said.SILENT

    def test_nothing_to_wake_for(self) -> None:
        """When there is nobody left to ask the end is the next thing to wake for."""
        walk = Walk(None, OTHERS[:1], NOW)
        walk.next(NOW)
        assert walk.wake_at(NOW) == NOW + LOOKUP_S

    def test_silent_to_the_end(self) -> None:
        """Who had time to answer and did not is no reason to doubt those who said 404; who had none, is."""
        walk = Walk(None, OTHERS[:3], NOW)
        walk.next(NOW)
        walk.heard(OTHERS[0], Said.MISSING)
        walk.heard(OTHERS[1], Said.SILENT)
        assert walk.verdict(NOW + SLOW_S) is Said.MISSING
        assert walk.verdict(NOW + SLOW_S - 0.01) is Said.SILENT

    def test_found_ends_it(self) -> None:
        """One that knows the name is enough, though others are still being asked."""
        walk = Walk(None, OTHERS, NOW)
        walk.next(NOW)
        walk.heard(OTHERS[2], Said.FOUND)
        assert (walk.over(NOW), walk.verdict(NOW)) == (True, Said.FOUND)

    def test_found_at_home(self) -> None:
        """When the home seed knows the name nobody else is asked."""
        walk = Walk("home:1", OTHERS, NOW)
        walk.next(NOW)
        walk.heard("home:1", Said.FOUND)
        assert walk.over(NOW)

    def test_nobody_to_ask(self) -> None:
        """A walk without seeds is over before it begins, and nobody said 404."""
        walk = Walk(None, [], NOW)
        assert (walk.over(NOW), walk.verdict(NOW)) == (True, Said.SILENT)

    def test_all_silent(self) -> None:
        """Silence is not a 404: when no seed could be reached the name is not missing."""
        walk = Walk("a:1", ["b:1"], NOW)
        for address in ("a:1", "b:1"):
            assert walk.next(NOW) == [address]
            assert not walk.over(NOW)
            walk.heard(address, Said.SILENT)
        assert (walk.over(NOW), walk.verdict(NOW), walk.silent) == (True, Said.SILENT, 2)

    @given(
        home=st.none() | st.sampled_from(OTHERS),
        others=st.lists(st.sampled_from(OTHERS), unique=True),
        data=st.data(),
    )
    def test_everyone_once(self, home: str | None, others: list[str], data: st.DataObject) -> None:
        """In whatever order the answers come, and however late, every seed is asked at most once; no more than
        WALK_WIDTH are asked at a time; and 404 is said only when all were asked and nobody who had time knew better."""
        walk, asked, waiting, now = Walk(home, others, NOW), list[str](), list[str](), NOW
        said = st.sampled_from([Said.MISSING, Said.SILENT, Said.SILENT, Said.FOUND])
        while not walk.over(now):
            more = walk.next(now)
            assert len(more) <= WALK_WIDTH
            asked += more
            waiting += more
            assert waiting
            if data.draw(st.booleans()):
                heard = data.draw(st.sampled_from(waiting))
                waiting.remove(heard)
                walk.heard(heard, data.draw(said))
            else:
                assert walk.wake_at(now) > now
                now = walk.wake_at(now)
        everyone = {*others, home} - {None}
        assert now <= NOW + LOOKUP_S
        assert len(asked) == len(set(asked))
        assert set(asked) <= everyone
        if walk.verdict(now) is Said.MISSING:
            assert set(asked) == everyone
            assert walk.missing > 0
            assert set(waiting) == set(walk.slow(now))
        if now < NOW + LOOKUP_S and not walk.found:
            assert walk.missing + walk.silent == len(everyone)


class TestSharedDirectories:
    """`a` and `b` share one directory, `c` and `d` another, `e` has its own."""

    SHARED: ClassVar = {"a:1": "one", "b:1": "one", "c:1": "two", "d:1": "two"}

    def walk(self, home: str | None = None) -> Walk:
        return Walk(home, ["a:1", "b:1", "c:1", "d:1", "e:1"], NOW, self.SHARED)

    def test_one_of_each(self) -> None:
        """What one of them does not know the other does not know either: it is not asked."""
        walk = self.walk()
        assert walk.next(NOW) == ["a:1", "c:1", "e:1"]
        for address in ("a:1", "c:1", "e:1"):
            assert walk.next(NOW) == []
            walk.heard(address, Said.MISSING)
        assert walk.over(NOW)
        assert walk.verdict(NOW) is Said.MISSING

    def test_the_homes_others(self) -> None:
        """The home has said it for all who share its directory."""
        walk = self.walk("a:1")
        assert walk.next(NOW) == ["a:1"]
        walk.heard("a:1", Said.MISSING)
        assert walk.next(NOW) == ["c:1", "e:1"]

    def test_another_when_one_is_silent(self) -> None:
        """Or slow: what it would say another says."""
        walk = self.walk()
        walk.next(NOW)
        walk.heard("a:1", Said.SILENT)
        assert walk.next(NOW) == ["b:1"]
        walk.heard("b:1", Said.MISSING)
        assert walk.next(NOW + SLOW_S) == ["d:1"]
        walk.heard("d:1", Said.MISSING)
        walk.heard("e:1", Said.MISSING)
        assert walk.next(NOW + SLOW_S) == []
        assert walk.over(NOW + SLOW_S)
        assert walk.verdict(NOW + SLOW_S) is Said.MISSING
        walk.heard("c:1", Said.SILENT)  # what comes late is no news
        assert walk.verdict(NOW + SLOW_S) is Said.MISSING


class TestCache:
    def test_found(self) -> None:
        """A found name is known for FOUND_TTL_S, in whatever case it is asked for."""
        cache = Cache()
        cache.found("Bob", located(), NOW)
        assert cache.get("bOB", NOW + FOUND_TTL_S - 0.01) == located()
        assert cache.get("Bob", NOW + FOUND_TTL_S) is None

    def test_missing(self) -> None:
        """A name nobody has is known to be missing for MISSING_TTL_S."""
        cache = Cache()
        cache.missing("Bob", NOW)
        assert cache.is_missing("bob", NOW + MISSING_TTL_S - 0.01)
        assert not cache.is_missing("bob", NOW + MISSING_TTL_S)
        assert not cache.is_missing("eve", NOW)

    def test_found_after_all(self) -> None:
        """A name that was found is not missing any more."""
        cache = Cache()
        cache.missing("Bob", NOW)
        cache.found("bob", located(), NOW)
        assert not cache.is_missing("Bob", NOW)

    def test_missing_after_all(self) -> None:
        """A name that is gone is not known any more."""
        cache = Cache()
        cache.found("Bob", located(), NOW)
        cache.missing("bob", NOW)
        assert cache.get("Bob", NOW) is None

    def test_drop(self) -> None:
        """What was dropped is neither known nor missing."""
        cache = Cache()
        cache.found("Bob", located(), NOW)
        cache.missing("Eve", NOW)
        cache.drop("BOB")
        cache.drop("EVE")
        cache.drop("never heard of")
        assert cache.get("Bob", NOW) is None
        assert not cache.is_missing("Eve", NOW)

    def test_found_names_max(self) -> None:
        """CACHE_NAMES_MAX names are kept; of one more the first leaves."""
        cache = Cache()
        for number in range(CACHE_NAMES_MAX + 1):
            cache.found(f"u{number}", located(), NOW)
        assert cache.get("u0", NOW) is None
        assert cache.get("u1", NOW) is not None
        assert cache.get(f"u{CACHE_NAMES_MAX}", NOW) is not None

    def test_missing_names_max(self) -> None:
        """Missing names are bounded likewise."""
        cache = Cache()
        for number in range(CACHE_NAMES_MAX + 1):
            cache.missing(f"u{number}", NOW)
        assert [cache.is_missing(f"u{number}", NOW) for number in (0, 1, CACHE_NAMES_MAX)] == [False, True, True]

    @pytest.mark.parametrize(
        ("tell", "known"),
        [
            (
                lambda cache, name: cache.found(name, located(), NOW),
                lambda cache, name: cache.get(name, NOW) is not None,
            ),
            (lambda cache, name: cache.missing(name, NOW), lambda cache, name: cache.is_missing(name, NOW)),
        ],
        ids=["found", "missing"],
    )
    def test_told_again(
        self,
        monkeypatch: pytest.MonkeyPatch,
        tell: Callable[[Cache, str], None],
        known: Callable[[Cache, str], bool],
    ) -> None:
        """A name that was told again stays longer than one that was told once after it."""
        monkeypatch.setattr(lookup, "CACHE_NAMES_MAX", 2)
        cache = Cache()
        for name in ("a", "b", "a", "c"):
            tell(cache, name)
        assert [name for name in ("a", "b", "c") if known(cache, name)] == ["a", "c"]

    def test_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The one not used longest leaves: asking for a name keeps it."""
        monkeypatch.setattr(lookup, "CACHE_NAMES_MAX", 2)
        cache = Cache()
        cache.found("a", located(), NOW)
        cache.found("b", located(), NOW)
        cache.get("a", NOW)
        cache.found("c", located(), NOW)
        assert [name for name in ("a", "b", "c") if cache.get(name, NOW)] == ["a", "c"]
