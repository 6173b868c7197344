"""`GET /history`, `GET /history/NAME`, `PUT /history/NAME` and `GET /search`, in the fake world."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from meshproto.errors import MeshError
from meshproto.net import history, history_file
from meshproto.net.asked import HISTORY_PAGE_MAX
from meshproto.net.history import ASKED_MAX, AT_ONCE_PORTIONS
from meshproto.net.history_file import QUERY_CHARS_MAX, SCHEMA, TEXT_CHARS_MAX, expression
from meshproto.net.retention import Keep
from tests.world import Answer, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(seed=3)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby", "Carol"):
        world.add_user(name, seeds=["seedX"])
    world.run(1)
    world.get("UserX", "/history")
    yield world
    world.close()


def on_disk(directory: Path) -> World:
    world = World(seed=3, directory=directory)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedX"])
    world.run(1)
    return world


def say(world: World, sender: str, to: str, *messages: Any) -> None:
    for message in messages:
        assert world.send(sender, to, message).json["status"] == "delivered"
        world.run(0.01)


def conversations(world: World, query: str = "") -> list[Any]:
    answer = world.get("UserX", f"/history{query}")
    assert answer.code == 200, answer
    return list(answer.json["conversations"])


def page(world: World, query: str = "", name: str = "Bobby") -> Any:
    answer = world.get("UserX", f"/history/{name}{query}")
    assert answer.code == 200, answer
    return answer.json


def texts(found: Any) -> list[Any]:
    return [item["message"] for item in found["messages"]]


def search(world: World, words: str, more: str = "") -> list[Any]:
    answer = world.get("UserX", f"/search?q={quote(words)}{more}")
    assert answer.code == 200, answer
    return [hit["message"] for hit in answer.json["hits"]]


class TestConversations:
    def test_latest_first(self, world: World) -> None:
        """One for each with whom something was said, however they spell themselves, with what was said last."""
        say(world, "Bobby", "UserX", "hello")
        say(world, "UserX", "carol", "hello Carol")
        say(world, "UserX", "BOBBY", "hello Bobby")
        bobby, carol = conversations(world)
        assert (bobby["last"]["message"], bobby["last"]["direction"], bobby["last"]["status"]) == (
            "hello Bobby",
            "out",
            "delivered",
        )
        assert (bobby["name"], carol["name"], carol["last"]["message"]) == ("BOBBY", "carol", "hello Carol")
        say(world, "Carol", "UserX", {"a": 1})
        first = conversations(world)[0]
        assert (first["name"], first["last"]["message"], first["last"]["from"]["name"]) == ("Carol", {"a": 1}, "Carol")

    def test_pages(self, world: World) -> None:
        say(world, "UserX", "Bobby", 1)
        say(world, "UserX", "Carol", 2)
        answer = world.get("UserX", "/history?limit=1").json
        assert [one["name"] for one in answer["conversations"]] == ["Carol"]
        rest = world.get("UserX", f"/history?limit=1&before={answer['next']}").json
        assert [one["name"] for one in rest["conversations"]] == ["Bobby"]

    def test_what_waits(self, world: World) -> None:
        world.crash("Bobby")
        world.send("UserX", "Bobby", "later", wait=0)
        world.run(1)
        (bobby,) = conversations(world)
        assert (bobby["waiting"], bobby["unread"], bobby["last"]["status"]) == (1, 0, "delivering")
        assert bobby["last"]["reason"]

    def test_unread(self, world: World) -> None:
        """What came is unread until it is said to have been read, up to some message."""
        say(world, "Bobby", "UserX", 1, 2)
        say(world, "UserX", "Bobby", "mine")
        say(world, "Bobby", "UserX", 3)
        assert conversations(world)[0]["unread"] == 3
        second = page(world)["messages"][1]["pos"]
        assert world.ask("PUT", "UserX", "/history/bobby", {"read": second}).json == {"unread": 1}
        assert conversations(world)[0]["unread"] == 1
        assert world.ask("PUT", "UserX", "/history/Bobby", {"read": second - 1}).json == {"unread": 1}
        assert world.ask("PUT", "UserX", "/history/Bobby", {"read": 2**52}).json == {"unread": 0}
        say(world, "Bobby", "UserX", 4)
        assert conversations(world)[0]["unread"] == 1
        assert world.ask("PUT", "UserX", "/history/Nobody", {"read": 1}).json == {"unread": 0}

    def test_it_is_remembered(self, tmp_path: Path) -> None:
        """What was read is, also after a start of the node."""
        world = on_disk(tmp_path)
        page(world)
        say(world, "Bobby", "UserX", 1)
        world.ask("PUT", "UserX", "/history/Bobby", {"read": 2**52})
        world.stop("UserX")
        world.restart("UserX")
        world.run(5)
        say(world, "Bobby", "UserX", 2)
        assert conversations(world)[0]["unread"] == 1
        world.close()

    def test_what_was_there_before_anybody_looked(self) -> None:
        """Has been read: by whom the messages were for until then."""
        world = World(seed=3)
        world.add_seed("seedX")
        world.add_user("UserX", seeds=["seedX"])
        world.add_user("Bobby", seeds=["seedX"])
        world.run(1)
        say(world, "Bobby", "UserX", 1, 2)
        assert conversations(world)[0]["unread"] == 0
        say(world, "Bobby", "UserX", 3)
        assert conversations(world)[0]["unread"] == 1
        world.close()


class TestConversation:
    def test_both_sides_in_order(self, world: World) -> None:
        """As they were said, with all that the inbox and the outbox tell of each."""
        for number in range(5):
            say(world, "Bobby", "UserX", f"in {number}")
            say(world, "UserX", "Bobby", f"out {number}")
        say(world, "Carol", "UserX", "of somebody else")
        found = page(world)
        assert texts(found) == [f"{side} {number}" for number in range(5) for side in ("in", "out")]
        assert (found["total"], found["before"], found["after"], found["behind"]) == (10, None, None, 0)
        came, sent = found["messages"][:2]
        (same,) = world.get("UserX", "/inbox?limit=1").json["messages"]
        assert came == {"pos": came["pos"], "direction": "in", "at": same["received_at"], **same}
        same = world.get("UserX", f"/outbox/{sent['id']}").json
        said = {"direction": "out", "type": "", "message": "out 0", "at": same["sent_at"]}
        assert sent == {"pos": sent["pos"], **said, **same}

    def test_pages(self, world: World) -> None:
        """From the latest backwards, from any message forwards, and around one; all of it, nothing twice."""
        say(world, "Bobby", "UserX", *range(10))
        latest = page(world, "?limit=4")
        assert (texts(latest), latest["after"]) == ([6, 7, 8, 9], None)
        middle = page(world, f"?limit=4&before={latest['before']}")
        assert (texts(middle), middle["after"] is None) == ([2, 3, 4, 5], False)
        first = page(world, f"?limit=4&before={middle['before']}")
        assert (texts(first), first["before"]) == ([0, 1], None)
        assert texts(page(world, f"?limit=3&after={first['after']}")) == [2, 3, 4]
        fifth = middle["messages"][3]["pos"]
        around = page(world, f"?limit=4&around={fifth}")
        assert texts(around) == [3, 4, 5, 6]
        assert None not in (around["before"], around["after"])
        assert texts(page(world, f"?limit=4&after={latest['messages'][-1]['pos']}")) == []

    def test_large_messages(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A page has PAGE_BYTES_MAX of them at most, and one message at least; nothing is left out between pages."""
        monkeypatch.setattr(history_file, "PAGE_BYTES_MAX", 1000)
        say(world, "Bobby", "UserX", *(f"{number} " + "x" * 400 for number in range(6)))
        say(world, "Bobby", "UserX", "6 " + "x" * 2000)
        say(world, "Carol", "UserX", "a " + "x" * 900)

        def numbers(query: str) -> str:
            return "".join(text[0] for text in texts(page(world, query)))

        assert numbers("") == "6"
        before = page(world)["before"]
        assert numbers(f"?before={before}") == "45"
        fourth = page(world, f"?before={before}")["before"]
        assert numbers(f"?before={fourth}") == "23"
        assert numbers(f"?after={page(world, f'?before={fourth}')['after']}") == "45"
        assert numbers(f"?around={fourth}") in ("34", "45")
        answer = world.get("UserX", "/history").json
        assert [one["name"] for one in answer["conversations"]] == ["Carol"]
        rest = world.get("UserX", f"/history?before={answer['next']}").json
        assert ([one["name"] for one in rest["conversations"]], rest["next"]) == (["Bobby"], None)
        found: list[str] = []
        more: str | None = ""
        while more is not None:
            hits = world.get("UserX", f"/search?q=xx{more}").json
            assert 1 <= len(hits["hits"]) <= 2
            found += [hit["message"][0] for hit in hits["hits"]]
            more = None if hits["next"] is None else f"&before={hits['next']}"
        assert found == list("a6543210")

    def test_nobody(self, world: World) -> None:
        assert page(world, name="Nobody") == {"messages": [], "before": None, "after": None, "total": 0, "behind": 0}

    def test_states_are_those_of_now(self, world: World) -> None:
        world.crash("Bobby")
        sent = world.send("UserX", "Bobby", "later", wait=0).json
        world.run(1)
        assert page(world)["messages"][0]["status"] == "delivering"
        world.ask("DELETE", "UserX", f"/outbox/{sent['id']}")
        world.run(1)
        assert page(world)["messages"][0]["status"] == "cancelled"

    @pytest.mark.parametrize(
        "query",
        [
            "/Bobby?limit=0",
            f"/Bobby?limit={HISTORY_PAGE_MAX + 1}",
            "/Bobby?before=-1",
            "/no%20name",
            "?limit=x",
        ],
    )
    def test_wrong_queries(self, world: World, query: str) -> None:
        assert world.get("UserX", f"/history{query}").code == 400

    def test_wrong_bodies(self, world: World) -> None:
        for body in ({}, {"read": -1}, {"read": "1"}, b"{"):
            assert world.ask("PUT", "UserX", "/history/Bobby", body).code == 400


class TestSearch:
    def test_words(self, world: World) -> None:
        """All words, in any case and without accents; the last may be unfinished; the newest first."""
        say(world, "Bobby", "UserX", "The quick brown fox", "a quick Résumé", {"fox": ["brown", "bear"]})
        say(world, "UserX", "Carol", "quickly done")
        assert search(world, "quick fox") == ["The quick brown fox"]
        assert search(world, "resume") == ["a quick Résumé"]
        assert search(world, "QUICK") == ["quickly done", "a quick Résumé", "The quick brown fox"]
        assert search(world, "quick ") == ["a quick Résumé", "The quick brown fox"]
        assert search(world, '"brown fox"') == ["The quick brown fox"]
        assert search(world, '"fox brown"') == [{"fox": ["brown", "bear"]}]
        assert search(world, "bear fox") == [{"fox": ["brown", "bear"]}]
        assert search(world, "nothing") == []

    def test_with_one(self, world: World) -> None:
        say(world, "Bobby", "UserX", "lunch?")
        say(world, "UserX", "Bobby", "lunch!")
        say(world, "Carol", "UserX", "lunch.")
        assert search(world, "lunch", "&with=bobby") == ["lunch!", "lunch?"]

    def test_a_hit(self, world: World) -> None:
        """Where it was found, whom it was said with, and its place in the conversation."""
        say(world, "Bobby", "UserX", *("before",) * 3, "well, the needle in a stack of hay", *("after",) * 3)
        answer = world.get("UserX", "/search?q=needle").json
        (hit,) = answer["hits"]
        assert (hit["with"], hit["direction"]) == ("Bobby", "in")
        assert hit["snippet"] == "well, the \x02needle\x03 in a stack of hay"
        assert hit["message"] in texts(page(world, f"?around={hit['pos']}&limit=3"))

    def test_pages(self, world: World) -> None:
        say(world, "Bobby", "UserX", *(f"word {number}" for number in range(5)))
        first = world.get("UserX", "/search?q=word&limit=3").json
        second = world.get("UserX", f"/search?q=word&limit=3&before={first['next']}").json
        assert [hit["message"] for hit in (*first["hits"], *second["hits"])] == [f"word {n}" for n in range(4, -1, -1)]
        assert second["next"] is None

    def test_of_long_texts(self, world: World) -> None:
        """The first TEXT_CHARS_MAX characters can be searched for."""
        say(world, "Bobby", "UserX", "first " + "x" * TEXT_CHARS_MAX + " last")
        assert len(search(world, "first")) == 1
        assert search(world, "last") == []

    def test_half_a_character(self, world: World) -> None:
        """JSON may have it, and whoever searches is answered all the same."""
        assert world.post("Bobby", "/send", b'{"to": "UserX", "message": "odd \\ud800 text"}').code in (200, 400)
        say(world, "Bobby", "UserX", "even text")
        assert "even text" in search(world, "text")

    def test_it_takes_too_long(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is given up, and others are answered."""
        say(world, "Bobby", "UserX", *(f"word {number}" for number in range(20)))
        search(world, "word")
        monkeypatch.setattr(history_file, "SEARCH_S", -1.0)
        monkeypatch.setattr(history_file, "_STEPS", 1)
        answer = world.get("UserX", "/search?q=word")
        assert (answer.code, "give more words" in answer.json["detail"]) == (503, True)
        assert conversations(world)[0]["name"] == "Bobby"

    @pytest.mark.parametrize("query", [" ", '""', "- !"])
    def test_no_words(self, world: World, query: str) -> None:
        say(world, "Bobby", "UserX", "- ! word")
        assert search(world, query) == []

    @pytest.mark.parametrize("query", ["", "?q=", "?q=a&with=%20", "?q=" + "a" * (QUERY_CHARS_MAX + 1)])
    def test_wrong_queries(self, world: World, query: str) -> None:
        assert world.get("UserX", f"/search{query}").code == 400

    @given(st.text(max_size=QUERY_CHARS_MAX))
    def test_no_query_is_an_error_of_ours(self, query: str) -> None:
        """Whatever is typed: it has words, and SQLite understands it, or it has none."""
        wanted = expression(query)
        if wanted:
            WORDS.execute("SELECT count(*) FROM words WHERE words MATCH ?", (wanted,)).fetchone()


WORDS = sqlite3.connect(":memory:", check_same_thread=False)
WORDS.executescript(SCHEMA)


class TestCatchingUp:
    def test_a_long_history(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is not there at once is told, and added in the background, in the order of time."""
        monkeypatch.setattr(history_file, "PORTION_ROWS", 3)
        monkeypatch.setattr(history, "AT_ONCE_PORTIONS", 2)
        said: list[str] = []
        for number in range(30):
            for sender, to in (("Bobby", "UserX"), ("UserX", "Bobby"), ("UserX", "Bobby"))[: 1 + number % 3]:
                said.append(f"{number} from {sender} {len(said)}")
                say(world, sender, to, said[-1])
        found = page(world)
        assert 0 < found["behind"] < len(said)
        assert texts(found) == said[: len(said) - found["behind"]]
        world.run(5)
        found = page(world)
        assert (texts(found), found["behind"]) == (said, 0)
        assert AT_ONCE_PORTIONS > 2

    def test_a_clock_that_was_set(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Then the order is not that of time, and everything is there once."""
        monkeypatch.setattr(history_file, "PORTION_ROWS", 3)
        for number in range(30):
            world.hosts["UserX"].ahead_s = 86400.0 * (-1) ** number if number % 7 == 0 else 0.0
            say(world, "Bobby", "UserX", f"in {number}")
            say(world, "UserX", "Bobby", f"out {number}")
        world.hosts["UserX"].ahead_s = 0.0
        page(world)
        world.run(5)
        assert sorted(texts(page(world))) == sorted(
            f"{side} {number}" for number in range(30) for side in ("in", "out")
        )

    def test_nothing_is_shown_that_is_not_on_disk(self, world: World) -> None:
        """As in the inbox: while the disk is doubtful nobody is told anything."""
        say(world, "Bobby", "UserX", 1)
        world.troubles["UserX"].unsynced = 1.0
        world.send("UserX", "Bobby", 2, wait=0)
        world.troubles["UserX"].refuses = 1.0
        assert world.get("UserX", "/history/Bobby").code == 503
        world.troubles["UserX"].mend()
        world.run(10)
        assert 1 in texts(page(world))


class TestWhatIsNoLongerKept:
    def test_it_is_forgotten(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """In conversations, in searches, and on the disk: without anybody looking again, also behind messages that are
        kept, and after a start of the node."""
        monkeypatch.setattr(history_file, "PURGE_ROWS", 3)
        world = World(seed=3, directory=tmp_path)
        world.add_seed("seedX")
        world.add_user("Bobby", seeds=["seedX"])
        world.add_user("Carol", seeds=["seedX"])
        world.add_user("UserX", seeds=["seedX"], keep=Keep(messages=2))
        world.run(1)
        say(world, "UserX", "Bobby", *("mine" for _ in range(4)))
        say(world, "Carol", "UserX", "the secret of Carol")
        say(world, "Bobby", "UserX", *(f"the secret {number}" for number in range(5)))
        assert len(search(world, "secret")) == 6
        world.stop("UserX")
        world.restart("UserX")
        world.run(100)
        kept = sqlite3.connect(tmp_path / "UserX-history.db")
        assert kept.execute("SELECT count(*) FROM items").fetchone() == (4 + 2,)
        assert kept.execute("SELECT count(*) FROM words WHERE words MATCH 'secret'").fetchone() == (2,)
        kept.close()
        assert search(world, "secret") == ["the secret 4", "the secret 3"]
        assert [one["name"] for one in conversations(world)] == ["Bobby"]
        world.close()

    def test_nobody_has_looked(self, tmp_path: Path) -> None:
        """Then there is no history, and none is made for that."""
        world = on_disk(tmp_path)
        world.run(100)
        assert not (tmp_path / "UserX-history.db").exists()
        world.close()


class TestTheFile:
    @pytest.mark.parametrize("damage", [b"no database" * 1000, b""])
    def test_one_that_is_damaged_is_made_again(self, tmp_path: Path, damage: bytes) -> None:
        """So is one that is missing, or of another version."""
        world = on_disk(tmp_path)
        say(world, "Bobby", "UserX", "kept")
        page(world)
        world.stop("UserX")
        (tmp_path / "UserX-history.db").write_bytes(damage)
        world.restart("UserX")
        world.run(5)
        assert texts(page(world)) == ["kept"]
        world.close()

    def test_one_of_another_version(self, tmp_path: Path) -> None:
        world = on_disk(tmp_path)
        say(world, "Bobby", "UserX", "kept")
        page(world)
        world.stop("UserX")
        with sqlite3.connect(tmp_path / "UserX-history.db") as other:
            other.execute("PRAGMA user_version=99")
        other.close()
        world.restart("UserX")
        world.run(5)
        assert texts(page(world)) == ["kept"]
        world.close()

    def test_one_that_cannot_be_written(self, tmp_path: Path) -> None:
        """Is told of, and nothing else of the node is concerned."""
        world = on_disk(tmp_path)
        (tmp_path / "UserX-history.db").mkdir()
        say(world, "Bobby", "UserX", "kept")
        answer = world.get("UserX", "/history")
        assert (answer.code, "history.db" in answer.json["detail"]) == (503, True)
        assert world.inbox("UserX") == ["kept"]
        (tmp_path / "UserX-history.db").rmdir()
        assert texts(page(world)) == ["kept"]
        world.close()


class TestBounds:
    def test_too_many_ask(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """ASKED_MAX at a time; the others are told to come again."""
        monkeypatch.setattr(history, "ASKED_MAX", 2)
        waiting: list[Deferred[None]] = []

        def slowly(call: Any) -> Deferred[Any]:
            done: Deferred[None] = Deferred()
            waiting.append(done)
            return done.addCallback(lambda _: call())

        world.users["UserX"].front.history._history._in_thread = slowly
        asked = [world.request("GET", "UserX", "/history") for _ in range(3)]
        world.settle()
        (refused,) = [one for one in asked if isinstance(getattr(one, "result", None), Answer)]
        assert world.wait(refused).code == 429
        while waiting:
            waiting.pop(0).callback(None)
            world.settle()
        assert sorted(world.wait(one).code for one in asked if one is not refused) == [200, 200]
        assert ASKED_MAX > 2

    def test_the_node_stops(self, world: World) -> None:
        say(world, "Bobby", "UserX", "hello")
        page(world)
        front = world.users["UserX"].front
        world.wait(world.users["UserX"].stopService())
        with pytest.raises(MeshError, match="shutting down"):
            front.history._history.ask(lambda file: file.conversations(None, 1)).send(None)

    def test_for_the_owner_alone(self, world: World) -> None:
        for path in ("/history", "/history/Bobby", "/search?q=a"):
            assert world.get("UserX", path, Origin="https://example.com").code == 403


def test_messages_as_their_senders_wrote_them(world: World) -> None:
    """Any JSON comes back as it is."""
    messages: list[Any] = [None, 0, "", [], {}, True, {"a": {"b": [1.5, "ü", "\u0000"]}}]
    for message in messages:
        say(world, "Bobby", "UserX", message)
        assert json.dumps(texts(page(world))[-1]) == json.dumps(message)
