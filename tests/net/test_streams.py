"""`GET /inbox/stream`, in the fake world."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from meshproto.net import streams
from meshproto.net.asked import CURSOR_DIGITS_MAX, PRESENCE_NAMES_MAX
from meshproto.net.outflow import STALL_S, Outflow
from meshproto.net.streams import ALIVE_S, CHANGES_MAX, CHANGES_S, PAGE_MESSAGES, STREAMS_MAX
from tests.net.raw_http import RawHTTP
from tests.world import World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(seed=7)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run(1)
    yield world
    world.close()


TOO_MANY_NAMES = f"?events=presence&names={','.join(f'u{number}' for number in range(PRESENCE_NAMES_MAX + 1))}"


class Reader(RawHTTP):
    """Of UserX's stream."""

    def __init__(self, world: World, query: str = "", accept: str = "text/event-stream", **headers: str) -> None:
        super().__init__(world, "UserX")
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        asked = f"GET /inbox/stream{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accept}\r\n{more}\r\n"
        self.say(asked.encode())

    @property
    def events(self) -> list[tuple[str, Any]]:
        """What came as Server-Sent Events, read as their specification has it: kind and data."""
        found = []
        for block in self.text.decode().split("\n\n")[:-1]:
            fields: dict[str, str] = {}
            for line in block.split("\n"):
                name, _, value = line.partition(":")
                fields[name] = fields.get(name, "") + value.removeprefix(" ")
            if "event" in fields:
                found.append((fields["event"], json.loads(fields["data"]) | {"_id": fields.get("id")}))
        return found

    def of(self, event: str) -> list[Any]:
        return [data for kind, data in self.events if kind == event]

    @property
    def messages(self) -> list[Any]:
        return [data["message"] for data in self.of("message")]


class TestMessages:
    def test_as_they_come(self, world: World) -> None:
        """First where it begins, then each message as it comes, with its cursor as id; nothing of what came before."""
        world.send("Bobby", "UserX", "before")
        reader = Reader(world)
        assert reader.status == 200
        assert b"\r\ncontent-type: text/event-stream" in reader.heard.lower()
        world.send("Bobby", "UserX", {"b": [1, "zwei"]})
        world.send("Bobby", "UserX", "three")
        assert [kind for kind, _ in reader.events] == ["open", "message", "message"]
        (opened,) = reader.of("open")
        assert (opened["cursor"], opened["_id"], opened["now"]) == (1, "1", world.hosts["UserX"].now_ms())
        assert [(one["_id"], one["cursor"], one["message"]) for one in reader.of("message")] == [
            ("2", 2, {"b": [1, "zwei"]}),
            ("3", 3, "three"),
        ]
        same = world.get("UserX", "/inbox?after=1").json["messages"]
        assert [{**one, "_id": str(one["cursor"])} for one in same] == reader.of("message")

    def test_as_lines(self, world: World) -> None:
        """The same with `Accept: application/x-ndjson`: a line of JSON each, also for a message on several lines."""
        reader = Reader(world, accept="application/x-ndjson")
        world.post("Bobby", "/send", b'{"to": "UserX", "message": {\n"a":\r\n [1,\n 2]}}')
        assert b"\r\ncontent-type: application/x-ndjson" in reader.heard.lower()
        opened, message = reader.results
        assert (opened["event"], message["event"], message["message"]) == ("open", "message", {"a": [1, 2]})
        world.run(ALIVE_S)
        assert reader.results[-1] == {"event": "alive"}

    def test_a_message_on_several_lines(self, world: World) -> None:
        reader = Reader(world)
        world.post("Bobby", "/send", b'{"to": "UserX", "message": {\n"a":\r\n [1,\n 2]}}')
        assert reader.messages == [{"a": [1, 2]}]

    def test_resumed(self, world: World) -> None:
        """Who comes again with the id of the last event gets what they missed, once and in order, however much it is;
        the id counts more than the query, which is the same each time."""
        for number in range(2 * PAGE_MESSAGES + 5):
            world.send("Bobby", "UserX", number, wait=0)
        first = Reader(world, "?after=3")
        world.run(1)
        assert first.messages == list(range(3, 2 * PAGE_MESSAGES + 5))
        first.hang_up()
        world.send("Bobby", "UserX", "missed")
        world.send("Bobby", "UserX", "missed too")
        second = Reader(world, "?after=3", Last_Event_ID=first.of("message")[-1]["_id"])
        world.send("Bobby", "UserX", "live")
        assert second.messages == ["missed", "missed too", "live"]

    def test_of_one_sender(self, world: World) -> None:
        world.add_user("Carol", seeds=["seedX"])
        world.run(1)
        print_ = world.identities["Carol"].fingerprint
        readers = [
            Reader(world, "?from=carol"),
            Reader(world, f"?from=Carol~{print_}"),
            Reader(world, "?from=Bobby~" + print_),
        ]
        world.send("Bobby", "UserX", "from Bobby")
        world.send("Carol", "UserX", "from Carol")
        assert [reader.messages for reader in readers] == [["from Carol"], ["from Carol"], []]

    def test_two_readers(self, world: World) -> None:
        """Each has all; who goes takes nothing from the other."""
        readers = [Reader(world), Reader(world)]
        world.send("Bobby", "UserX", 1)
        readers[0].hang_up()
        world.send("Bobby", "UserX", 2)
        assert readers[1].messages == [1, 2]


class TestOutbox:
    def test_states(self, world: World) -> None:
        """A message's states as they change, and how its recipient's queue is; nothing of the inbox, which is not
        asked for."""
        reader = Reader(world, "?events=outbox")
        world.stop("Bobby")
        sent = world.send("UserX", "Bobby", "hello", wait=0).json
        world.run(CHANGES_S)
        (queued,) = reader.of("outbox")
        assert (queued["id"], queued["to"], queued["status"]) == (sent["id"], "Bobby", "delivering")
        world.run(1)
        assert reader.of("recipient")[-1]["waiting"] == 1
        assert reader.of("recipient")[-1]["reason"] == world.get("UserX", "/outbox").json["recipients"][0]["reason"]
        world.restart("Bobby")
        world.run(5)
        same = world.get("UserX", f"/outbox/{sent['id']}").json
        assert same["status"] == "delivered"
        assert reader.of("outbox")[-1] == {**same, "_id": None}
        assert reader.of("recipient")[-1] == {
            "to": "Bobby",
            "waiting": 0,
            "oldest_at": 0,
            "attempts": 0,
            "next_try_at": None,
            "reason": None,
            "_id": None,
        }
        world.send("Bobby", "UserX", "an answer")
        assert reader.messages == []

    def test_cancelled(self, world: World) -> None:
        world.stop("Bobby")
        reader = Reader(world, "?events=outbox,message")
        sent = world.send("UserX", "Bobby", "hello", wait=0).json
        world.run(1)
        world.ask("DELETE", "UserX", f"/outbox/{sent['id']}")
        world.run(1)
        assert reader.of("outbox")[-1]["status"] == "cancelled"

    def test_more_than_anybody_reads(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond CHANGES_MAX that nobody has read it is told how many are not told one by one."""
        monkeypatch.setattr(streams, "CHANGES_MAX", 10)
        world.stop("Bobby")
        reader = Reader(world, "?events=outbox")
        client = RawHTTP(world, "UserX")
        client.begin()
        client.lines(*({"to": "Bobby", "message": number} for number in range(25)))
        client.end()
        world.run(1)
        missed = [data["missed"] for data in reader.of("outbox") if "missed" in data]
        told = [data for data in reader.of("outbox") if "missed" not in data]
        assert sum(missed) + len(told) == 25
        assert sum(missed) > 0
        assert CHANGES_MAX > 10


class TestPresence:
    def test_who_is_there(self, world: World) -> None:
        """Of each name as it is at first, then when it changes; of one that nobody has, that nothing is known."""
        reader = Reader(world, "?events=presence&names=Bobby,nobody")
        world.run(1)
        first = {data["name"]: data["online"] for data in reader.of("presence")}
        assert first == {"Bobby": True, "nobody": None}
        world.stop("Bobby")
        world.run(5)
        assert [(data["name"], data["online"]) for data in reader.of("presence")[2:]] == [("Bobby", False)]
        world.restart("Bobby")
        world.run(5)
        assert [(data["name"], data["online"]) for data in reader.of("presence")[3:]] == [("Bobby", True)]

    def test_when_the_home_changes(self, world: World) -> None:
        """Whoever went while this node had no home is found to be away once it has one."""
        reader = Reader(world, "?events=presence&names=Bobby")
        world.run(1)
        world.crash("seedX")
        world.run(1)
        world.stop("Bobby")
        world.restart("seedX")
        world.run(120)
        assert [data["online"] for data in reader.of("presence")][-1] is not True

    def test_looked_at_while_messages_wait(self, world: World) -> None:
        """That a message has been delivered does not end it; nor does a reader who goes end another's."""
        readers = [Reader(world, "?events=presence&names=Bobby") for _ in range(2)]
        world.run(1)
        world.stop("Bobby")
        world.send("UserX", "Bobby", "hello", wait=0)
        world.run(5)
        world.restart("Bobby")
        world.run(5)
        assert world.inbox("Bobby") == ["hello"]
        readers[0].hang_up()
        world.stop("Bobby")
        world.run(5)
        assert [data["online"] for data in readers[1].of("presence")] == [True, False, True, False]

    def test_nobody_looks_any_more(self, world: World) -> None:
        """The seed is asked to tell no more."""
        reader = Reader(world, "?events=presence&names=Bobby")
        world.run(2)
        core, links = world.cores["seedX"], range(100)
        assert [core.watches(link, "bobby") for link in links].count(True) == 2  # one is Bobby's own
        reader.hang_up()
        world.run(1)
        assert [core.watches(link, "bobby") for link in links].count(True) == 1


class TestSlowReaders:
    def paused(self, world: World, monkeypatch: pytest.MonkeyPatch) -> tuple[Reader, Outflow]:
        made: list[Outflow] = []

        class Made(Outflow):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                made.append(self)

        monkeypatch.setattr(streams, "Outflow", Made)
        reader = Reader(world, "?events=message,outbox")
        made[0].pauseProducing()  # as the transport does when its buffer is full
        return reader, made[0]

    def test_nothing_is_kept_for_them(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """While a reader takes nothing, nothing is written; then they get all."""
        reader, outflow = self.paused(world, monkeypatch)
        for number in range(50):
            world.send("Bobby", "UserX", number, wait=0)
        world.run(STALL_S / 2)
        assert [kind for kind, _ in reader.events] == ["open"]
        outflow.resumeProducing()
        world.run(1)
        assert reader.messages == list(range(50))

    def test_who_takes_nothing_at_all(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, _ = self.paused(world, monkeypatch)
        world.run(STALL_S + 1)
        assert reader.closed


class TestEnds:
    def test_the_node_stops(self, world: World) -> None:
        """It is said, and the answer ends in good order."""
        reader = Reader(world)
        world.users["UserX"].front.stop()
        world.settle()
        assert reader.of("end")[0]["status"] == 503
        assert reader.over

    def test_the_disk_does_not_read(self, world: World) -> None:
        reader = Reader(world)
        world.troubles["UserX"].blind = 1.0
        world.send("Bobby", "UserX", "hello", wait=0)
        world.run(1)
        world.users["UserX"].receiving.listeners.copy().pop()()
        world.run(1)
        assert reader.of("end")[0]["status"] == 503
        assert reader.over

    def test_alive(self, world: World) -> None:
        """Something comes every ALIVE_S, for hours."""
        reader = Reader(world)
        world.run(7200)
        assert reader.text.count(b": alive\n\n") == 7200 // ALIVE_S
        assert not reader.closed


class TestAsked:
    @pytest.mark.parametrize(
        "query", ["?events=all", "?events=", "?after=-1", "?after=x", "?from=", "?names=a%20b", TOO_MANY_NAMES]
    )
    def test_wrong_queries(self, world: World, query: str) -> None:
        assert Reader(world, query).status == 400

    @pytest.mark.parametrize("given", ["x", "-1", "1" * (CURSOR_DIGITS_MAX + 1), "²"])
    def test_wrong_ids(self, world: World, given: str) -> None:
        assert Reader(world, Last_Event_ID=given).status == 400

    def test_too_many(self, world: World) -> None:
        """STREAMS_MAX at a time; when one ends there is room."""
        readers = [Reader(world) for _ in range(STREAMS_MAX)]
        assert Reader(world).status == 429
        readers[0].hang_up()
        assert Reader(world).status == 200

    def test_head(self, world: World) -> None:
        """It is answered like any other, and the connection goes on."""
        client = RawHTTP(world, "UserX")
        for path in ("/inbox/stream", "/status"):
            client.say(f"HEAD {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert client.heard.count(b"HTTP/1.1 200 OK") == 2
        assert b"text/event-stream" in client.heard

    def test_for_the_owner_alone(self, world: World) -> None:
        assert Reader(world, Origin="https://example.com").status == 403
