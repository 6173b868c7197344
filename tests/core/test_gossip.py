"""Gossip, case by case; what must hold in any case is in test_gossip_machine.py."""

import pytest
from msgspec import Raw

from meshproto.core.gossip import HEARTBEAT_AHEAD_S, TOMBSTONE, TOMBSTONE_GRACE_S, Change, Gossip, content
from meshproto.wire import Cell, Delta, Summary
from tests.core.scuttlebutt import PLENTY_BYTES, Mesh, known, live, pair, tell


class TestTelling:
    def test_a_reader_learns_every_key(self) -> None:
        """The first exchange brings the whole space, as changes and in the space."""
        writer, reader = pair("x", "y")
        assert tell(writer, reader) == [Change("writer", "x", b'"first"'), Change("writer", "y", b'"first"')]
        assert known(reader) == {"x": b'"first"', "y": b'"first"'}

    def test_nothing_is_told_twice(self) -> None:
        """Whoever has read everything gets an empty delta."""
        writer, reader = pair("x")
        tell(writer, reader)
        assert writer.delta(reader.digest(), PLENTY_BYTES) == ([], False)

    def test_only_the_last_value_travels(self) -> None:
        """Values that were overwritten since are not told."""
        writer, reader = pair("x")
        writer.put("x", b'"second"')
        (delta,), _ = writer.delta(reader.digest(), PLENTY_BYTES)
        assert delta.cells == [Cell("x", 2, Raw(b'"second"'))]

    def test_news_reaches_beyond_the_writer(self) -> None:
        """What a reader knows it tells others, so that no one needs to meet the writer."""
        writer, reader = pair("x")
        third = Gossip("third", 1000)
        tell(writer, reader)
        tell(reader, third)
        assert known(third) == {"x": b'"first"'}

    def test_an_equal_value_is_told(self) -> None:
        """A key written again with the same value is a change too: those who keep what is stored keep no old one."""
        writer, reader = pair("x")
        tell(writer, reader)
        writer.put("x", b'"first"')
        assert tell(writer, reader) == [Change("writer", "x", b'"first"')]

    def test_a_key_that_was_written_and_deleted_meanwhile(self) -> None:
        """Whoever never knew it is not told that it is gone."""
        writer, reader = pair("x")
        tell(writer, reader)
        writer.put("y", b"1")
        writer.delete("y", 0.0)
        assert tell(writer, reader) == []

    def test_the_smallest_catch_up_goes_first(self) -> None:
        """One change of one space is not held up by another space that is read anew after a restart."""
        large, small = pair(*(f"k{at}" for at in range(20)))[0], Gossip("small", 1000)
        teller, reader = Gossip("teller", 1000), Gossip("reader", 1000)
        small.put("x", b"1")
        for writer in (large, small):
            tell(writer, teller)
        tell(teller, reader)
        reborn = Gossip("writer", 2000)
        for at in range(20):
            reborn.put(f"k{at}", b'"first"')
        small.put("x", b"2")
        for writer in (reborn, small):
            tell(writer, teller)
        deltas, _ = teller.delta(reader.digest(), PLENTY_BYTES)
        assert [delta.seed for delta in deltas] == ["small", "writer"]

    def test_a_teller_who_lacks_some_itself_still_tells_of_other_seeds(self) -> None:
        """That a space is only half known here is no reason to keep the others back, nor to be asked again at once."""
        writer, teller = pair("x", "y")
        other, reader = Gossip("other", 1000), Gossip("reader", 1000)
        other.put("z", b"1")
        tell(writer, teller, bytes_max=0)
        tell(other, teller)
        assert teller.spaces["writer"].version < teller.spaces["writer"].head
        deltas, more = teller.delta(reader.digest(), PLENTY_BYTES)
        assert ({delta.seed for delta in deltas}, more) == ({"writer", "other"}, False)


class TestDeletion:
    def test_a_deletion_travels(self) -> None:
        """A deleted key is a change to None."""
        writer, reader = pair("x", "y")
        tell(writer, reader)
        writer.delete("x", 0.0)
        assert tell(writer, reader) == [Change("writer", "x", None)]
        assert known(reader) == {"y": b'"first"'}

    @pytest.mark.parametrize("deletions", [1, 2])
    def test_deleting_what_is_not_there_writes_nothing(self, deletions: int) -> None:
        """Neither an unknown key nor a deleted one makes a new version."""
        writer, _ = pair("x")
        writer.delete("y", 0.0)
        assert writer.own.version == 1
        for _ in range(deletions):
            writer.delete("x", 0.0)
        assert writer.own.version == 2

    def test_tombstones_stay_for_the_grace(self) -> None:
        """A tombstone is collected when its grace is over, not before."""
        writer, _ = pair("x")
        writer.delete("x", 5.0)
        writer.collect(5.0 + TOMBSTONE_GRACE_S - 0.001)
        assert content(writer.own.values["x"]) == TOMBSTONE
        writer.collect(5.0 + TOMBSTONE_GRACE_S)
        assert writer.own.values == {}
        assert writer.own.collected == 2

    def test_readers_collect_what_the_owner_collected(self) -> None:
        """A reader who has read a tombstone drops it when the owner has."""
        writer, reader = pair("x")
        writer.delete("x", 0.0)
        tell(writer, reader)
        assert "x" in reader.spaces["writer"].values
        writer.collect(TOMBSTONE_GRACE_S)
        tell(writer, reader)
        assert reader.spaces["writer"].values == {}

    def test_a_reader_who_missed_a_collected_deletion(self) -> None:
        """Whoever was away for longer than the grace reads anew, and learns what is gone."""
        writer, reader = pair("x", "y")
        tell(writer, reader)
        writer.delete("x", 0.0)
        writer.put("z", b"1")
        writer.collect(TOMBSTONE_GRACE_S)
        assert [change.key for change in tell(writer, reader) if change.stored is None] == ["x"]
        assert known(reader) == {"y": b'"first"', "z": b"1"}

    def test_a_half_read_space_is_not_completed_by_one_who_missed_the_deletion(self) -> None:
        """A reader who has begun anew after a collection, and then takes values from someone who had not yet heard of
        the deletion, begins anew once more: a deleted key does not come back to stay."""
        writer, late = pair("a", "b", "c")
        tell(writer, late)
        writer.delete("b", 0.0)
        writer.collect(TOMBSTONE_GRACE_S)
        reader = Gossip("third", 1000)
        tell(writer, reader, bytes_max=0)
        tell(late, reader)
        assert known(reader).keys() == {"a", "b", "c"}
        tell(writer, reader)
        assert known(reader).keys() == {"a", "c"}

    def test_a_late_delta_does_not_skip_collected_deletions(self) -> None:
        """A delta that was made for a reader who had begun anew is refused when that is no longer so."""
        writer, late = pair("a", "b", "c")
        tell(writer, late)
        writer.delete("b", 0.0)
        writer.collect(TOMBSTONE_GRACE_S)
        reader = Gossip("third", 1000)
        tell(writer, reader, bytes_max=0)
        (delayed,), _ = writer.delta(reader.digest(), PLENTY_BYTES)
        (from_late,), _ = late.delta({"reader": late.own.summary, "writer": Summary(1000, 0, 1, 0)}, 0)
        reader.merge(from_late)
        assert reader.merge(delayed) == []
        tell(writer, reader)
        assert known(reader).keys() == {"a", "c"}

    def test_nobody_reads_on_from_a_mixture(self) -> None:
        """Whoever has read one part of a space from one who had collected, and another from one who had not, may lack a
        tombstone: nobody who stands before it reads on from there, or the deleted key would stay for ever."""
        names = ("writer", "first", "second", "reader", "early", "last")
        writer, first, second, reader, early, last = (Gossip(name, 1000) for name in names)

        def read(who: Gossip, teller: Gossip, bytes_max: int = PLENTY_BYTES) -> None:
            deltas, _ = teller.delta(who.digest(), bytes_max)
            who.heard({"writer": teller.digest()["writer"]})
            for delta in deltas:
                if delta.seed == "writer":
                    who.merge(delta)

        for key in ("k", "a0", "a1", "a2", "a3"):
            writer.put(key, b"1")
        read(early, writer)
        writer.delete("k", 0.0)
        for key in ("b0", "b1", "b2"):
            writer.put(key, b"1")
        read(second, writer)
        writer.put("c", b"1")
        writer.delete("c", 0.0)
        for at in range(9):
            writer.put(f"d{at}", b"1")
        read(last, writer)
        writer.collect(TOMBSTONE_GRACE_S)
        read(first, writer)
        read(reader, first, 460)
        half = reader.spaces["writer"].version
        assert 0 < half < second.spaces["writer"].version
        read(reader, second)
        read(early, reader)
        read(early, last)
        read(early, writer)
        assert "k" not in known(early)
        read(reader, writer)
        assert known(reader) == known(early) == live(writer.own)


class TestRestart:
    def reborn(self, *keys: str) -> Gossip:
        writer = Gossip("writer", 2000)
        for key in keys:
            writer.put(key, b'"first"')
        return writer

    def test_names_stay_known_until_the_new_life_has_caught_up(self) -> None:
        """While the new generation is read, what it has not yet told of stays; in the end what it has not goes."""
        writer, reader = pair("x", "y", "z")
        tell(writer, reader)
        writer = self.reborn("y", "z")
        assert [change.key for change in tell(writer, reader, bytes_max=0)] == ["y"]
        assert known(reader).keys() == {"x", "y", "z"}
        assert [change.key for change in tell(writer, reader) if change.stored is None] == ["x"]
        assert known(reader).keys() == {"y", "z"}

    def test_a_reader_who_has_only_heard_of_the_new_life(self) -> None:
        """Someone who knows no more of the new generation than that there is one makes nobody forget anything."""
        writer, reader = pair("x")
        hearsay = Gossip("hearsay", 1000)
        for each in (reader, hearsay):
            tell(writer, each)
        hearsay.heard({"writer": Summary(2000, 1, 0, 0)})
        assert tell(hearsay, reader) == []
        assert known(reader) == {"x": b'"first"'}

    def test_the_old_life_is_over(self) -> None:
        """What is still told of a former generation is not listened to."""
        writer, reader = pair("x", "y")
        (old,), _ = writer.delta({}, PLENTY_BYTES)
        tell(self.reborn("x"), reader)
        assert reader.merge(old) == []
        assert reader.heard(writer.digest()) == []
        assert known(reader).keys() == {"x"}

    def test_heartbeats_begin_again(self) -> None:
        """A new generation does not carry the old heartbeat over: it would take the new life as long as the old one
        lasted until it counted as alive. Its news waits for a digest that tells of it."""
        writer, reader = pair("x")
        for _ in range(100):
            writer.beat(0.0)
        tell(writer, reader)
        writer = self.reborn("x")
        assert reader.merge(writer.news(0, PLENTY_BYTES)) == []
        assert reader.digest()["writer"].generation == 1000
        assert reader.heard(writer.digest()) == ["writer"]
        assert reader.digest()["writer"].heartbeat == 0

    def test_news_of_an_unknown_life_waits_for_its_beginning(self) -> None:
        """A delta that does not begin at 0 opens no new generation."""
        writer, reader = pair("x")
        tell(writer, reader)
        writer = self.reborn("x", "y")
        assert reader.merge(writer.news(1, PLENTY_BYTES)) == []
        assert reader.spaces["writer"].generation == 1000

    @pytest.mark.parametrize("generation", [999, 1000], ids=["earlier", "same"])
    def test_a_clock_that_was_set_back(self, generation: int) -> None:
        """A seed that restarts with a generation no later than its last hears of it, and goes on above it."""
        writer, reader = pair("x", "y", "z")
        tell(writer, reader)
        writer = Gossip("writer", generation)
        writer.put("x", b'"new"')
        assert tell(writer, reader) == []
        writer.heard(reader.digest())
        tell(writer, reader)
        assert writer.own.generation == 1001
        assert known(reader) == {"x": b'"new"'}

    def test_restarts_and_collections_do_not_keep_exchanges_busy(self) -> None:
        """After any number of restarts and collections an exchange ends, with everything agreed."""
        mesh = Mesh(["a", "b", "c"])
        for life in range(5):
            mesh.start("a", 2000 + life, {f"k{at}": b"1" for at in range(10)})
            for at in range(life):
                mesh.delete("a", f"k{at}")
                mesh.exchange("b", "a", 300)
            mesh.now += TOMBSTONE_GRACE_S
            mesh.nodes["a"].collect(mesh.now)
            mesh.exchange("c", "b", 300)
            mesh.exchange("c", "a", 300)
        mesh.settle()
        mesh.check_agreement()


class TestHearing:
    def test_a_sign_of_life_counts_once(self) -> None:
        """A heartbeat is news from the first who tells of it; the first of all may be an old one."""
        writer, reader = pair()
        assert reader.heard(writer.digest()) == []
        for _ in range(3):
            writer.beat(0.0)
            assert reader.heard(writer.digest()) == ["writer"]
            assert reader.heard(writer.digest()) == []

    def test_heartbeats_are_seconds(self) -> None:
        """One more each round, and no fewer than there were seconds: they tell when their seed was last alive."""
        writer, _ = pair()
        for now, heartbeat in ((1.1, 1), (1.2, 2), (61.0, 60), (61.1, 61), (0.0, 62)):
            writer.beat(now)
            assert writer.own.heartbeat == heartbeat

    @pytest.mark.parametrize("ahead_s", [HEARTBEAT_AHEAD_S, HEARTBEAT_AHEAD_S + 1], ids=["a little", "far"])
    def test_a_heartbeat_that_others_made_up(self, ahead_s: int) -> None:
        """Nobody would hear this seed until it has come so far: it goes on from there, and when that is far ahead of
        its time it begins a new life, so that it is not taken for one from the future."""
        writer, _ = pair()
        writer.heard({"writer": Summary(1000, ahead_s, 0, 0)})
        writer.beat(1.0)
        told = writer.digest()["writer"]
        far = ahead_s > HEARTBEAT_AHEAD_S
        assert (told.generation, told.heartbeat) == ((1001, 1) if far else (1000, ahead_s + 1))

    def test_a_clock_that_ran_ahead_for_a_while(self) -> None:
        """When it is set right the seed begins a new life in the present."""
        writer, _ = pair()
        for now in (1.0, 200_000.0, 2.0):
            writer.beat(now)
        told = writer.digest()["writer"]
        assert told.generation / 1000 + told.heartbeat <= 4.0

    def test_a_later_life_of_this_seed_is_gone_beyond(self) -> None:
        """With heartbeats from the beginning: the sum is the time at which it lives."""
        writer, _ = pair()
        for now in range(5000):
            writer.beat(float(now))
        writer.heard({"writer": Summary(4_000_000, 3, 0, 0)})
        assert writer.digest()["writer"] == Summary(4_000_001, 0, 0, 0)

    def test_news_of_a_seed_that_no_digest_has_told_of(self) -> None:
        """It may have been dead for long."""
        writer, reader = pair("x")
        assert reader.merge(writer.news(0, PLENTY_BYTES)) == []
        assert "writer" not in reader.spaces

    def test_a_delta_that_begins_later_is_left_alone(self) -> None:
        """What lies between is not skipped: it comes with the next exchange."""
        writer, reader = pair("x", "y", "z")
        reader.heard(writer.digest())
        assert reader.merge(writer.news(1, PLENTY_BYTES)) == []
        assert tell(writer, reader)[0].key == "x"

    def test_one_hears_nothing_of_oneself(self) -> None:
        """Nobody else writes this seed's own space."""
        writer, _ = pair("x")
        forged = Delta("writer", 5000, 0, 9, 9, 0, [Cell("x", 9, Raw(b'"forged"'))])
        assert writer.merge(forged) == []
        assert live(writer.own) == {"x": b'"first"'}

    @pytest.mark.parametrize("version", [0, 1, 3, 9], ids=["zero", "known", "unordered", "beyond"])
    def test_cells_out_of_order_are_skipped(self, version: int) -> None:
        """Only cells after what is known, in order and within the delta are taken."""
        writer, reader = pair("a")
        tell(writer, reader)
        odd = Delta("writer", 1000, 1, 4, 4, 0, [Cell("b", 4, Raw(b"1")), Cell("c", version, Raw(b"1"))])
        assert [change.key for change in reader.merge(odd)] == ["b"]

    def test_forget_drops_a_space_whole(self) -> None:
        """All keys of a forgotten seed are gone, those of its former life too; then it may be met again."""
        writer, reader = pair("x", "y")
        tell(writer, reader)
        tell(TestRestart().reborn("y", "z"), reader, bytes_max=0)
        assert sorted(change.key for change in reader.forget("writer")) == ["x", "y"]
        assert "writer" not in reader.spaces
        assert reader.forget("writer") == []
        tell(writer, reader)
        assert known(reader).keys() == {"x", "y"}

    def test_oneself_cannot_be_forgotten(self) -> None:
        """A seed always has its own space."""
        writer, _ = pair("x")
        assert writer.forget("writer") == []
        assert "writer" in writer.digest()
