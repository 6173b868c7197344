"""The HTTP face of a seed, on Klein: health, metrics, and the mesh as a picture. For looking only.

It is off unless the operator asks for it (`--http`). It tells which seeds there are and how they are, and how many
users each has; never a user's name, and never anything to whom the network does not let in: there is no token.

To test it without a socket put `SeedFront(...).app.resource()` into a `treq.testing.StubTreq`.
"""

from collections.abc import Collection
from typing import Any

from klein import Klein
from twisted.web.iweb import IRequest

from meshproto.core.http1 import Head
from meshproto.core.liveness import PHI_DEAD
from meshproto.core.peering import SeedView
from meshproto.core.seed import Seed
from meshproto.net.exposition import CONTENT_TYPE, text
from meshproto.net.http import answer_errors, answer_json, check_host
from meshproto.net.http_channel import Channel
from meshproto.net.http_request import KleinRequest, QuietSite
from meshproto.net.process_metrics import Commits
from meshproto.net.seed_metrics import families
from meshproto.net.seeding import SeedService
from meshproto.net.web_files import HEADERS, WebFiles


class SeedFront:
    """`hosts`: the names this seed may be called by, where it can be reached from this machine only; None where the
    network decides who reaches it, under whatever name. `commits`: what the store counts in."""

    app = Klein()

    def __init__(self, core: Seed, service: SeedService, commits: Commits) -> None:
        self.hosts: Collection[str] | None = None
        self._core = core
        self._service = service
        self._commits = commits
        self._files = WebFiles("seed")

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: IRequest) -> bytes:
        self._admit(request)
        return answer_json(request, {"status": "ok"})

    @app.route("/status", methods=["GET"])
    def status(self, request: IRequest) -> bytes:
        """What the method `status` of the line protocol says."""
        self._admit(request)
        return answer_json(request, self._core.status(self._service.now()))

    @app.route("/mesh", methods=["GET"])
    def mesh(self, request: IRequest) -> bytes:
        self._admit(request)
        now = self._service.now()
        seeds = [_shown(seed) for seed in self._core.picture(now)]
        status = self._core.status(now)
        service = self._service
        gossip = {"sent_bytes": service.gossip_sent_bytes, "received_bytes": service.gossip_received_bytes}
        shown = {"now": _ms(now), "phi_dead": PHI_DEAD, "status": status, "gossip": gossip, "seeds": seeds}
        return answer_json(request, shown)

    @app.route("/metrics", methods=["GET"])
    def metrics(self, request: IRequest) -> bytes:
        self._admit(request)
        request.setHeader(b"content-type", CONTENT_TYPE)
        return text(families(self._core, self._service, self._commits)).encode()

    @app.route("/", methods=["GET"])
    def page(self, request: IRequest) -> bytes:
        return self._file(request, "index.html")

    @app.route("/style.css", methods=["GET"])
    def style(self, request: IRequest) -> bytes:
        return self._file(request, "style.css")

    @app.route("/mesh.js", methods=["GET"])
    def script(self, request: IRequest) -> bytes:
        return self._file(request, "mesh.js")

    @app.route("/traffic.js", methods=["GET"])
    def traffic(self, request: IRequest) -> bytes:
        return self._file(request, "traffic.js")

    @app.route("/icon.svg", methods=["GET"])
    def icon(self, request: IRequest) -> bytes:
        return self._file(request, "icon.svg")

    def _file(self, request: IRequest, name: str) -> bytes:
        self._admit(request)
        return self._files.answer(request, name)

    def _admit(self, request: IRequest) -> None:
        """Raises :class:`Forbidden` for a page that has taken a name for this machine."""
        for name, value in HEADERS.items():
            request.setHeader(name, value)
        if self.hosts is not None:
            check_host(request, self.hosts)


answer_errors(SeedFront.app)


def site(front: SeedFront, reactor: Any) -> QuietSite:
    """The HTTP server's factory. No route takes a body."""
    return QuietSite(front.app.resource(), reactor, _make_request)


def _make_request(channel: Channel, head: Head) -> KleinRequest:
    """All are counted."""
    request = KleinRequest(channel, head)
    request.count(channel)
    request.expect_body(channel)
    return request


def _shown(seed: SeedView) -> dict[str, Any]:
    return {
        "name": seed.name,
        "address": seed.address,
        "alive": seed.alive,
        "since": _ms(seed.since),
        "users": seed.users,
        "phi": round(seed.phi, 2),
        "version": seed.version,
        "lag": seed.lag,
        "itself": seed.itself,
    }


def _ms(seconds: float) -> int:
    return int(seconds * 1000)
