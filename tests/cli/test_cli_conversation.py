"""What a conversation looks like after whatever happens, in whichever order."""

from typing import Any

import pytest

from meshproto.cli import conversation as module
from meshproto.cli.conversation import FAILED, UNSENT, Conversation
from tests.cli.stub import message

AT_MS = 1_795_343_300_000


@pytest.fixture
def talk() -> Conversation:
    return Conversation("UserX~abcd")


def item(number: int, text: Any, *, status: str = "delivered") -> dict[str, Any]:
    """One's own message as the history tells it."""
    own = {"pos": number, "direction": "out", "id": f"o{number}", "type": "", "message": text, "at": AT_MS + number}
    return {**own, "to": "UserX", "status": status, "reason": None, "changed_at": AT_MS + 9}


def came(number: int, text: Any) -> dict[str, Any]:
    return {**message(number, text, "UserX"), "direction": "in", "at": AT_MS + number, "pos": number}


def test_a_message_is_there_once(talk: Conversation) -> None:
    """The stream and the history may both tell of it."""
    assert talk.came(message(1, "hi", "UserX")) is not None
    assert talk.came(message(1, "hi", "UserX")) is None
    assert talk.remember([came(1, "hi")]) == []
    assert [entry.text for entry in talk.entries] == ["hi"]


def test_the_same_id_of_another_key_is_another_message(talk: Conversation) -> None:
    """Ids are chosen by senders."""
    talk.came(message(1, "hi", "UserX"))
    other = message(1, "ho", "UserX")
    other["from"]["key"] = "another"
    assert talk.came(other) is not None


def test_history_stands_before_what_was_typed_meanwhile(talk: Conversation) -> None:
    """Whenever it came."""
    talk.typed("a", "typed", AT_MS + 50)
    added = talk.remember([item(1, "first"), item(2, {"any": 1}, status="queued")])
    assert [entry.text for entry in added] == ["first", '{"any":1}']
    assert [entry.text for entry in talk.entries] == ["first", '{"any":1}', "typed"]
    assert [entry.key[1] for entry in talk.waiting()] == ["o2", "a"]


def test_history_brings_a_message_forward(talk: Conversation) -> None:
    """What was queued when the connection was lost is delivered in the history."""
    talk.remember([item(1, "x", status="queued")])
    assert talk.remember([item(1, "x")]) == []
    assert talk.waiting() == []


def test_states_only_go_forward(talk: Conversation) -> None:
    """What is delivered stays delivered; what is told twice is no news."""
    talk.typed("a", "hi", AT_MS)
    assert talk.stands("a", "queued", "away", None) is not None
    assert talk.stands("a", "queued", "away", None) is None
    assert talk.stands("a", UNSENT, None, None) is None
    assert talk.stands("a", "delivered", None, AT_MS) is not None
    assert talk.stands("a", "queued", None, None) is None
    assert talk.entries[0].status == "delivered"
    assert talk.stands("unknown", "delivered", None, None) is None


def test_why_it_is_not_sent_may_change(talk: Conversation) -> None:
    """As long as the node does not take it."""
    talk.typed("a", "hi", AT_MS)
    assert talk.stands("a", UNSENT, "gone", None) is not None
    assert talk.stands("a", UNSENT, "gone", None) is None
    assert talk.stands("a", FAILED, "User Not Found", None) is not None
    assert talk.waiting() == []


def test_who_is_meant(talk: Conversation) -> None:
    """Names are compared without case and without fingerprints."""
    assert talk.concerns({"to": "userx~abcd"})
    assert talk.concerns({"name": "USERX"})
    assert not talk.concerns({"to": "Bobby"})
    assert not talk.concerns({})


def test_presence_is_news_when_it_changes(talk: Conversation) -> None:
    """Not each time it is told."""
    assert talk.seen(True, 1)
    assert not talk.seen(True, 2)
    assert talk.seen(None, None)


def test_a_long_evening(talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest messages go."""
    monkeypatch.setattr(module, "ENTRIES_MAX", 3)
    for number in range(5):
        talk.came(message(number, str(number), "UserX"))
    assert [entry.text for entry in talk.entries] == ["2", "3", "4"]


def test_text_is_made_harmless(talk: Conversation) -> None:
    """As everywhere."""
    talk.came(message(1, "\x1b]0;gotcha", "UserX"))
    assert talk.entries[0].text == "\\x1b]0;gotcha"
