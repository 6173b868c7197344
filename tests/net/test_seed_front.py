"""The HTTP face of a seed: what it tells, in which form, and whom it lets in."""

import json
import re
from typing import Any

import msgspec
import pytest
import treq
from treq.testing import StubTreq

from meshproto.core.liveness import PHI_DEAD
from meshproto.net import seed_front
from meshproto.net.http import LOOPBACK_HOSTS
from meshproto.net.seed_front import SeedFront
from tests.network import EPOCH_S
from tests.prometheus import read
from tests.world import World


class Looker:
    """Asks a seed's HTTP face without a socket."""

    def __init__(self, world: World, seed: str) -> None:
        self.world = world
        self.front = SeedFront(world.cores[seed], world.seeds[seed], world.commits[seed])
        self._treq = StubTreq(self.front.app.resource())

    def ask(self, method: str, path: str, host: str = "localhost:5080") -> tuple[Any, bytes]:
        response = self.world.wait(self._treq.request(method, f"http://{host}{path}"))  # type: ignore[attr-defined]
        return response, self.world.wait(treq.content(response))

    def get(self, path: str) -> Any:
        response, body = self.ask("GET", path)
        assert response.code == 200
        assert response.headers.getRawHeaders(b"content-type") == [b"application/json"]
        return json.loads(body)

    def metrics(self) -> dict[str, float]:
        response, body = self.ask("GET", "/metrics")
        assert response.headers.getRawHeaders(b"content-type") == [b"text/plain; version=0.0.4; charset=utf-8"]
        return read(body.decode()).values


@pytest.fixture
def looker() -> Looker:
    world = World(17)
    world.add_seed("seedX")
    world.add_seed("seedY", peers=["seedX"])
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedY"])
    world.run_until(world.registered)
    world.run(5)
    return Looker(world, "seedX")


def test_healthz_and_status(looker: Looker) -> None:
    """A seed that answers is well, and says over HTTP what its method status says."""
    assert looker.get("/healthz") == {"status": "ok"}
    status = looker.get("/status")
    assert (status["seed"], status["names"], status["online"]) == ("seedX", 2, 2)
    assert (status["seeds"], status["alive"], status["registrations"]) == (2, 2, 1)


def test_the_mesh(looker: Looker) -> None:
    """The picture holds this seed first and then the others, times in milliseconds; a killed seed is dead since."""
    mesh = looker.get("/mesh")
    assert mesh["now"] == int(looker.world.clock.seconds() * 1000)
    assert mesh["phi_dead"] == PHI_DEAD and mesh["status"]["seed"] == "seedX"
    own, other = mesh["seeds"]
    assert (own["name"], own["itself"], own["alive"], own["users"], own["phi"]) == ("seedX", True, True, 1, 0.0)
    assert own["since"] == int(EPOCH_S * 1000)
    assert (other["name"], other["itself"], other["alive"], other["users"]) == ("seedY", False, True, 1)
    assert (other["address"], other["lag"]) == (looker.world.address("seedY"), 0)
    assert 0 <= other["phi"] < PHI_DEAD
    assert min(mesh["gossip"].values()) > 0
    killed_at = looker.world.clock.seconds()
    looker.world.crash("seedY")
    looker.world.run(30)
    dead = looker.get("/mesh")["seeds"][1]
    assert not dead["alive"] and killed_at * 1000 <= dead["since"] <= looker.world.clock.seconds() * 1000


def test_metrics(looker: Looker) -> None:
    """What is counted is in the form that Prometheus reads, and counters rise with what is done."""
    looker.world.crash("seedY")
    looker.world.run(30)
    values = looker.metrics()
    seed = "meshproto_seed_"
    status = looker.get("/status")
    for name in ("names", "online"):
        assert values[f"{seed}{name}"] == status[name]
    assert values[f"{seed}registrations_total"] == status["registrations"]
    assert status["links"] == sum(values[f'{seed}links{{role="{role}"}}'] for role in ("seed", "user", "guest"))
    assert status["lookups"] == sum(values[f'{seed}lookups_total{{result="{one}"}}'] for one in ("found", "not_found"))
    assert values[f'{seed}known_alive{{seed="seedX"}}'] == 1 and values[f'{seed}known_alive{{seed="seedY"}}'] == 0
    assert values[f'{seed}known_phi{{seed="seedX"}}'] == 0 and values[f'{seed}known_phi{{seed="seedY"}}'] >= PHI_DEAD
    assert values[f'{seed}known_lag_versions{{seed="seedY"}}'] == 0
    assert values[f'{seed}known_users{{seed="seedX"}}'] >= 1
    assert values[f"{seed}gossip_sent_bytes_total"] > 0 and values[f"{seed}gossip_received_bytes_total"] > 0
    assert values[f"{seed}dropped_records_total"] == 0 and values[f'{seed}links{{role="user"}}'] >= 1
    assert values[f"{seed}commit_seconds_count"] > 0 and values[f"{seed}disk_refuses"] == 0
    for name, result in (("Bobby", "found"), ("Nobody", "not_found")):
        looker.world.get("UserX", f"/lookup/{name}")
        series = f'{seed}lookups_total{{result="{result}"}}'
        assert looker.metrics()[series] == values[series] + 1


def test_labels_are_escaped(looker: Looker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed's name cannot break out of its label, whatever another seed calls itself."""
    core = looker.world.cores["seedX"]
    own = core.picture(looker.world.clock.seconds())[0]
    monkeypatch.setattr(core, "picture", lambda now: [msgspec.structs.replace(own, name='a"} 1\nb\\')])
    assert 'meshproto_seed_known_users{seed="a\\"} 1\\nb\\\\"}' in looker.metrics()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", b"text/html; charset=utf-8"),
        ("/style.css", b"text/css; charset=utf-8"),
        ("/mesh.js", b"text/javascript; charset=utf-8"),
        ("/traffic.js", b"text/javascript; charset=utf-8"),
        ("/icon.svg", b"image/svg+xml"),
    ],
)
def test_the_page_is_shut_in(looker: Looker, path: str, kind: bytes) -> None:
    """The files of the page name no other host, and their headers would not let them load from one."""
    response, body = looker.ask("GET", path)
    assert response.headers.getRawHeaders(b"content-type") == [kind]
    (policy,) = response.headers.getRawHeaders(b"content-security-policy")
    assert policy.startswith(b"default-src 'none'; script-src 'self';") and b"unsafe" not in policy
    assert response.headers.getRawHeaders(b"x-content-type-options") == [b"nosniff"]
    urls = set(re.findall(rb"https?://[^\"'\s]*", body))
    assert urls <= {b"http://www.w3.org/2000/svg"}
    assert not re.search(rb"\son\w+=|\sstyle=|innerHTML|<script>|eval\(", body)


def test_every_file_of_the_page_has_a_route(looker: Looker) -> None:
    """What the page refers to is there, and nothing lies about that nobody can ask for."""
    _, page = looker.ask("GET", "/")
    named = set(re.findall(r'(?:href|src)="([^"#]+)"', page.decode()))
    for path in named:
        assert looker.ask("GET", f"/{path}")[0].code == 200, path
    assert looker.front._files.names == {"index.html"} | {path for path in named if "." in path}


def test_errors_are_problems(looker: Looker) -> None:
    """An unknown path is 404, and whatever does more than read is 405: as problem documents."""
    for method, path, code in (("GET", "/nothing", 404), ("POST", "/mesh", 405), ("DELETE", "/", 405)):
        response, body = looker.ask(method, path)
        assert (response.code, json.loads(body)["status"]) == (code, code)
        assert response.headers.getRawHeaders(b"content-type") == [b"application/problem+json"]
    assert looker.ask("HEAD", "/healthz")[0].code == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/status", "/mesh", "/metrics", "/mesh.js"])
def test_a_borrowed_name_is_refused(looker: Looker, path: str) -> None:
    """A page whose name was made to lead to this machine reads nothing of a seed that listens on loopback; on a
    network the seed answers to every name."""
    assert looker.ask("GET", path, host="evil.example:5080")[0].code == 200
    looker.front.hosts = LOOPBACK_HOSTS
    assert looker.ask("GET", path, host="evil.example:5080")[0].code == 403
    assert looker.ask("GET", path, host="127.0.0.1:5080")[0].code == 200
    assert looker.ask("GET", path)[0].code == 200


def test_over_a_connection(looker: Looker) -> None:
    """The face behind its real server, on the seed's host: keep-alive, no body is kept."""
    world = looker.world
    world.hosts["seedX"].listenTCP(3000, seed_front.site(looker.front, world.hosts["seedX"]))
    assert world.get("seedX", "/healthz").json == {"status": "ok"}
    assert [seed["name"] for seed in world.get("seedX", "/mesh").json["seeds"]] == ["seedX", "seedY"]
    assert world.post("seedX", "/mesh", b"x" * 100_000).code == 405
