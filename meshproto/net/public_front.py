"""The routes of a user node that are for anyone, on Klein: they take sealed batches and tell what anybody may know."""

from typing import Final

from klein import Klein
from twisted.web.iweb import IRequest

from meshproto import __version__, wire
from meshproto.core.envelope import BATCH_BYTES_MAX, BATCH_MESSAGES_MAX, MESSAGE_BYTES_MAX, SEALED_BYTES_MAX
from meshproto.net.asked import read_body
from meshproto.net.http import answer_errors, answer_json
from meshproto.net.receiving import Receiving
from meshproto.net.seeds import Seeds
from meshproto.net.user_store import UserStore


class PublicFront:
    app = Klein()

    def __init__(self, seeds: Seeds, receiving: Receiving, store: UserStore) -> None:
        self._seeds = seeds
        self._receiving = receiving
        self._store = store

    @app.route("/deliver", methods=["POST"])
    async def deliver(self, request: IRequest) -> bytes:
        network = getattr(request.channel, "network", "")  # type: ignore[attr-defined]
        answer = await self._receiving.deliver(read_body(request, SEALED_BYTES_MAX), network)
        request.setHeader(b"content-type", b"application/json")
        return answer

    @app.route("/.well-known/meshproto", methods=["GET"])
    async def well_known(self, request: IRequest) -> bytes:
        own = self._seeds.own_record()
        limits = {
            "message_bytes": MESSAGE_BYTES_MAX,
            "batch_bytes": BATCH_BYTES_MAX,
            "batch_messages": BATCH_MESSAGES_MAX,
        }
        told = {"version": __version__, "protocol": wire.PROTOCOL_VERSION, "limits": limits}
        return answer_json(request, {**told, "record": own.record, "sig": own.sig})

    @app.route("/healthz", methods=["GET"])
    async def healthz(self, request: IRequest) -> bytes:
        await self._store.probe()
        return answer_json(request, {"status": "ok"})


answer_errors(PublicFront.app)

PUBLIC_PATHS: Final = frozenset(rule.rule for rule in PublicFront.app.url_map.iter_rules())
"""Anyone's: those of these routes. All others are the owner's."""
