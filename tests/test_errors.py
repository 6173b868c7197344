"""The family of errors, and how each travels over the wire."""

import json

import pytest

from meshproto import errors, wire
from meshproto.errors import MeshError, PeerRefused, SlowDown, UserNotFound

FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MeshError)]


def told(error: MeshError) -> MeshError:
    """The error that the other side raises."""
    answer = wire.decode_answer(wire.encode_error(1, error))
    assert isinstance(answer.error, wire.RpcError)
    assert (answer.error.code, answer.error.message) == (error.code, error.title)
    return wire.error_from(answer.error)


@pytest.mark.parametrize("kind", [kind for kind in FAMILY if kind is not PeerRefused])
def test_every_error_travels_with_code_title_and_detail(kind: type[MeshError]) -> None:
    """Each comes back as itself, or as what it is to others, or as a PeerRefused with its code; detail and waiting time
    are kept."""
    again = told(kind("what to do", retry_after_s=1.5))
    assert again.retry_after_s == 1.5
    if isinstance(again, PeerRefused):
        assert (again.status, again.detail) == (kind.code, f"{kind.title}: what to do")
    else:
        assert issubclass(kind, type(again)) and (again.code, again.title) == (kind.code, kind.title)
        assert again.detail == "what to do"


def test_those_that_callers_act_on_come_back_as_themselves() -> None:
    """404, 409, 429 and 503 are raised by class; an error with the same code and another title is not mistaken."""
    kept = {kind for kind in FAMILY if kind is not PeerRefused and type(told(kind())) is kind}
    assert kept == {UserNotFound, errors.NameTaken, SlowDown, errors.Unavailable}


def test_an_error_without_words_has_its_title() -> None:
    """The title stands in for a detail, and is not sent twice."""
    assert str(UserNotFound()) == UserNotFound().detail == "User Not Found"
    assert b"detail" not in wire.encode_error(1, UserNotFound())
    assert told(UserNotFound()).detail == "User Not Found"


def test_whose_fault_it_was() -> None:
    """Every error has exactly one of the three parents."""
    parents = (errors.CallerError, errors.PeerError, errors.OwnError)
    for kind in FAMILY[1:]:
        assert sum(issubclass(kind, parent) for parent in parents) == 1


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.ParseError, -32700),
        (errors.InvalidRequest, -32600),
        (errors.MethodNotFound, -32601),
        (errors.BadParams, 400),
        (errors.Unauthorized, 401),
        (errors.BadSignature, 403),
        (errors.UserNotFound, 404),
        (errors.NameTaken, 409),
        (errors.TooLarge, 413),
        (errors.SlowDown, 429),
        (errors.Unavailable, 503),
    ],
)
def test_codes_read_like_http(kind: type[MeshError], code: int) -> None:
    """The codes that docs/protocol.md names."""
    assert json.loads(wire.encode_error(None, kind()))["error"]["code"] == code


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("naïve 日本 👩‍💻", "naïve 日本 👩‍💻"),
        ("\x1b[2J\x9b\x07\x7f\x00", r"\x1b[2J\x9b\x07\x7f\x00"),
        ("a\r\n2026-01-01 forged\tline\u2028", r"a\r\n2026-01-01 forged\tline\u2028"),
        ("\u202eevil\u2066\ud800", r"\u202eevil\u2066\ud800"),
        ("x" * 1000, "x" * 100),
        ("\x1b" * 1000, r"\x1b" * 25),
    ],
)
def test_somebody_elses_words_are_spelled_out_and_cut(words: str, shown: str) -> None:
    """Readable text stays as it is; what a terminal obeys or begins a line of a log does not."""
    assert errors.quoted(words, 100) == shown


@pytest.mark.parametrize("code", [404, 418])
def test_a_seeds_words_are_quoted(code: int) -> None:
    """Those that are known by their class, and any other."""
    title = "User Not Found" if code == 404 else "tea\x1b[2J"
    error = wire.error_from(wire.RpcError(code, title, wire.ErrorData("\x1b[2J" + "x" * 60_000)))
    assert "\x1b" not in error.detail and r"\x1b[2Jxxx" in error.detail
    assert len(error.detail) <= 2 * wire.REASON_CHARS_MAX


@pytest.mark.parametrize("name", ["seed\x1b[2J", "seed X", ""])
def test_a_seed_is_called_by_a_name(name: str) -> None:
    """Not by what moves the cursor of whoever looks at the list of seeds, or at the log."""
    for value in (
        wire.HelloResult(1, name, "open", {}),
        wire.SeedInfo(name, "127.0.0.1:5001", True, 0),
        wire.LookupResult("{}", "A" * 86, 0, name, True, 0),
    ):
        with pytest.raises(errors.MeshError):
            wire.decode_value(wire.encode_value(value), type(value))
