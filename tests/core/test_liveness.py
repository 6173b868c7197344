"""The failure detector: how long a silence is believed."""

import math

import hypothesis.strategies as st
from hypothesis import given

from meshproto.core.liveness import (
    DOUBT_S,
    INTERVAL_MAX_S,
    INTERVAL_MIN_S,
    INTERVAL_PRIOR_S,
    PHI_DEAD,
    QUIET_RATE,
    QUIET_S,
    WINDOW,
    Liveness,
)


def silence_until_dead_s(mean_s: float) -> float:
    """Exponential arrivals: phi = silence / mean * log10(e)."""
    return PHI_DEAD * mean_s * math.log(10)


def heard_each(interval_s: float, times: int) -> tuple[Liveness, float]:
    """A detector that heard a seed so often; and when it last did."""
    liveness = Liveness(0.0)
    for at in range(times):
        liveness.heard("seed", at * interval_s)
    return liveness, (times - 1) * interval_s


def check_dies_after(liveness: Liveness, last: float, silence_s: float) -> None:
    assert liveness.alive("seed", last + silence_s - 0.01)
    assert not liveness.alive("seed", last + silence_s + 0.01)


class TestUnknown:
    def test_a_seed_never_heard_is_dead(self) -> None:
        """No sign of life is the most surprising silence."""
        liveness = Liveness(0.0)
        assert liveness.phi("seed", 0.0) == math.inf
        assert not liveness.alive("seed", 0.0)

    def test_a_forgotten_seed_was_never_heard(self) -> None:
        """Who is forgotten is dead until heard again, and then alive at once."""
        liveness, last = heard_each(1.0, 5)
        liveness.forget("seed")
        liveness.forget("seed")
        assert not liveness.alive("seed", last)
        liveness.heard("seed", last + 1.0)
        assert liveness.alive("seed", last + 2.0)

    def test_old_news_does_not_raise_the_dead(self) -> None:
        """Whose process is gone stays dead for DOUBT_S, whatever others tell; its own word brings it back at once."""
        liveness, last = heard_each(1.0, 5)
        liveness.bury("seed", last)
        liveness.heard("seed", last + DOUBT_S - 0.1)
        assert not liveness.alive("seed", last + DOUBT_S - 0.1)
        liveness.heard("seed", last + DOUBT_S)
        assert liveness.alive("seed", last + DOUBT_S)
        liveness.bury("seed", last + DOUBT_S)
        liveness.heard("seed", last + DOUBT_S + 0.1, directly=True)
        assert liveness.alive("seed", last + DOUBT_S + 0.1)

    def test_one_seed_does_not_speak_for_another(self) -> None:
        """Each seed is judged by its own heartbeats."""
        liveness, last = heard_each(1.0, 5)
        assert not liveness.alive("other", last)


class TestSilence:
    def test_before_a_rhythm_is_known(self) -> None:
        """After the first heartbeat one a second is expected."""
        check_dies_after(*heard_each(1.0, 1), silence_until_dead_s(INTERVAL_PRIOR_S))

    def test_a_slow_rhythm_is_given_more_time(self) -> None:
        """Between heartbeats every 3 s a silence counts a third."""
        check_dies_after(*heard_each(3.0, 2 * WINDOW), silence_until_dead_s(3.0))

    def test_a_burst_does_not_make_impatient(self) -> None:
        """However fast heartbeats come, the silence that is waited for has a least length."""
        check_dies_after(*heard_each(0.001, 2 * WINDOW), silence_until_dead_s(INTERVAL_MIN_S))

    def test_a_long_silence_does_not_make_patient_for_ever(self) -> None:
        """A silence of an hour counts as one of INTERVAL_MAX_S."""
        check_dies_after(*heard_each(3600.0, 2 * WINDOW), silence_until_dead_s(INTERVAL_MAX_S))

    def test_only_the_last_arrivals_count(self) -> None:
        """WINDOW heartbeats after a network has changed, what was before it is forgotten."""
        liveness, last = heard_each(9.0, WINDOW)
        for _ in range(WINDOW):
            last += 2.0
            liveness.heard("seed", last)
        check_dies_after(liveness, last, silence_until_dead_s(2.0))

    def test_a_clock_that_steps_back(self) -> None:
        """A heartbeat before the last one counts as an interval of 0, and the seed as alive."""
        liveness, last = heard_each(1.0, 5)
        liveness.heard("seed", last - 100.0)
        assert liveness.phi("seed", last - 100.0) == 0.0
        assert liveness.alive("seed", last - 101.0)

    @given(
        st.lists(st.floats(0.0, 100.0), max_size=2 * WINDOW),
        st.floats(0.0, 1000.0),
        st.floats(0.0, 1000.0),
    )
    def test_phi_grows_with_silence(self, intervals_s: list[float], silence_s: float, more_s: float) -> None:
        """Whatever the rhythm was: phi begins at 0, never falls while nothing is heard, and reaches death within
        the longest and not before the shortest wait."""
        liveness, now = Liveness(0.0), 0.0
        liveness.heard("seed", now)
        for interval_s in intervals_s:
            now += interval_s
            liveness.heard("seed", now)
        assert liveness.phi("seed", now) == 0.0
        assert liveness.phi("seed", now + silence_s) <= liveness.phi("seed", now + silence_s + more_s)
        assert liveness.alive("seed", now + silence_until_dead_s(INTERVAL_MIN_S) * 0.999)
        assert not liveness.alive("seed", now + silence_until_dead_s(INTERVAL_MAX_S) * 1.001)


class TestLocalHealth:
    def test_our_own_lag_is_no_silence_of_others(self) -> None:
        """Time in which this seed could do nothing does not count against anybody."""
        liveness, last = heard_each(1.0, 5)
        liveness.tick(last, 0.0)
        liveness.tick(last + 61.0, 60.0)
        assert liveness.alive("seed", last + 61.0)
        wait_s = silence_until_dead_s(1.0)
        assert liveness.alive("seed", last + 60.0 + wait_s - 0.01)
        assert not liveness.alive("seed", last + 60.0 + wait_s + 0.01)

    def test_who_hears_nobody_accuses_slowly(self) -> None:
        """When nobody at all is heard, silence counts at QUIET_RATE from QUIET_S on."""
        liveness, last = heard_each(1.0, 5)
        now = last
        while liveness.alive("seed", now):
            now += 0.1
            liveness.tick(now, 0.0)
        expected_s = QUIET_S + (silence_until_dead_s(1.0) - QUIET_S) / QUIET_RATE
        assert abs(now - last - expected_s) < 0.5

    def test_one_voice_is_enough_to_trust_our_ears(self) -> None:
        """As long as somebody is heard, the silence of others counts in full."""
        liveness, last = heard_each(1.0, 5)
        now = last
        while liveness.alive("seed", now):
            now += 0.1
            liveness.tick(now, 0.0)
            liveness.heard("other", now)
        assert abs(now - last - silence_until_dead_s(1.0)) < 0.2
