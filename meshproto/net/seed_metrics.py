"""What a seed tells Prometheus. The only labels are members of enums and the names of seeds: the core's bound on the
seeds of a mesh is the bound on the time series."""

from collections.abc import Iterable
from typing import Final

from meshproto.core.liveness import PHI_DEAD
from meshproto.core.peering import SeedView
from meshproto.core.seed import Seed
from meshproto.core.seed_tally import NotRegistered, SeedTally
from meshproto.core.sessions import Role
from meshproto.net.exposition import Family, counted, each, one
from meshproto.net.process_metrics import Commits, of_disk, of_node, of_process
from meshproto.net.seeding import Ended, SeedService

PREFIX: Final = "meshproto_seed_"


def families(core: Seed, service: SeedService, commits: Commits) -> list[Family]:
    now = service.now()
    status = core.status(now)
    return [
        *of_process(),
        *of_node(PREFIX, "seed", status.seed, status.uptime),
        one(f"{PREFIX}names", "gauge", "Names in the directory, whichever seed has registered them.", status.names),
        one(f"{PREFIX}online", "gauge", "Names that are online.", status.online),
        *_of_links(core, service),
        *_of_requests(core.tally),
        *_of_gossip(core, service),
        *of_disk(PREFIX, commits, refuses=service.problem is not None),
        *service.directory_metrics(),
        *_of_seeds(core.picture(now)),
    ]


def _of_links(core: Seed, service: SeedService) -> Iterable[Family]:
    links = core.links()
    by_role = [(role.value, links[role]) for role in Role]
    yield each(f"{PREFIX}links", "gauge", "Connections to this seed, by what they are for.", "role", by_role)
    about = "Connections that it has ended, or not taken, by cause."
    yield counted(f"{PREFIX}links_ended_total", about, "cause", Ended, service.ended)


def _of_requests(tally: SeedTally) -> Iterable[Family]:
    lookups = [("found", tally.lookups - tally.missed), ("not_found", tally.missed)]
    not_registered = tally.not_registered
    yield each(f"{PREFIX}lookups_total", "counter", "Lookups answered, by result.", "result", lookups)
    yield one(f"{PREFIX}registrations_total", "counter", "Registrations accepted.", tally.registrations)
    about = "Registrations refused, by cause."
    yield counted(f"{PREFIX}registrations_refused_total", about, "cause", NotRegistered, not_registered)
    yield one(f"{PREFIX}slowed_total", "counter", "Requests refused since there were too many.", tally.slowed)


def _of_gossip(core: Seed, service: SeedService) -> Iterable[Family]:
    forged = "Records of other seeds that were forged or bad."
    yield one(f"{PREFIX}dropped_records_total", "counter", forged, core.dropped)
    sent, received = service.gossip_sent_bytes, service.gossip_received_bytes
    yield one(f"{PREFIX}gossip_sent_bytes_total", "counter", "Gossip sent to other seeds.", sent)
    yield one(f"{PREFIX}gossip_received_bytes_total", "counter", "Gossip of other seeds.", received)


def _of_seeds(seeds: list[SeedView]) -> list[Family]:
    def of_each(name: str, help_: str, values: Iterable[float]) -> Family:
        names = (seed.name for seed in seeds)
        return each(f"{PREFIX}{name}", "gauge", help_, "seed", zip(names, values, strict=True))

    alive = "Whether a seed of the mesh is alive, itself included: 0 or 1."
    lag = "Writes of it that were not read here yet."
    phi = f"How surprising its silence is; from {PHI_DEAD:g} on it is dead."
    return [
        of_each("known_alive", alive, (seed.alive for seed in seeds)),
        of_each("known_phi", phi, (seed.phi for seed in seeds)),
        of_each("known_lag_versions", lag, (seed.lag for seed in seeds)),
        of_each("known_users", "Names registered with it.", (seed.users for seed in seeds)),
    ]
