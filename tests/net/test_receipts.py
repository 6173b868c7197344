"""What a hostile recipient may answer to a batch: nothing of it makes a message delivered that is not.

Mallory's node is there, with Mallory's keys; in place of its HTTP face stands one that answers what a test says.
"""

from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import replace
from nacl.public import Box, PrivateKey, PublicKey
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from meshproto.core.envelope import Opened, open_batch, seal_receipt
from meshproto.core.identity import KEY_BYTES
from meshproto.core.queue import Status
from meshproto.net.courier import REASON_CHARS_MAX
from tests.world import USER_PORT, World

Reply = Callable[[Opened], bytes]


class Face(Resource):
    """`batches`: what came, opened."""

    isLeaf = True

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.batches: list[Opened] = []
        self.answers: list[bytes] = []
        self.reply: Reply = self.honest

    def render_POST(self, request: Request) -> bytes:
        assert request.content is not None
        self.batches.append(open_batch(request.content.read(), self._world.identities["Mallory"]))
        self.answers.append(self.reply(self.batches[-1]))
        return self.answers[-1]

    def receipt(self, opened: Opened, ids: list[str], refused: dict[str, str] | None = None) -> bytes:
        return seal_receipt(opened, ids, refused or {}, self._world.rng.randbytes)

    def honest(self, opened: Opened) -> bytes:
        return self.receipt(opened, [letter.id for letter in opened.batch.letters])


class Rig:
    def __init__(self) -> None:
        self.world = world = World(1)
        world.add_seed("seedX")
        for name in ("UserX", "Mallory"):
            world.add_user(name, seeds=["seedX"])
        world.run_until(world.registered)
        self.face = Face(world)
        host = world.hosts["Mallory"]
        host.tcpServers.clear()
        host.listenTCP(USER_PORT, Site(self.face, reactor=host))

    def send(self, message_id: str, to: str = "Mallory", wait: float = 0.5) -> str:
        """What becomes of the message within `wait` seconds."""
        answer = self.world.send("UserX", to, f"text of {message_id}", id=message_id, wait=wait)
        return str(answer.json.get("status") if answer.code < 300 else answer.json["title"])

    def status(self, message_id: str) -> str:
        self.world.settle()
        return str(self.world.get("UserX", f"/outbox/{message_id}").json["status"])

    def reason(self) -> str:
        (queue,) = self.world.users["UserX"].sending.outbox.queues.values()
        return str(queue.reason)

    def on_disk(self, status: Status) -> int:
        query = f"SELECT count(*) FROM outbox WHERE status = '{status}'"
        return int(self.world.on_disk("UserX", query))


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.world.close()


def test_an_honest_receipt(rig: Rig) -> None:
    """So that the others say something."""
    assert rig.send("a") == "delivered"
    assert rig.on_disk(Status.DELIVERED) == 1


def test_a_receipt_of_another_node(rig: Rig) -> None:
    """Sealed with a key that is not the recipient's: whoever lives at the address cannot take the mail for them."""
    other = PrivateKey(rig.world.rng.randbytes(KEY_BYTES))
    rig.face.reply = lambda opened: rig.face.honest(
        replace(opened, box=Box(other, PublicKey(opened.sender.mail_bytes)))
    )
    assert rig.send("a") == "queued"
    assert rig.reason().startswith("the answer is not the recipient's sealed receipt")
    assert rig.on_disk(Status.DELIVERED) == 0


def test_a_receipt_for_another_batch(rig: Rig) -> None:
    """One that was good once says nothing of what was sent since, though it names the same id."""
    assert rig.send("a") == "delivered"
    once = rig.face.answers[-1]
    rig.face.reply = lambda opened: once
    assert rig.send("b") == "queued"
    assert rig.reason() == "the receipt is for another batch"
    again = rig.face.batches[0]
    letters = rig.face.batches[-1].batch.letters
    stale = replace(again, batch=replace(again.batch, letters=letters))
    rig.face.reply = lambda opened: rig.face.honest(stale)
    rig.world.run(10)
    assert rig.reason() == "the receipt is for another batch"
    assert rig.on_disk(Status.DELIVERED) == 1


def test_a_receipt_for_ids_that_were_not_sent(rig: Rig) -> None:
    """Neither unknown ones, nor one that waits for somebody else."""
    rig.world.add_user("Dora", seeds=["seedX"])
    rig.world.run_until(rig.world.registered)
    rig.world.stop("Dora")
    assert rig.send("for Dora", to="Dora") == "queued"
    rig.face.reply = lambda opened: rig.face.receipt(opened, ["for Dora", "nobody's", "b", ""])
    assert rig.send("a") == "queued"
    assert rig.world.users["UserX"].sending.why("mallory") == "the recipient's node acknowledged nothing"
    assert rig.on_disk(Status.DELIVERED) == 0
    assert rig.status("for%20Dora") == "delivering"  # was tried, and waits


def test_a_refusal_of_ids_that_were_not_sent(rig: Rig) -> None:
    rig.world.add_user("Dora", seeds=["seedX"])
    rig.world.run_until(rig.world.registered)
    rig.world.stop("Dora")
    assert rig.send("for Dora", to="Dora") == "queued"
    rig.face.reply = lambda opened: rig.face.receipt(opened, [], {"for Dora": "no", "nobody's": "no"})
    assert rig.send("a") == "queued"
    assert rig.on_disk(Status.REFUSED) == 0


def test_a_receipt_that_says_everything_twice(rig: Rig) -> None:
    """An id that is acknowledged three times is delivered once; one both acknowledged and refused is on their disk;
    what is not named waits and is sent again."""
    rig.face.reply = lambda opened: b"{}"  # so that the three wait for each other
    for message_id in ("a", "b", "c"):
        assert rig.send(message_id, wait=0) == "queued"
    rig.face.reply = lambda opened: rig.face.receipt(opened, ["a", "a", "b", "a"], {"b": "no", "a": "no"})
    rig.world.users["UserX"].sending.retry(None)
    rig.world.run(1)
    assert (rig.status("a"), rig.status("b")) == ("delivered", "delivered")
    assert rig.status("c") not in ("delivered", "refused")
    assert rig.on_disk(Status.DELIVERED) == 2
    rig.face.reply = rig.face.honest
    rig.world.run(60)
    assert rig.status("c") == "delivered"
    assert [letter.id for letter in rig.face.batches[-1].batch.letters] == ["c"]


def test_the_words_of_a_refusal(rig: Rig) -> None:
    """They are kept with the message: spelled out, and not longer than a reason is."""
    rig.face.reply = lambda opened: rig.face.receipt(opened, [], {"a": "\x1b[2J\n" + "x" * 100_000})
    rig.send("a")
    told = rig.world.get("UserX", "/outbox/a").json
    assert told["status"] == "refused"
    assert told["reason"].startswith(r"\x1b[2J\nxxx") and len(told["reason"]) == REASON_CHARS_MAX
