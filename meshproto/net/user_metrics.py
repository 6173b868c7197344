"""What a user node tells Prometheus (`GET /metrics`): what its parts have counted, and how they stand at this moment.
Nobody's name is a label, so that their number does not grow with the number of correspondents.
"""

from collections.abc import Callable, Iterable
from typing import Final

from twisted.internet.interfaces import IReactorTime

from meshproto.core.queue import Status
from meshproto.errors import MeshError
from meshproto.net.causes import Cause
from meshproto.net.clocks import NowMs
from meshproto.net.exposition import Family, counted, each, one
from meshproto.net.process_metrics import Commits, of_disk, of_node, of_process
from meshproto.net.programs import Programs
from meshproto.net.receiving import Receiving
from meshproto.net.retention import Retention
from meshproto.net.seeds import Seeds
from meshproto.net.sending import Sending
from meshproto.net.tallies import HTTPTally, Kept, LookupTally, ReceivedTally, SentTally
from meshproto.net.user_store import UserStore

PREFIX: Final = "meshproto_user_"
ENDS: Final = tuple(status for status in Status if status.final)


class UserMetrics:
    """`commits` and `http`: what the store and the listeners count in; `readers`: how many streams are open."""

    def __init__(
        self,
        store: UserStore,
        commits: Commits,
        seeds: Seeds,
        sending: Sending,
        receiving: Receiving,
        programs: Programs,
        retention: Retention,
        http: HTTPTally,
        readers: Callable[[], int],
        clock: IReactorTime,
        now_ms: NowMs,
    ) -> None:
        self._store = store
        self._commits = commits
        self._seeds = seeds
        self._sending = sending
        self._receiving = receiving
        self._programs = programs
        self._retention = retention
        self._http = http
        self._readers = readers
        self._clock = clock
        self._now_ms = now_ms
        self._started = clock.seconds()

    async def families(self) -> list[Family]:
        """Only what a program is behind by is read from the disk: whatever that does, all else can be seen."""
        deleted = self._retention.deleted
        return [
            *of_process(),
            *of_node(PREFIX, "user", self._seeds.user, round(self._clock.seconds() - self._started, 3)),
            *self._of_mesh(),
            *_of_sent(self._sending.tally),
            *self._of_waiting(),
            *_of_received(self._receiving.tally),
            *_of_lookups(self._seeds.lookups),
            *_of_http(self._http),
            *self._of_readers(),
            *of_disk(PREFIX, self._commits, refuses=self._store.problem is not None),
            counted(f"{PREFIX}deleted_total", "Messages that are no longer kept.", "what", Kept, deleted),
            *await self._of_programs(),
        ]

    def _of_mesh(self) -> list[Family]:
        seeds = self._seeds.seeds
        alive = sum(seed.alive for seed in seeds)
        return [
            one(f"{PREFIX}registered", "gauge", "Whether a seed leads others to it: 0 or 1.", self._seeds.registered),
            one(f"{PREFIX}seeds", "gauge", "Seeds of the mesh that it knows of.", len(seeds)),
            one(f"{PREFIX}seeds_alive", "gauge", "Those that are alive, as its home seed says.", alive),
        ]

    def _of_waiting(self) -> list[Family]:
        outbox = self._sending.outbox
        oldest_ms = min((queue.oldest_at for queue in outbox.queues.values()), default=None)
        age_s = 0.0 if oldest_ms is None else max(0, self._now_ms() - oldest_ms) / 1000
        failing = sum(queue.attempts > 0 for queue in outbox.queues.values())
        return [
            one(f"{PREFIX}waiting", "gauge", "Messages that wait to be delivered.", outbox.waiting),
            one(f"{PREFIX}waiting_recipients", "gauge", "For how many they wait.", len(outbox.queues)),
            one(f"{PREFIX}failing_recipients", "gauge", "Of those, whom the last attempt did not reach.", failing),
            one(f"{PREFIX}oldest_waiting_seconds", "gauge", "How long the oldest has waited; 0: none waits.", age_s),
        ]

    def _of_readers(self) -> list[Family]:
        polls = self._receiving.readers
        return [
            one(f"{PREFIX}stream_readers", "gauge", "Open streams of GET /inbox/stream.", self._readers()),
            one(f"{PREFIX}inbox_polls", "gauge", "Requests that wait for a message to come.", polls),
        ]

    async def _of_programs(self) -> list[Family]:
        try:
            shown = await self._programs.shown()
        except MeshError:  # the disk, of which others tell
            shown = []
        behind, attempts = "Messages that it has not taken yet.", "How often the next message was not taken."
        return [
            each(f"{PREFIX}program_behind", "gauge", behind, "kind", [(o["kind"], o["behind"]) for o in shown]),
            each(f"{PREFIX}program_attempts", "gauge", attempts, "kind", [(o["kind"], o["attempts"]) for o in shown]),
        ]


def _of_sent(tally: SentTally) -> list[Family]:
    ended = [(status.value, tally.ended[status]) for status in ENDS]
    took = "From accepted to acknowledged by the recipient's node."
    return [
        one(f"{PREFIX}accepted_total", "counter", "Messages taken to be sent.", tally.accepted),
        counted(f"{PREFIX}not_accepted_total", "Messages that were not, by cause.", "cause", Cause, tally.refused),
        each(f"{PREFIX}ended_total", "counter", "Messages that have come to an end, by which.", "status", ended),
        one(f"{PREFIX}delivery_seconds", "histogram", took, tally.delivery),
        one(f"{PREFIX}attempts_total", "counter", "Deliveries tried, each of a batch.", tally.attempts),
        counted(f"{PREFIX}failures_total", "Those that came to nothing, by cause.", "cause", Cause, tally.failures),
    ]


def _of_received(tally: ReceivedTally) -> list[Family]:
    repeated, refused = "Messages that came again.", "Messages that came, and were not taken for what they are."
    return [
        one(f"{PREFIX}received_total", "counter", "Messages that came, and are on disk.", tally.messages),
        one(f"{PREFIX}received_again_total", "counter", repeated, tally.repeated),
        one(f"{PREFIX}received_refused_total", "counter", refused, tally.refused),
    ]


def _of_lookups(tally: LookupTally) -> Iterable[Family]:
    results = [
        ("cache", tally.cached),
        ("seed", tally.seed),
        ("last_known", tally.known),
        ("not_found", tally.missing),
        ("no_seed", tally.silent),
    ]
    yield each(f"{PREFIX}lookups_total", "counter", "Users looked for, by what has told.", "result", results)


def _of_http(tally: HTTPTally) -> Iterable[Family]:
    samples = [
        ({"part": part.value, "code": f"{digit}xx"}, counts[digit])
        for part, counts in tally.parts.items()
        for digit in (2, 3, 4, 5)
    ]
    about = "HTTP requests answered, by part and class of the answer."
    yield Family(f"{PREFIX}http_requests_total", "counter", about, samples)
