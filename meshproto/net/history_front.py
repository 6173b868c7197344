"""The owner's routes for those who look at what was said: conversations, one of them, and a search. On Klein; see
:mod:`meshproto.net.front`."""

from typing import Any, Final

from klein import Klein
from msgspec import UNSET, UnsetType
from twisted.web.iweb import IRequest

from meshproto.core.identity import parse_address
from meshproto.net.asked import (
    SEND_BYTES_MAX,
    ConversationQuery,
    HistoryQuery,
    ReadBody,
    SearchQuery,
    parse_body,
    parse_query,
    read_body,
)
from meshproto.net.door import owner
from meshproto.net.history import History
from meshproto.net.history_file import Item, Sent
from meshproto.net.http import answer_errors, answer_json
from meshproto.net.receiving import shown
from meshproto.net.sending import Sending
from meshproto.net.shown import kept_shown
from meshproto.wire import fold

HISTORY_PATHS: Final = (b"/history", b"/search")


class HistoryFront:
    app = Klein()

    def __init__(self, history: History, sending: Sending) -> None:
        self._history = history
        self._sending = sending

    @app.route("/history", methods=["GET"])
    @owner
    async def conversations(self, request: IRequest) -> bytes:
        wanted = parse_query(request, HistoryQuery)
        before = _or_none(wanted.before)
        found = await self._history.ask(lambda file: file.conversations(before, wanted.limit))
        queues = self._sending.outbox.queues
        conversations = [
            {
                "name": one.peer if one.last is None else _name(one.last),
                "pos": one.pos,
                "unread": one.unread,
                "waiting": queues[one.peer].waiting if one.peer in queues else 0,
                "last": None if one.last is None else self._shown(one.last),
            }
            for one in found.result.conversations
        ]
        shown_ = {"conversations": conversations, "next": found.result.next, "behind": found.behind}
        return answer_json(request, shown_)

    @app.route("/history/<name>", methods=["GET"])
    @owner
    async def conversation(self, request: IRequest, name: str) -> bytes:
        wanted = parse_query(request, ConversationQuery)
        peer = _peer(name)
        where = (_or_none(wanted.before), _or_none(wanted.after), _or_none(wanted.around))
        page, behind = await self._history.ask(lambda file: file.page(peer, *where, wanted.limit))
        return answer_json(
            request,
            {
                "messages": [self._shown(item) for item in page.items],
                "before": page.before,
                "after": page.after,
                "total": page.total,
                "behind": behind,
            },
        )

    @app.route("/history/<name>", methods=["PUT"])
    @owner
    async def read(self, request: IRequest, name: str) -> bytes:
        body = parse_body(read_body(request, SEND_BYTES_MAX), ReadBody)
        peer = _peer(name)
        found = await self._history.ask(lambda file: file.read_up_to(peer, int(body.read)))
        return answer_json(request, {"unread": found.result})

    @app.route("/search", methods=["GET"])
    @owner
    async def search(self, request: IRequest) -> bytes:
        wanted = parse_query(request, SearchQuery)
        peer = None if wanted.name is UNSET else _peer(wanted.name)
        before = _or_none(wanted.before)
        hits, behind = await self._history.ask(lambda file: file.search(wanted.q, peer, before, wanted.limit))
        found = [{"with": _name(item), **self._shown(item), "snippet": item.snippet} for item in hits.items]
        return answer_json(request, {"hits": found, "next": hits.next, "behind": behind})

    def _shown(self, item: Item) -> dict[str, Any]:
        said = item.said
        if isinstance(said, Sent):
            of_it = {"direction": "out", "type": said.type, "message": said.message, "at": said.kept.sent_at}
            return {"pos": item.pos, **of_it, **kept_shown(said.kept, self._sending)}
        return {"pos": item.pos, "direction": "in", "at": said.received_at, **shown(said)}


def _name(item: Item) -> str:
    """Whom a message was from, or to."""
    return item.said.kept.to.partition("~")[0] if isinstance(item.said, Sent) else item.said.sender.name


def _peer(name: str) -> str:
    return fold(parse_address(name)[0])


def _or_none(pos: int | UnsetType) -> int | None:
    return None if pos is UNSET else pos


answer_errors(HistoryFront.app)
