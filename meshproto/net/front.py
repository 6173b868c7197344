"""The HTTP face of a user node, on Klein: the owner's routes and the public ones. docs/http.md is this file told to
people.

Errors are RFC 9457 problem documents. The owner's routes are closed to all but the owner (:class:`Door`); the public
ones take sealed batches and tell what anybody may know.

To test it without a socket put `Front(...).app.resource()` into a `treq.testing.StubTreq`.
"""

from typing import Any

from klein import Klein
from msgspec import UNSET, Raw
from twisted.internet.defer import ensureDeferred, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.web.iweb import IRequest
from twisted.web.server import Site

from meshproto import __version__, wire
from meshproto.core.envelope import (
    BATCH_BYTES_MAX,
    BATCH_MESSAGES_MAX,
    MESSAGE_BYTES_MAX,
    SEALED_BYTES_MAX,
    check_message,
)
from meshproto.core.identity import Entropy, Identity, fingerprint, parse_address, unb64
from meshproto.core.outbox import Status
from meshproto.errors import BadParams, MeshError
from meshproto.net.asked import (
    SEND_BYTES_MAX,
    InboxQuery,
    OutboxQuery,
    SendBody,
    SendQuery,
    TrustBody,
    parse_body,
    parse_query,
    read_body,
)
from meshproto.net.clocks import NowMs
from meshproto.net.door import Door, owner
from meshproto.net.http import (
    LOOPBACK_HOSTS,
    BoundedRequest,
    answer_errors,
    answer_json,
    answer_problem,
    header,
    quiet_site,
)
from meshproto.net.receiving import Receiving
from meshproto.net.seeds import Seeds
from meshproto.net.sending import Outcome, Sending
from meshproto.net.user_store import Draft, Kept, UserStore
from meshproto.wire import ID_CHARS_MAX, encode_value, fold

# -- the routes ---------------------------------------------------------------------------------------------------


class Front:
    """`door`: who may be the owner; as it is made, whoever reaches a node that listens on loopback only."""

    app = Klein()
    log = Logger()

    def __init__(
        self,
        identity: Identity,
        seeds: Seeds,
        sending: Sending,
        receiving: Receiving,
        store: UserStore,
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
    ) -> None:
        self.door = Door(None, LOOPBACK_HOSTS)
        self._identity = identity
        self._seeds = seeds
        self._sending = sending
        self._receiving = receiving
        self._store = store
        self._clock = clock
        self._now_ms = now_ms
        self._entropy = entropy
        self._started = clock.seconds()

    # the owner's

    @app.route("/send", methods=["POST"])
    @owner
    async def send(self, request: IRequest) -> bytes:
        body = parse_body(read_body(request, SEND_BYTES_MAX), SendBody)
        return await self._send(request, body)

    @app.route("/send/<name>", methods=["POST"])
    @owner
    async def send_text(self, request: IRequest, name: str) -> bytes:
        text = read_body(request, SEND_BYTES_MAX)
        try:
            message = Raw(encode_value(text.decode("utf-8")))
        except UnicodeDecodeError as reason:
            raise BadParams(f"the body is not UTF-8 text ({reason}): send other bytes as base64") from None
        options = parse_query(request, SendQuery)
        body = SendBody(name, message, options.id, options.type, options.ttl, options.wait)
        return await self._send(request, body)

    async def _send(self, request: IRequest, body: SendBody) -> bytes:
        check_message(bytes(body.message))
        message_id = body.id or header(request, b"idempotency-key") or self._entropy(16).hex()
        if len(message_id) > ID_CHARS_MAX:
            raise BadParams(f"an id has at most {ID_CHARS_MAX} characters")
        if isinstance(body.to, str):
            return _outcome(request, await self._send_one(body.to, message_id, body))
        names = list(dict.fromkeys(body.to))
        sent = [ensureDeferred(self._try_one(name, message_id, body)) for name in names]
        return answer_json(request, {"results": await gatherResults(sent, consumeErrors=True)}, 207)

    async def _try_one(self, to: str, message_id: str, body: SendBody) -> dict[str, Any]:
        """One of several recipients: what came of it, whatever it is."""
        try:
            return _told(await self._send_one(to, message_id, body))
        except MeshError as error:
            return {"id": message_id, "to": to, "status": "failed", "code": error.code, "reason": _sentence(error)}

    async def _send_one(self, to: str, message_id: str, body: SendBody) -> Outcome:
        now_ms = self._now_ms()
        name, _ = parse_address(to)
        expires_at = now_ms + int(body.ttl * 1000)
        draft = Draft(fold(name), message_id, name, body.type, bytes(body.message), now_ms, expires_at)
        return await self._sending.send(to, draft, body.wait)

    @app.route("/inbox", methods=["GET"])
    @owner
    async def inbox(self, request: IRequest) -> bytes:
        wanted = parse_query(request, InboxQuery)
        sender = None if wanted.sender is UNSET else parse_address(wanted.sender)[0]
        page = await self._receiving.inbox(wanted.after, sender, wanted.limit, wanted.wait)
        messages = [
            {
                "cursor": message.cursor,
                "id": message.id,
                "from": message.sender,
                "type": message.type,
                "message": message.message,
                "sent_at": message.sent_at,
                "received_at": message.received_at,
            }
            for message in page.messages
        ]
        return answer_json(request, {"messages": messages, "next": page.next})

    @app.route("/outbox", methods=["GET"])
    @owner
    async def outbox(self, request: IRequest) -> bytes:
        wanted = parse_query(request, OutboxQuery)
        kept = await self._store.outbox(wanted.limit, waiting=wanted.waiting)
        ahead_ms = self._now_ms() - self._clock.seconds() * 1000
        recipients = [
            {
                "to": queue.to,
                "waiting": queue.waiting,
                "oldest_at": queue.oldest_at,
                "attempts": queue.attempts,
                "next_try_at": None if queue.next_try is None else int(queue.next_try * 1000 + ahead_ms),
                "reason": queue.reason,
            }
            for queue in self._sending.outbox.queues.values()
        ]
        return answer_json(request, {"messages": [self._shown(message) for message in kept], "recipients": recipients})

    @app.route("/outbox/<message_id>", methods=["GET"])
    @owner
    async def outbox_message(self, request: IRequest, message_id: str) -> bytes:
        shown = [self._shown(message) for message in await self._store.outbox_by_id(message_id)]
        return answer_json(request, shown[0] if len(shown) == 1 else {"results": shown})

    def _shown(self, kept: Kept) -> dict[str, Any]:
        status = self._sending.status_of(kept)
        queue = self._sending.outbox.queues.get(kept.recipient)
        reason = queue.reason if queue is not None and not status.final else kept.reason
        return {
            "id": kept.id,
            "to": kept.to,
            "status": status,
            "sent_at": kept.sent_at,
            "expires_at": kept.expires_at,
            "changed_at": kept.changed_at,
            "reason": reason,
        }

    @app.route("/lookup/<name>", methods=["GET"])
    @owner
    async def lookup(self, request: IRequest, name: str) -> bytes:
        located = await self._seeds.locate(parse_address(name)[0], fresh=True)
        record, said = located.record, located.said
        print_ = fingerprint(record.key_bytes)
        return answer_json(
            request,
            {
                "name": record.name,
                "key": record.key,
                "fingerprint": print_,
                "address": f"{record.name}~{print_}",
                "uris": record.uris,
                "seq": record.seq,
                "since": said.since if said else None,
                "home": said.home if said else None,
                "online": said.online if said else None,
                "seen": said.seen if said else None,
                "record": located.signed.record,
                "sig": located.signed.sig,
            },
        )

    @app.route("/seeds", methods=["GET"])
    @owner
    async def seeds(self, request: IRequest) -> bytes:
        home = self._seeds.home
        seeds = [
            {
                "name": seed.name,
                "address": seed.address,
                "alive": seed.alive if home is not None else None,
                "users": seed.users,
                "since": seed.since,
                "phi": seed.phi,
                "lag": seed.lag,
                "home": home is not None and home.name == seed.name,
            }
            for seed in self._seeds.seeds
        ]
        return answer_json(request, {"seeds": seeds})

    @app.route("/contacts", methods=["GET"])
    @owner
    async def contacts(self, request: IRequest) -> bytes:
        contacts = [
            {
                "name": contact.name,
                "key": contact.key,
                "fingerprint": fingerprint(unb64(contact.key)),
                "first_seen": contact.first_seen,
            }
            for contact in await self._store.contacts()
        ]
        return answer_json(request, {"contacts": contacts})

    @app.route("/contacts/<name>", methods=["PUT"])
    @owner
    async def trust(self, request: IRequest, name: str) -> bytes:
        body = parse_body(read_body(request, SEND_BYTES_MAX), TrustBody)
        record = await self._sending.trust(parse_address(name)[0], body.fingerprint)
        shown = {"name": record.name, "key": record.key, "fingerprint": fingerprint(record.key_bytes)}
        return answer_json(request, shown)

    @app.route("/status", methods=["GET"])
    @owner
    async def status(self, request: IRequest) -> bytes:
        messages, last = await self._store.totals()
        home, outbox = self._seeds.home, self._sending.outbox
        oldest = min((queue.oldest_at for queue in outbox.queues.values()), default=None)
        return answer_json(
            request,
            {
                "name": self._seeds.user,
                "fingerprint": self._identity.fingerprint,
                "address": f"{self._seeds.user}~{self._identity.fingerprint}",
                "version": __version__,
                "uptime_s": round(self._clock.seconds() - self._started, 3),
                "uris": self._seeds.uris,
                "home": None if home is None else home._asdict(),
                "registered": home is not None,
                "problem": self._seeds.problem,
                "seeds": len(self._seeds.seeds),
                "outbox": {"waiting": outbox.waiting, "recipients": len(outbox.queues), "oldest_at": oldest},
                "inbox": {"messages": messages, "next": last},
            },
        )

    # anyone's

    @app.route("/deliver", methods=["POST"])
    async def deliver(self, request: IRequest) -> bytes:
        answer = await self._receiving.deliver(read_body(request, SEALED_BYTES_MAX))
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
        await self._store.totals()
        return answer_json(request, {"status": "ok"})


# -- what goes out ------------------------------------------------------------------------------------------------


def _told(outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {"id": outcome.id, "to": outcome.to, "status": outcome.status}
    return told if outcome.reason is None else {**told, "reason": outcome.reason}


def _outcome(request: IRequest, outcome: Outcome) -> bytes:
    if outcome.status is Status.DELIVERED:
        return answer_json(request, _told(outcome))
    if not outcome.status.final:
        return answer_json(request, _told(outcome), 202)
    detail = outcome.reason or f"the message is {outcome.status}"
    return answer_problem(request, 409, f"message {outcome.status}", detail, id=outcome.id, to=outcome.to)


def _sentence(error: MeshError) -> str:
    return error.title if error.detail == error.title else f"{error.title}: {error.detail}"


# -- HTTP itself --------------------------------------------------------------------------------------------------

answer_errors(Front.app, Front.log)


class FrontRequest(BoundedRequest):
    body_bytes_max = SEALED_BYTES_MAX


def site(front: Front, reactor: Any) -> Site:
    """The HTTP server's factory."""
    return quiet_site(front.app, reactor, FrontRequest)
