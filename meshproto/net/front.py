"""The owner's routes of a user node, on Klein. With those for anyone (:mod:`meshproto.net.public_front`) they are what
docs/http.md tells people.

Errors are RFC 9457 problem documents. The routes are closed to all but the owner, by the door of the listener that a
request came through (:class:`meshproto.net.face.Face`).
"""

import heapq
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from klein import Klein
from msgspec import UNSET, Raw, UnsetType, structs
from twisted.internet.defer import ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest
from werkzeug.routing import BaseConverter

from meshproto import __version__
from meshproto.core.envelope import check_message
from meshproto.core.identity import Entropy, fingerprint, grouped, parse_address, parse_fingerprint
from meshproto.core.ids import MessageIds
from meshproto.core.queue import Status
from meshproto.errors import BadParams, KeyChanged, MeshError
from meshproto.net.accepting import Accepting, Order, Outcome, Taken
from meshproto.net.asked import (
    CANCEL_WAIT_S,
    RECIPIENTS_SHOWN_MAX,
    SEND_BYTES_MAX,
    InboxQuery,
    OutboxQuery,
    SendBody,
    SendQuery,
    ToQuery,
    TrustBody,
    idempotency_key,
    parse_body,
    parse_query,
    parse_stream,
    read_body,
)
from meshproto.net.bulk import Bulk
from meshproto.net.clocks import NowMs
from meshproto.net.contacts import Contacts
from meshproto.net.contract import document
from meshproto.net.deferred import together
from meshproto.net.doctor import Doctor
from meshproto.net.door import owner
from meshproto.net.exposition import CONTENT_TYPE, Family, text
from meshproto.net.front_request import FrontRequest
from meshproto.net.history import History
from meshproto.net.history_front import HistoryFront
from meshproto.net.http import answer_errors, answer_json, header
from meshproto.net.outbox_table import Draft
from meshproto.net.outflow import Outflow
from meshproto.net.programs import Programs
from meshproto.net.qr import answer_qr
from meshproto.net.receiving import Receiving, shown
from meshproto.net.seeds import Seeds
from meshproto.net.sending import Sending
from meshproto.net.shown import contact_shown, failed, kept_shown, outcome, recipient_shown
from meshproto.net.streams import EVENTS, LINES, Streams
from meshproto.net.user_store import UserStore
from meshproto.wire import ID_CHARS_MAX, encode_value, fold

Metrics = Callable[[], Awaitable[list[Family]]]


class _MessageId(BaseConverter):
    """The rest of a path, whatever it is."""

    regex = ".+"
    part_isolating = False


class Front:
    """`print_`: the fingerprint of the node's identity key, which stays; the keys themselves change."""

    app = Klein()
    app.url_map.merge_slashes = False  # an id may have any slashes
    app.url_map.converters["id"] = _MessageId

    def __init__(
        self,
        print_: str,
        seeds: Seeds,
        contacts: Contacts,
        accepting: Accepting,
        sending: Sending,
        receiving: Receiving,
        programs: Programs,
        history: History,
        doctor: Doctor,
        metrics: Metrics,
        store: UserStore,
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
    ) -> None:
        self._print = print_
        self._seeds = seeds
        self._contacts = contacts
        self._accepting = accepting
        self._sending = sending
        self._receiving = receiving
        self._programs = programs
        self.history = HistoryFront(history, sending)
        self._doctor = doctor
        self._metrics = metrics
        self._store = store
        self._clock = clock
        self._now_ms = now_ms
        self._ids = MessageIds(entropy)
        self._started = clock.seconds()
        self._bulks: set[Bulk] = set()
        self._streams = Streams(receiving, sending, store.outbox, seeds, clock, now_ms)

    @property
    def stream_readers(self) -> int:
        return self._streams.readers

    def stop(self) -> None:
        """Streams end with the results that are due."""
        for bulk in list(self._bulks):
            bulk.stop()
        self._streams.stop()

    # the owner's: sending

    @app.route("/send", methods=["POST"])
    @owner
    async def send(self, request: FrontRequest) -> bytes:
        if request.stream is not None:
            results = Outflow(request, b"application/x-ndjson", self._clock)
            make_order = partial(self._order, message_id=None)
            bulk = Bulk(request.stream, results, self._accepting, make_order, self._clock)
            self._bulks.add(bulk)
            try:
                await bulk.run()
            finally:
                self._bulks.discard(bulk)
                results.close()
            return b""
        body = parse_body(read_body(request, SEND_BYTES_MAX), SendBody)
        return await self._send(request, body)

    @app.route("/send/<name>", methods=["POST"])
    @owner
    async def send_text(self, request: IRequest, name: str) -> bytes:
        body_text = read_body(request, SEND_BYTES_MAX)
        try:
            message = Raw(encode_value(body_text.decode("utf-8")))
        except UnicodeDecodeError as reason:
            raise BadParams(f"the body is not UTF-8 text ({reason}): send other bytes as base64") from None
        options = parse_query(request, SendQuery)
        body = SendBody(name, message, options.id, options.type, options.ttl, options.wait)
        return await self._send(request, body)

    async def _send(self, request: IRequest, body: SendBody) -> bytes:
        key = idempotency_key(request)
        message_id = body.id or key
        if isinstance(body.to, str):
            return outcome(request, await self._accepting.send(self._order(body, message_id)))
        orders = self._orders(body, message_id or self._new_id())
        good = [order for order in orders.values() if isinstance(order, Order)]
        taken = iter(await self._accepting.take(good))
        sent = [
            ensureDeferred(self._result(name, order, next(taken) if isinstance(order, Order) else order))
            for name, order in orders.items()
        ]
        return answer_json(request, {"results": await together(sent)}, 207)

    def _order(self, body: SendBody, message_id: str | None) -> Order:
        check_message(bytes(body.message))
        message_id = body.id or message_id or self._new_id()
        if len(message_id) > ID_CHARS_MAX:
            raise BadParams(f"an id has at most {ID_CHARS_MAX} characters")
        to = str(body.to)
        name, print_ = parse_address(to)
        now_ms = self._now_ms()
        expires_at = now_ms + int(body.ttl * 1000)
        written = name if print_ is None else f"{name}~{print_}"
        draft = Draft(fold(name), message_id, written, body.type, bytes(body.message), now_ms, expires_at)
        return Order(to, draft, body.wait)

    def _orders(self, body: SendBody, message_id: str) -> dict[str, Order | MeshError]:
        """One for each name, or what is wrong with the name. Raises :class:`MeshError` when all would be wrong."""
        check_message(bytes(body.message))
        orders: dict[str, Order | MeshError] = {}
        for name in body.to:
            try:
                orders[name] = self._order(structs.replace(body, to=name), message_id)
            except MeshError as error:
                orders[name] = error
        return orders

    async def _result(self, to: str, order: Order | MeshError, taken: Taken | MeshError) -> Outcome | dict[str, Any]:
        """One of several recipients: what came of it, whatever it is."""
        if isinstance(taken, Taken):
            return await self._accepting.outcome(taken)
        known = {"id": order.draft.id} if isinstance(order, Order) else {}
        return failed(taken, **known, to=to)

    def _new_id(self) -> str:
        return self._ids.next(self._now_ms())

    # the owner's: what was sent

    @app.route("/outbox", methods=["GET"])
    @owner
    async def outbox(self, request: IRequest) -> bytes:
        wanted = parse_query(request, OutboxQuery)
        recipient = _folded(wanted.to)
        status = None if wanted.status is UNSET else _ON_DISK[wanted.status]
        after = None if wanted.after is UNSET else wanted.after
        page = await self._store.outbox.page(status, recipient, after, wanted.limit)
        queues = self._sending.outbox.queues
        wait = list(queues.values()) if recipient is None else [queues[recipient]] if recipient in queues else []
        longest = heapq.nsmallest(RECIPIENTS_SHOWN_MAX, wait, key=lambda queue: queue.oldest_at)
        ahead_ms = self._now_ms() - self._clock.seconds() * 1000
        return answer_json(
            request,
            {
                "messages": [kept_shown(message, self._sending) for message in page.messages],
                "next": page.next,
                "recipients": [recipient_shown(queue, ahead_ms) for queue in longest],
            },
        )

    @app.route("/outbox/<id:message_id>", methods=["GET"])
    @owner
    async def outbox_message(self, request: IRequest, message_id: str) -> bytes:
        wanted = parse_query(request, ToQuery)
        kept = await self._store.outbox.by_id(message_id, _folded(wanted.to))
        results = [kept_shown(message, self._sending) for message in kept]
        return answer_json(request, results[0] if len(results) == 1 else {"results": results})

    @app.route("/outbox/<id:message_id>", methods=["DELETE"])
    @owner
    async def cancel(self, request: IRequest, message_id: str) -> bytes:
        wanted = parse_query(request, ToQuery)
        kept = await self._store.outbox.by_id(message_id, _folded(wanted.to))
        ends = [ensureDeferred(self._sending.cancel(message, CANCEL_WAIT_S)) for message in kept]
        outcomes = [
            Outcome(message.id, message.to, end.status, end.reason)
            for message, end in zip(kept, await together(ends), strict=True)
        ]
        if len(outcomes) > 1:
            return answer_json(request, {"results": outcomes}, 207)
        return outcome(request, outcomes[0], wanted=Status.CANCELLED)

    @app.route("/outbox/retry", methods=["POST"])
    @owner
    async def retry(self, request: IRequest) -> bytes:
        wanted = parse_query(request, ToQuery)
        queues = self._sending.retry(None if wanted.to is UNSET else parse_address(wanted.to)[0])
        names = [queue.to for queue in queues]
        return answer_json(request, {"retried": names, "waiting": sum(queue.waiting for queue in queues)})

    # the owner's: what came

    @app.route("/inbox", methods=["GET"])
    @owner
    async def inbox(self, request: IRequest) -> bytes:
        wanted = parse_query(request, InboxQuery)
        sender, print_ = (None, None) if wanted.sender is UNSET else parse_address(wanted.sender)
        page = await self._receiving.inbox(wanted.after, sender, wanted.limit, wanted.wait, print_)
        return answer_json(request, {"messages": [shown(message) for message in page.messages], "next": page.next})

    @app.route("/inbox/stream", methods=["GET"])
    @owner
    async def stream(self, request: FrontRequest) -> bytes:
        wanted = parse_stream(request)
        form = LINES if "application/x-ndjson" in (header(request, b"accept") or "") else EVENTS
        if request.method == b"HEAD":
            request.setHeader(b"content-type", form.content_type)
        else:
            await self._streams.run(request, form, wanted)
        return b""

    # the owner's: the mesh as this node sees it

    @app.route("/lookup/<name>", methods=["GET"])
    @owner
    async def lookup(self, request: IRequest, name: str) -> bytes:
        bare, print_ = parse_address(name)
        located = await self._seeds.locate(bare, fresh=True, print_=print_)
        record, said = located.record, located.said
        found = fingerprint(record.key_bytes)
        return answer_json(
            request,
            {
                "name": record.name,
                "key": record.key,
                "fingerprint": found,
                "groups": grouped(found),
                "address": f"{record.name}~{found}",
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
        return answer_json(request, {"contacts": [contact_shown(one) for one in await self._store.contacts.all()]})

    @app.route("/contacts/<name>", methods=["GET"])
    @owner
    async def contact(self, request: IRequest, name: str) -> bytes:
        return answer_json(request, contact_shown(await self._contacts.get(*parse_address(name))))

    @app.route("/contacts/<name>/qr", methods=["GET"])
    @owner
    async def contact_qr(self, request: IRequest, name: str) -> bytes:
        contact = await self._contacts.get(*parse_address(name))
        return answer_qr(request, contact_shown(contact)["address"])

    @app.route("/qr", methods=["GET"])
    @owner
    async def qr(self, request: IRequest) -> bytes:
        return answer_qr(request, self._address)

    @property
    def _address(self) -> str:
        return f"{self._seeds.user}~{self._print}"

    @app.route("/contacts/<name>", methods=["PUT"])
    @owner
    async def trust(self, request: IRequest, name: str) -> bytes:
        body = parse_body(read_body(request, SEND_BYTES_MAX), TrustBody)
        (bare, print_), wanted = parse_address(name), parse_fingerprint(body.fingerprint)
        if print_ not in (None, wanted):
            raise KeyChanged(f"{name} has another fingerprint than the body, {wanted}")
        locate = partial(self._seeds.locate, bare, fresh=True, print_=wanted)
        contact = await self._contacts.trust(bare, wanted, locate)
        self._seeds.forget(bare)  # what is cached may be of the other key
        self._sending.wake(bare, alive=False)
        return answer_json(request, contact_shown(contact))

    @app.route("/contacts/<name>", methods=["DELETE"])
    @owner
    async def forget(self, request: IRequest, name: str) -> bytes:
        contact = await self._contacts.forget(*parse_address(name))
        self._seeds.forget(contact.name)
        return answer_json(request, contact_shown(contact))

    @app.route("/status", methods=["GET"])
    @owner
    async def status(self, request: IRequest) -> bytes:
        messages, last = await self._store.inbox.totals()
        home, outbox = self._seeds.home, self._sending.outbox
        oldest = min((queue.oldest_at for queue in outbox.queues.values()), default=None)
        return answer_json(
            request,
            {
                "name": self._seeds.user,
                "fingerprint": self._print,
                "groups": grouped(self._print),
                "address": self._address,
                "version": __version__,
                "uptime_s": round(self._clock.seconds() - self._started, 3),
                "uris": self._seeds.uris,
                "home": None if home is None else home._asdict(),
                "registered": self._seeds.registered,
                "problem": self._seeds.problem,
                "seed_answers": self._seeds.answered,
                "seeds": len(self._seeds.seeds),
                "outbox": {"waiting": outbox.waiting, "recipients": len(outbox.queues), "oldest_at": oldest},
                "inbox": {"messages": messages, "next": last},
                "contacts": {"key_changed": await self._store.contacts.changed()},
                "disk": self._store.problem,
                "programs": await self._programs.shown(),
            },
        )

    @app.route("/doctor", methods=["GET"])
    @owner
    async def doctor(self, request: IRequest) -> bytes:
        return answer_json(request, await self._doctor.report())

    @app.route("/metrics", methods=["GET"])
    @owner
    async def metrics(self, request: IRequest) -> bytes:
        request.setHeader(b"content-type", CONTENT_TYPE)
        return text(await self._metrics()).encode()

    @app.route("/openapi.json", methods=["GET"])
    @owner
    async def openapi(self, request: IRequest) -> bytes:
        public = isinstance(request, FrontRequest) and request.beside_public
        return answer_json(request, document(public=public))


_ON_DISK: Final = {
    "waiting": Status.QUEUED,
    "delivered": Status.DELIVERED,
    "expired": Status.EXPIRED,
    "refused": Status.REFUSED,
    "cancelled": Status.CANCELLED,
}


def _folded(name: str | UnsetType) -> str | None:
    return None if name is UNSET else fold(parse_address(name)[0])


answer_errors(Front.app)
