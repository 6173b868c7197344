"""`python -m bench.peers`: see :mod:`bench.peers`.

Installs from Debian what is missing, starts everybody on a free port with its files on a real disk, measures them in
turn, round after round, and ends them all, whatever happens. First those who look names up, then those who carry
messages, so that few servers are there at a time. Who cannot be measured here is a row that says why. A whole run goes
into docs/benchmarks.md, unless its figures are wanted elsewhere (`--json`).
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from bench import figures, report
from bench.figures import Figure, Row, Sample, say
from bench.peers import dns, etcd, mosquitto, nats, ours, postfix, prosody, rabbitmq, redis
from bench.peers.contest import LOADS, Load, Peer, Setting
from bench.peers.machine import Servers, Unavailable, as_load, real_disk
from bench.peers.packages import PROGRAMS, NotInstalled, install, install_programs, missing
from bench.peers.told import PROGRAM, System, Told, text
from meshproto.cli.processes import Failed

PEERS: Final[tuple[type[Peer], ...]] = (
    ours.Seed,
    redis.Get,
    nats.RequestReply,
    nats.KeyValue,
    etcd.Range,
    dns.Udp,
    dns.Tcp,
    ours.Singles,
    ours.SinglesRead,
    ours.Stream,
    ours.StreamRead,
    redis.Streams,
    rabbitmq.Classic,
    rabbitmq.Quorum,
    nats.JetStream,
    nats.LazyJetStream,
    mosquitto.Autosave,
    mosquitto.Mosquitto,
    postfix.Postfix,
    prosody.Prosody,
)
OURS: Final = ours.Mesh.key
KEYS: Final = tuple(dict.fromkeys(peer.key for peer in PEERS))
NAMES: Final = 1_000_000
NAMES_QUICK: Final = 2_000
ROUNDS: Final = 3
SECONDS: Final = 1.2
SECONDS_QUICK: Final = 0.2
IN_FLIGHT_MAX_QUICK: Final = 64
"""A window of thousands takes its time, however short the measurement."""
REASON_CHARS_MAX: Final = 300
RESULT: Final = report.RESULTS / f"{PROGRAM}.json"
DISKS: Final = (Path(tempfile.gettempdir()), Path("/var/tmp"))

T = TypeVar("T")


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    before = figures.machine()
    wanted = [peer() for peer in PEERS if peer.key in options.only]
    notes = provide(wanted) if options.install else []
    began = time.monotonic()
    rows: list[Row] = []
    systems: list[System] = []
    for work in ("lookup", "message"):
        if peers := [peer for peer in wanted if peer.work == work]:
            with tempfile.TemporaryDirectory(prefix="mesh-peers-", dir=disk(options.state)) as directory:
                course = Course(Path(directory), peers, options)
                rows += course.run()
                systems += course.systems()
    say(f"done in {time.monotonic() - began:.0f} s")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    told = Told(
        program=PROGRAM, date=date, machine=before, rounds=options.rounds, rows=rows, notes=notes, systems=systems
    )
    print(text(told))
    if file := options.json or (options.whole and RESULT):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(msgspec.json.format(msgspec.json.encode(told)) + b"\n")
    if options.whole and not options.json:
        report.main([])
    return 0


def parser() -> argparse.ArgumentParser:
    options = figures.parser("bench.peers", __doc__, SECONDS, ROUNDS)
    options.add_argument("--only", type=_keys, default=KEYS, metavar="KEY,KEY", help=f"of {', '.join(KEYS)}")
    options.add_argument("--names", type=int, help=f"how many there are to look up ({NAMES:,})")
    options.add_argument("--state", type=Path, metavar="DIR", help="where the servers' files are made; on a real disk")
    options.add_argument("--no-install", dest="install", action="store_false", help="measure who is there already")
    return options


def parse(arguments: list[str] | None) -> argparse.Namespace:
    given = parser().parse_args(arguments)
    if given.quick:
        given.rounds, given.seconds = figures.ROUNDS_QUICK, SECONDS_QUICK
    given.in_flight_max = IN_FLIGHT_MAX_QUICK if given.quick else max(load.in_flight for load in LOADS)
    given.whole = not given.quick and given.only == KEYS
    given.names = given.names or (NAMES_QUICK if given.quick else NAMES)
    return given


def _keys(words: str) -> tuple[str, ...]:
    keys = tuple(words.split(","))
    if unknown := set(keys) - set(KEYS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(KEYS)}")
    return keys


def provide(peers: Iterable[Peer]) -> list[str]:
    """Install what is missing; what was not to be had, for whoever reads the tables."""
    notes = []
    packages = missing(package for peer in peers for package in peer.packages)
    try:
        if packages:
            say(f"installing {', '.join(packages)}")
        install(packages)
    except NotInstalled as reason:
        notes.append(str(reason))
    if any(peer.key == "nats" for peer in peers):
        try:
            install_programs()
        except NotInstalled as reason:
            notes.append(str(reason))
    for note in notes:
        say(note)
    return notes


def disk(asked_for: Path | None) -> Path:
    """The first directory where a sync is one. Raises :class:`Failed` when there is none."""
    problems = []
    for directory in (asked_for,) if asked_for else DISKS:
        try:
            real_disk(directory)
        except Failed as problem:
            problems.append(str(problem))
        else:
            return directory
    raise Failed("; ".join(problems))


class Course:
    """All who do the same work."""

    def __init__(self, directory: Path, peers: Sequence[Peer], options: argparse.Namespace) -> None:
        self._directory = directory
        self._peers = list(peers)
        self._options = options
        self._missing: dict[Peer, str] = {}

    def run(self) -> list[Row]:
        with Servers(self._directory) as servers:
            setting = Setting(servers, self._options.names, PROGRAMS)
            for peer in self._peers:
                say(f"{peer.title} starts")
                self._tried(peer, lambda peer=peer: peer.start(setting))  # type: ignore[misc]
            offered = {load for peer in self._peers for load in peer.loads}
            loads = [load for load in LOADS if load in offered and load.in_flight <= self._options.in_flight_max]
            with as_load():
                return [row for load in loads for row in self._rows(load)]

    def systems(self) -> list[System]:
        """Complete when it has run."""
        return [
            System(
                what=peer.title,
                key=peer.key,
                work=peer.work,
                acknowledged=peer.acknowledged,
                durable=peer.durable,
                ratio=peer.ratio,
                version=peer.version,
                missing=self._missing.get(peer, ""),
            )
            for peer in self._peers
        ]

    def _rows(self, load: Load) -> Iterator[Row]:
        """Everybody in turn, every other round the other way round."""
        say(load.label)
        entrants = [peer for peer in self._peers if load in peer.loads]
        samples: dict[Peer, list[Sample]] = {peer: [] for peer in entrants}
        for number in range(self._options.rounds):
            for peer in entrants[:: -1 if number % 2 else 1]:
                if sample := self._tried(peer, lambda peer=peer: self._measure(peer, load)):  # type: ignore[misc]
                    samples[peer].append(sample)
        whole = {peer: taken for peer, taken in samples.items() if len(taken) == self._options.rounds}
        beside = {peer.ratio: taken for peer, taken in whole.items() if peer.ratio}
        for peer, taken in whole.items():
            found = taken if peer.key == OURS else [_compared(number, one, beside) for number, one in enumerate(taken)]
            keys = found[0]
            yield Row(
                load.label, peer.title, {key: Figure.of(one[key] for one in found) for key in keys}, peer.key != OURS
            )

    def _measure(self, peer: Peer, load: Load) -> Sample:
        say(f"  {peer.title}")
        return peer.measure(load, self._options.seconds)

    def _tried(self, peer: Peer, step: Callable[[], T]) -> T | None:
        """Whoever fails once is not asked again; the others go on."""
        if peer in self._missing:
            return None
        try:
            return step()
        except (Failed, Unavailable, OSError, subprocess.TimeoutExpired) as reason:
            self._missing[peer] = " ".join(str(reason).split())[:REASON_CHARS_MAX]
            say(f"{peer.title}: {reason}")
            return None


def _compared(number: int, sample: Sample, beside: Mapping[str, Sequence[Sample]]) -> Sample:
    """With how many times as many each of ours did in the round of that number."""
    return {**sample, **{name: taken[number]["per_s"] / sample["per_s"] for name, taken in beside.items()}}


if __name__ == "__main__":
    sys.exit(main())
