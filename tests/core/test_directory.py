"""Who owns a name, and what is counted and listed."""

from collections import Counter
from itertools import permutations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from meshproto.core.directory import CLAIM_TTL_S, Directory
from meshproto.core.entry import Entry
from meshproto.core.identity import verify
from meshproto.errors import NameTaken, StaleRecord
from meshproto.wire import FAREWELLS_MAX, NAMES_PAGE_MAX, SignedRecord, fold
from tests.core.users import entry_of, forged, key_of, signed, user, value_of

NOW_MS = 10 * int(CLAIM_TTL_S * 1000)
TTL_MS = int(CLAIM_TTL_S * 1000)


def entry(
    name: str = "UserX",
    *,
    home: str = "seedA",
    owner: int = 1,
    seq: int = 1,
    gone: bool = False,
    since: int = 0,
    online: bool = True,
    seen: int = NOW_MS,
    verified: bool = True,
    farewells: tuple[SignedRecord, ...] = (),
) -> Entry:
    record = signed(name, seq, owner=owner, gone=gone)
    value = value_of(record, since=since, online=online and not gone, seen=seen, farewells=farewells)
    return entry_of(value, home, verified=verified)


def directory(*entries: Entry) -> Directory:
    made = Directory()
    for each in entries:
        made.put(fold(each.name), each)
    return made


entries = st.builds(
    entry,
    name=st.sampled_from(["UserX", "userx", "UserY"]),
    home=st.sampled_from(["seedA", "seedB", "seedC", "seedD"]),
    owner=st.integers(1, 3),
    seq=st.integers(1, 2),
    gone=st.booleans(),
    since=st.integers(0, 2),
    online=st.booleans(),
    seen=st.sampled_from([NOW_MS - TTL_MS - 1, NOW_MS - 1, NOW_MS]),
)


class TestOwner:
    def test_nobody(self) -> None:
        """A name that no seed knows has no entry."""
        assert Directory().best("UserX", NOW_MS) is None

    @pytest.mark.parametrize("name", ["UserX", "userx", "USERX"])
    def test_case_does_not_count(self, name: str) -> None:
        """A name is found in any case, and keeps the one it was registered with."""
        found = directory(entry("UserX")).best(name, NOW_MS)
        assert found is not None
        assert found.name == "UserX"

    def test_the_earlier_claim_wins(self) -> None:
        """Of two keys the one with the earlier `since` owns the name, whatever their sequences."""
        early, late = entry(owner=1, since=1, seq=1), entry(owner=2, since=2, seq=9, home="seedB")
        assert directory(early, late).best("UserX", NOW_MS) is early

    def test_the_smaller_key_breaks_a_tie(self) -> None:
        """Of two claims of the same millisecond the smaller key wins."""
        both = [entry(owner=1), entry(owner=2, home="seedB")]
        assert directory(*both).best("UserX", NOW_MS) is min(both, key=lambda each: each.key)

    def test_the_newer_record_of_the_owner_counts(self) -> None:
        """A user who moved is where the record with the higher `seq` says."""
        before, after = entry(seq=1, since=1), entry(seq=2, since=5, home="seedB")
        assert directory(after, before).best("UserX", NOW_MS) is after

    def test_an_owner_keeps_the_earliest_since_after_a_move(self) -> None:
        """The claim is the key's, not the home's: it began with the owner's first entry."""
        other = entry(owner=2, since=3, home="seedC")
        moved = entry(seq=2, since=5, home="seedB")
        assert directory(entry(since=1), moved, other).best("UserX", NOW_MS) is moved

    def test_with_one_record_at_two_homes_the_one_online_counts(self) -> None:
        """A user who fled from one seed to another with the same record is where it is online."""
        away, here = entry(online=False, seen=NOW_MS - TTL_MS - 1), entry(home="seedB")
        for order in permutations((away, here)):
            assert directory(*order).best("UserX", NOW_MS) is here

    def test_unregistering_frees_the_name(self) -> None:
        """Whose newest record has no URIs owns nothing: another key with a later claim does."""
        gone, other = entry(seq=2, gone=True, since=1), entry(owner=2, since=2, home="seedB")
        assert directory(entry(home="seedC"), gone).best("UserX", NOW_MS) is None
        assert directory(entry(home="seedC"), gone, other).best("UserX", NOW_MS) is other

    def test_a_claim_runs_out(self) -> None:
        """A user who is away owns the name for 30 days after having been seen, to the millisecond."""
        away = directory(entry(online=False, seen=NOW_MS))
        assert away.best("UserX", NOW_MS + TTL_MS) is not None
        assert away.best("UserX", NOW_MS + TTL_MS + 1) is None

    def test_a_home_that_never_came_back(self) -> None:
        """A claim runs out too when its home had last said that the user is online: a home says so anew."""
        assert directory(entry(seen=NOW_MS - TTL_MS)).best("UserX", NOW_MS) is not None
        assert directory(entry(seen=NOW_MS - TTL_MS - 1)).best("UserX", NOW_MS) is None

    def test_a_farewell_that_the_next_owner_carries(self) -> None:
        """An older entry of somebody who left owns nothing, although the farewell itself has been overwritten; a newer
        one does."""
        left = signed("UserX", 5, owner=1, gone=True)
        following = entry(owner=2, since=9, home="seedB", farewells=(left,))
        assert directory(entry(seq=4, since=1), following).best("UserX", NOW_MS) is following
        back = entry(seq=6, since=1, home="seedC")
        assert directory(entry(seq=4, since=0), following, back).best("UserX", NOW_MS) is back

    def test_a_claim_begins_anew_after_a_farewell(self) -> None:
        """What a key had claimed before it left does not make its next claim older."""
        left = entry(seq=5, gone=True, since=1)
        back, other = entry(seq=6, since=9, home="seedB"), entry(owner=2, since=7, home="seedC")
        assert directory(entry(seq=4, since=1, home="seedD"), left, back, other).best("UserX", NOW_MS) is other

    def test_a_claim_that_ran_out_does_not_count_for_the_next(self) -> None:
        """Whoever registers a name anew after that stands behind one who did so before, also for the `since` that is
        granted."""
        late = NOW_MS + TTL_MS + 1
        old = entry(seq=1, since=1, online=False)
        other = entry(owner=2, since=late - 5, seen=late, home="seedB")
        back = entry(seq=2, since=late - 1, seen=late, home="seedC")
        assert directory(old, other, back).best("UserX", late) is other
        assert directory(old, back).claim(verify(signed("UserX", 3)), late) == late - 1

    def test_one_entry_for_each_home(self) -> None:
        """A newer entry of a home replaces the one it had."""
        again = directory(entry(seq=1), entry(seq=2, owner=2))
        assert again.at_home("userx", "seedA") == entry(seq=2, owner=2)
        assert again.at_home("userx", "seedB") is None
        again.remove("userx", "seedA")
        assert again.best("UserX", NOW_MS) is None

    @settings(deadline=None)
    @given(st.lists(entries, max_size=4, unique_by=lambda each: each.home))
    def test_every_order_of_arrival_gives_the_same(self, made: list[Entry]) -> None:
        """All seeds come to the same answer, in whatever order they heard of the entries."""
        answers = {repr(directory(*order).best("UserX", NOW_MS)) for order in permutations(made)}
        assert len(answers) == 1


class TestClaim:
    def test_a_free_name_is_claimed_from_now(self) -> None:
        """Nobody owns it: the claim begins now."""
        assert Directory().claim(verify(signed("UserX", 1)), NOW_MS) == NOW_MS

    def test_the_owner_keeps_since(self) -> None:
        """Registering again, here or elsewhere, does not begin a new claim."""
        held = directory(entry(since=5), entry(since=3, home="seedB"))
        assert held.claim(verify(signed("UserX", 1)), NOW_MS) == 3

    @pytest.mark.parametrize("name", ["UserX", "USERX"])
    def test_another_key_is_refused(self, name: str) -> None:
        """A name that is owned is taken, in any case."""
        with pytest.raises(NameTaken, match="belongs to another key"):
            directory(entry()).claim(verify(signed(name, 9, owner=2)), NOW_MS)

    @pytest.mark.parametrize(
        "past", [entry(gone=True), entry(online=False, seen=NOW_MS - TTL_MS - 1)], ids=["gone", "ran out"]
    )
    def test_a_freed_name_is_another_keys(self, past: Entry) -> None:
        """Who unregistered, or was not seen for 30 days, holds the name no more."""
        assert directory(past).claim(verify(signed("UserX", 1, owner=2)), NOW_MS) == NOW_MS

    @pytest.mark.parametrize(
        ("past", "since"),
        [
            (entry(seq=5), 0),
            (entry(seq=4, gone=True), NOW_MS),
            (entry(owner=2, seq=9, gone=True, farewells=(signed("UserX", 4, gone=True),)), NOW_MS),
            (entry(seq=5, online=False, seen=NOW_MS - TTL_MS - 1), NOW_MS),
        ],
        ids=["held", "gone", "gone before another", "ran out"],
    )
    def test_an_older_record_is_refused(self, past: Entry, since: int) -> None:
        """Records are public: nobody can bring a user back by registering an old one, not even under a free name."""
        with pytest.raises(StaleRecord):
            directory(past).claim(verify(signed("UserX", 4)), NOW_MS)
        assert directory(past).claim(verify(signed("UserX", 5)), NOW_MS) == since


class TestFarewells:
    def test_what_the_next_owner_carries(self) -> None:
        """Everybody's latest farewell but the own, also those that another entry carries."""
        first, later = signed("UserX", 3, owner=1, gone=True), signed("UserX", 5, owner=1, gone=True)
        second = entry(owner=2, seq=4, gone=True, home="seedB", farewells=(first,))
        held = directory(entry(seq=5, gone=True), second)
        assert held.farewells("userx", key_of(3)) == (later, second.signed)
        assert held.farewells("userx", key_of(1)) == (second.signed,)
        assert directory(entry()).farewells("userx", key_of(3)) == ()

    def test_no_more_than_fit(self) -> None:
        """The oldest are forgotten."""
        said = tuple(signed("UserX", owner, owner=owner, gone=True) for owner in range(1, FAREWELLS_MAX + 1))
        last = entry(owner=9, seq=9, gone=True, farewells=said)
        carried = directory(last).farewells("userx", key_of(8))
        assert carried == (last.signed, *reversed(said[1:]))


class TestVerified:
    def forged_entry(self, **fields: object) -> Entry:
        made = entry(**fields, verified=False)  # type: ignore[arg-type]
        return entry_of(value_of(forged(made.signed), since=made.value.since), made.home, verified=False)

    def test_a_signature_is_checked_once(self) -> None:
        """An entry that fits is marked."""
        unchecked = entry(verified=False)
        assert directory(unchecked).verified("UserX", NOW_MS) == (unchecked, [])
        assert unchecked.verified

    @pytest.mark.parametrize(
        "lie", [{"owner": 2}, {"seq": 9}, {"seq": 9, "gone": True}], ids=["owner", "newer", "gone"]
    )
    def test_a_forged_entry_is_dropped(self, lie: dict[str, int]) -> None:
        """Whatever a forged record says, the true one is served and the forged one is gone."""
        true = entry(since=5)
        lying = self.forged_entry(home="seedB", **lie)
        held = directory(true, lying)
        assert held.verified("UserX", NOW_MS) == (true, [lying])
        assert held.verified("UserX", NOW_MS) == (true, [])
        assert held.users_by_home["seedB"] == 0

    def test_nothing_but_forged(self) -> None:
        """A name with forged records only is unknown."""
        held = directory(self.forged_entry(), self.forged_entry(home="seedB"))
        found, dropped = held.verified("UserX", NOW_MS)
        assert (found, len(dropped), len(held)) == (None, 2, 0)

    def test_a_forged_farewell(self) -> None:
        """An entry stands for its farewells too."""
        lie = forged(signed("UserX", 9, owner=2, gone=True))
        true, lying = entry(owner=2), entry(home="seedB", farewells=(lie,), verified=False)
        assert directory(true, lying).verified("UserX", NOW_MS) == (true, [lying])


class TestPage:
    def pages(self, held: Directory, prefix: str, limit: int) -> list[str]:
        found: list[str] = []
        after: str | None = ""
        while after is not None:
            names, following = held.page(prefix, after, limit, NOW_MS)
            assert len(names) <= limit
            assert following is None or following > after
            found += names
            after = following
        return found

    @settings(deadline=None)
    @given(
        st.dictionaries(st.text("aAbB._-0", min_size=1, max_size=4), st.booleans(), max_size=40),
        st.text("aAbB.", max_size=2),
        st.integers(1, 7),
    )
    def test_the_pages_make_up_the_list(self, held: dict[str, bool], prefix: str, limit: int) -> None:
        """Page after page gives every name that is held and has the prefix, once, in order."""
        last = {fold(name): (name, gone) for name, gone in held.items()}
        made = directory(*(entry(name, gone=gone) for name, gone in last.values()))
        wanted = [name for key, (name, gone) in sorted(last.items()) if not gone and key.startswith(fold(prefix))]
        assert self.pages(made, prefix, limit) == wanted

    def test_a_full_page(self) -> None:
        """The largest page is full, and says where to go on; the last one says that it is."""
        made = directory(*(entry(f"user{at:04}") for at in range(NAMES_PAGE_MAX + 1)))
        names, after = made.page("", "", NAMES_PAGE_MAX, NOW_MS)
        assert (len(names), after) == (NAMES_PAGE_MAX, "user0499")
        assert made.page("", "user0499", NAMES_PAGE_MAX, NOW_MS) == (["user0500"], None)

    def test_after_need_not_be_a_name(self) -> None:
        """A cursor before, between or beyond the names of the prefix works."""
        made = directory(*map(entry, ("a1", "b1", "b3", "c1")))
        assert made.page("b", "a1", 9, NOW_MS)[0] == ["b1", "b3"]
        assert made.page("b", "B2", 9, NOW_MS)[0] == ["b3"]
        assert made.page("b", "c", 9, NOW_MS)[0] == []

    def test_freed_names_cost_a_page_little(self) -> None:
        """Among many names that nobody holds a page may come empty, and still leads on."""
        gone = [entry(f"a{at:02}", gone=True) for at in range(20)]
        made = directory(*gone, entry("b"))
        assert made.page("", "", 2, NOW_MS) == ([], "a07")
        assert self.pages(made, "", 2) == ["b"]

    def test_removed_names_cost_a_page_nothing(self) -> None:
        """What is no longer there is not looked at."""
        made = directory(*(entry(f"a{at:02}") for at in range(20)), entry("b"))
        for at in range(20):
            made.remove(f"a{at:02}", "seedA")
        assert made.page("", "", 1, NOW_MS) == (["b"], None)


class TestWindow:
    @given(st.integers(1, 7), st.sets(st.text("abc", min_size=1, max_size=3), max_size=20))
    def test_it_comes_round(self, limit: int, names: set[str]) -> None:
        """Steps of any size look at every name once and then begin again."""
        made = directory(*map(entry, names))
        seen: list[str] = []
        after = ""
        for _ in range(len(names) // limit + 1):
            found, after = made.window(after, limit)
            seen += found
        assert (seen, after) == (sorted(names), "")


class TestCounters:
    @settings(deadline=None)
    @given(st.lists(st.one_of(entries, st.tuples(st.sampled_from(["userx", "usery"]), st.sampled_from("ABCD")))))
    def test_counters_fit_what_is_there(self, steps: list[Entry | tuple[str, str]]) -> None:
        """After any puts and removals: the number of names, and of each home's users and those online."""
        made, model = Directory(), dict[tuple[str, str], Entry]()
        for step in steps:
            if isinstance(step, Entry):
                made.put(fold(step.name), step)
                model[fold(step.name), step.home] = step
            else:
                made.remove(step[0], f"seed{step[1]}")
                model.pop((step[0], f"seed{step[1]}"), None)
        homes = Counter(home for (_, home), each in model.items() if not each.gone)
        assert len(made) == len({key for key, _ in model})
        assert +made.users_by_home == homes
        assert +made.online_by_home == Counter(home for (_, home), each in model.items() if each.online)
        for (key, home), each in model.items():
            assert made.at_home(key, home) is each
        wanted = sorted(key for key in {key for key, _ in model} if made.best(key, NOW_MS))
        assert [fold(name) for name in made.page("", "", 9, NOW_MS)[0]] == wanted


def test_keys_are_told_apart() -> None:
    """The users of these tests have keys of their own, the same in every run."""
    assert len({key_of(number) for number in range(4)}) == 4
    assert user(1).sign("x", [], 1) == signed("x", 1, gone=True)
