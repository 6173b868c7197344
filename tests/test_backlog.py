"""As many messages as may wait for one recipient, who is away for an hour: on the fake clock, with all of them.

Time means the network here: bytes take :data:`LATENCY_S` from one host to another, computing and the disk take none. So
seconds count round trips and pauses, and are the same on every machine.
"""

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pytest

from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX
from meshproto.core.outbox import RECIPIENT_MESSAGES_MAX, Outbox
from tests.net.raw_http import RawHTTP
from tests.world import Answer, World

LATENCY_S: Final = 0.01
ROUND_TRIP_S: Final = 2 * LATENCY_S
HOUR_S: Final = 3600.0
LOOK_S: Final = 300.0
"""How often the other recipient is written to during the hour: neither a connection nor a lookup is kept so long."""
CHUNK_LINES: Final = 1000
WARM_S: Final = 2 * ROUND_TRIP_S
"""A send to someone who is there: its request, and within that the batch and its receipt."""
COLD_S: Final = WARM_S + ROUND_TRIP_S
"""The same when nobody was written to for a while: a lookup before it."""
RETURN_S_MAX: Final = 1.0
"""Registering again, and the news of it: a few round trips."""


class Held(NamedTuple):
    """What the outbox keeps of messages in memory."""

    messages: int
    text_bytes: int


class Backlog(World):
    """Anna writes to Dora, who will be away, and to Emil, who is there. `most`: the most that Anna's outbox held at any
    step."""

    def __init__(self) -> None:
        super().__init__(seed=1, latency_s=LATENCY_S)
        self.most = Held(0, 0)
        self.add_seed("seedX")
        for name in ("Anna", "Dora", "Emil"):
            self.add_user(name, seeds=["seedX"])
        self.run_until(self.registered)
        for name in ("Dora", "Emil"):
            self.send("Anna", name, "known")
        self._written = 0

    @property
    def outbox(self) -> Outbox:
        return self.users["Anna"].sending.outbox

    def step_until(self, condition: Callable[[], bool]) -> None:
        """Look at each step at what is held."""

        def looked() -> bool:
            if "Anna" in self.users:
                self.most = Held(*map(max, self.most, self._held()))
            return condition()

        super().step_until(looked)

    def _held(self) -> Held:
        messages = text_bytes = 0
        for queue in self.outbox.queues.values():
            messages += len(queue.ready) + len(queue.under_way)
            text_bytes += queue.ready_bytes + sum(len(message.message) for message in queue.under_way)
        return Held(messages, text_bytes)

    def write(self, messages: int, text: str = "") -> list[Any]:
        """Hand messages for Dora over in one stream; its results."""
        client = RawHTTP(self, "Anna")
        client.begin()
        end = self._written + messages
        for first in range(self._written, end, CHUNK_LINES):
            numbers = range(first, min(end, first + CHUNK_LINES))
            client.lines(*({"to": "Dora", "message": f"{number}{text}", "wait": 0} for number in numbers))
        self._written = end
        client.end()
        self.run_until(lambda: client.over)
        return client.results

    def one_more(self, to: str) -> Answer:
        return self.send("Anna", to, "now", wait=0 if to == "Dora" else 5)

    def timed(self) -> float:
        """How long a send to Emil takes."""
        began = self.clock.seconds()
        answer = self.one_more("Emil")
        assert (answer.code, answer.json["status"]) == (200, "delivered")
        return round(float(self.clock.seconds() - began), 6)

    def cold_and_warm(self) -> tuple[float, float]:
        """The same after a silence, and right after that."""
        self.run(LOOK_S)
        return self.timed(), self.timed()


class Story(NamedTuple):
    """What was seen. `drained_s`: from Dora's return until nothing waited for her."""

    before: tuple[float, float]
    results: list[Any]
    too_many: Answer
    waiting: int
    meanwhile: set[tuple[float, float]]
    drained_s: float
    during: list[float]
    most: Held
    inbox: list[str]


@pytest.fixture(scope="module")
def story() -> Story:
    world = Backlog()
    before = world.cold_and_warm()
    world.crash("Dora")
    results = world.write(RECIPIENT_MESSAGES_MAX)
    too_many = world.one_more("Dora")
    waiting = world.outbox.waiting
    meanwhile = {world.cold_and_warm() for _ in range(int(HOUR_S / LOOK_S))}
    world.restart("Dora")
    returned = world.clock.seconds()
    during: list[float] = []
    while "dora" in world.outbox.queues and len(during) < 1000:
        during.append(world.timed())
    drained_s = world.clock.seconds() - returned
    return Story(before, results, too_many, waiting, meanwhile, drained_s, during, world.most, world.inbox("Dora"))


def test_all_are_taken(story: Story) -> None:
    """Each of the hundred thousand is queued; the one beyond them is refused, and told so."""
    assert len(story.results) == story.waiting == RECIPIENT_MESSAGES_MAX
    assert {result["status"] for result in story.results} == {"queued"}
    assert (story.too_many.code, "wait for Dora already" in story.too_many.json["detail"]) == (429, True)


def test_all_are_delivered_in_order(story: Story) -> None:
    """Each arrives once, in the order of acceptance."""
    assert story.inbox == ["known", *map(str, range(RECIPIENT_MESSAGES_MAX))]


def test_nobody_waits_for_the_back_off(story: Story) -> None:
    """After an hour, when attempts are minutes apart, the return alone starts the delivery; then batch follows batch,
    each a round trip."""
    batches = RECIPIENT_MESSAGES_MAX / BATCH_MESSAGES_MAX
    assert story.drained_s <= RETURN_S_MAX + batches * ROUND_TRIP_S


def test_the_others_do_not_notice(story: Story) -> None:
    """A message to somebody else takes exactly as long as before while all those wait, and while they are delivered."""
    assert story.before == (COLD_S, WARM_S)
    assert story.meanwhile == {story.before}
    assert set(story.during) == {WARM_S}
    assert len(story.during) > 10


def test_two_batches_are_in_memory(story: Story) -> None:
    """At no step does the outbox hold more of them than the batch under way and the one behind it."""
    for_emil = 1
    assert BATCH_MESSAGES_MAX <= story.most.messages <= 2 * BATCH_MESSAGES_MAX + for_emil
    assert story.most.text_bytes <= 2 * BATCH_BYTES_MAX


def test_what_waits_takes_no_memory() -> None:
    """The whole process keeps as much for fifteen megabytes that wait as for five, and of all the batches that went at
    most the last at either end: nothing that only the garbage collector would find, which seldom comes."""
    world = Backlog()
    world.cold_and_warm()
    tracemalloc.start()
    try:
        world.crash("Dora")
        kept = []
        for _ in range(3):
            world.write(5000, text="." * 1000)
            world.cold_and_warm()
            kept.append(_kept_bytes())
        gc.disable()
        world.restart("Dora")
        world.run_until(lambda: not world.outbox.waiting)
        gone = tracemalloc.get_traced_memory()[0]
    finally:
        gc.enable()
        tracemalloc.stop()
    assert 2 * BATCH_BYTES_MAX < kept[0] < 4 * BATCH_BYTES_MAX
    assert max(kept) - min(kept) < BATCH_BYTES_MAX / 2
    assert gone < 2.5 * BATCH_BYTES_MAX
    assert world.most.text_bytes <= 2 * (BATCH_BYTES_MAX + 2000)


def _kept_bytes() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
