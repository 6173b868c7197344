"""What a seed tells Prometheus: the text format 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from collections.abc import Iterable, Mapping
from typing import Final, Literal, NamedTuple

from meshproto.core.liveness import PHI_DEAD
from meshproto.core.peering import SeedView
from meshproto.wire import StatusResult

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
PREFIX: Final = "meshproto_seed_"


class Traffic(NamedTuple):
    """What :class:`StatusResult` does not count, since the start."""

    dropped: int
    gossip_sent_bytes: int
    gossip_received_bytes: int


class Family(NamedTuple):
    """One metric. `samples`: labels and value; the only labels there are name seeds, so the core's bound on the seeds
    of a mesh is the bound on the time series."""

    name: str
    kind: Literal["counter", "gauge"]
    help: str
    samples: Iterable[tuple[Mapping[str, str], float]]


def metrics(status: StatusResult, seeds: list[SeedView], traffic: Traffic) -> str:
    return "".join(map(_text, [*_own(status, traffic), *_of_seeds(seeds)]))


def _own(status: StatusResult, traffic: Traffic) -> list[Family]:
    def alone(name: str, kind: Literal["counter", "gauge"], help_: str, value: float) -> Family:
        return Family(name, kind, help_, [({}, value)])

    info = {"seed": status.seed, "version": status.version}
    return [
        Family("info", "gauge", "This seed's name and the version of its program; always 1.", [(info, 1)]),
        alone("uptime_seconds", "gauge", "Since this seed has started.", status.uptime),
        alone("names", "gauge", "Names in the directory, whichever seed they are registered with.", status.names),
        alone("online", "gauge", "Names that are online.", status.online),
        alone("links", "gauge", "Connections to this seed, of users and of seeds.", status.links),
        alone("lookups_total", "counter", "Lookups answered.", status.lookups),
        alone("registrations_total", "counter", "Registrations accepted.", status.registrations),
        alone("dropped_records_total", "counter", "Records of other seeds that were forged or bad.", traffic.dropped),
        alone("gossip_sent_bytes_total", "counter", "Gossip sent to other seeds.", traffic.gossip_sent_bytes),
        alone("gossip_received_bytes_total", "counter", "Gossip of other seeds.", traffic.gossip_received_bytes),
    ]


def _of_seeds(seeds: list[SeedView]) -> list[Family]:
    labels = [{"seed": seed.name} for seed in seeds]

    def each(name: str, help_: str, values: Iterable[float]) -> Family:
        return Family(name, "gauge", help_, list(zip(labels, values, strict=True)))

    return [
        each("known_alive", "Whether a seed of the mesh is alive, itself included: 0 or 1.", (s.alive for s in seeds)),
        each("known_phi", f"How surprising its silence is; from {PHI_DEAD:g} on it is dead.", (s.phi for s in seeds)),
        each("known_lag_versions", "Writes of it that were not read here yet.", (s.lag for s in seeds)),
        each("known_users", "Names registered with it.", (s.users for s in seeds)),
    ]


def _text(family: Family) -> str:
    name = PREFIX + family.name
    lines = [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
    for labels, value in family.samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inside}}} {_number(value)}" if labels else f"{name} {_number(value)}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    """Whole numbers in full: a byte counter must not be rounded."""
    return str(int(value)) if value == int(value) else repr(float(value))
