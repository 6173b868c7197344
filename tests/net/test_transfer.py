"""What a node keeps, as lines and back."""

import json
import random
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshproto.core.identity import Identity, verify
from meshproto.net import transfer, user_store
from meshproto.net.database_file import connect
from meshproto.net.transfer import BadLines, Counts, Import, export, lines_of, rows_in

DERIVED: frozenset[str] = frozenset()
"""Tables that are made of others: what is in them is not told."""

IDENTITIES = [Identity.create(random.Random(number).randbytes, number) for number in range(4)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIME = st.integers(0, 2**53)


def _spellings(text: bytes) -> list[bytes]:
    """With white space around it, as bodies of requests may have."""
    return [text, b" \t" + text, text + b" \n\t"]


MESSAGES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
).flatmap(lambda value: st.sampled_from(_spellings(json.dumps(value, ensure_ascii=False, indent=1).encode())))


def database() -> sqlite3.Connection:
    return connect(":memory:", user_store.SCHEMA, user_store.SCHEMA_VERSION)


@st.composite
def filled(draw: st.DrawFn) -> sqlite3.Connection:
    """A database that a node may have written."""
    connection = database()
    for number, identity in enumerate(draw(st.lists(st.sampled_from(IDENTITIES), unique_by=id, max_size=4))):
        seq = draw(TIME)
        signed = identity.sign(f"User{number}", ["http://192.0.2.7:3000"], seq)
        contact = (f"user{number}", f"User{number}", verify(signed).key, signed.record, signed.sig, seq)
        verified_at = draw(st.none() | TIME)
        connection.execute("INSERT INTO contacts VALUES (?,?,?,?,?,?,?,?,?)", (*contact, draw(TIME), 5, verified_at))
        if draw(st.booleans()):
            connection.execute("INSERT INTO offered VALUES (?,?,?,?,?,?)", (contact[0], *contact[2:], draw(TIME)))
    for address in draw(st.sets(st.sampled_from(["localhost:5001", "tls:seed.example:5001"]))):
        connection.execute("INSERT INTO seeds VALUES (?)", (address,))
    for name in draw(st.sets(st.sampled_from(["seq", "cursor deliver-to", "probe"]))):
        connection.execute("INSERT INTO numbers VALUES (?,?)", (name, draw(TIME)))
    rows: list[int] = draw(st.lists(st.integers(1, 2**40), unique=True, max_size=4))
    for row in rows:
        status = draw(st.sampled_from(["queued", "delivered", "expired", "refused", "cancelled"]))
        own = (row, "userx", f"id{row}", "UserX", draw(TEXT), draw(MESSAGES), draw(TIME), draw(TIME), status)
        connection.execute(
            "INSERT INTO outbox VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", (*own, draw(TIME), draw(st.none() | TEXT), 3)
        )
    for cursor in draw(st.lists(st.integers(1, 2**40), unique=True, max_size=4)):
        came = (cursor, "bobby", "Bobby", "key", f"id{cursor}", draw(TEXT), draw(MESSAGES), draw(TIME), draw(TIME))
        connection.execute("INSERT INTO inbox VALUES (?,?,?,?,?,?,?,?,?)", came)
        connection.execute("INSERT INTO seen (key, id, received_at) VALUES ('k',?,?)", (f"old{cursor}", draw(TIME)))
    deleted = draw(st.booleans())
    if rows and deleted:  # the highest again: their numbers are not given anew
        connection.execute("DELETE FROM outbox WHERE row=?", (max(rows),))
    return connection


def bring(connection: sqlite3.Connection, lines: list[bytes]) -> tuple[Counts, Import]:
    taking = Import(connection)
    for line in lines:
        taking.take(line.rstrip(b"\n"))
    return taking.finish(), taking


@given(filled(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_what_was_brought_over_is_exported_as_it_was(connection: sqlite3.Connection, with_identity: bool) -> None:
    """export(import(x)) == x, byte for byte."""
    keys = IDENTITIES[0].dump() if with_identity else None
    with closing(connection), closing(database()) as other:
        lines = list(export(connection, keys))
        assert all(line.count(b"\n") == 1 and line.endswith(b"\n") for line in lines)
        assert len(lines) == rows_in(connection) + 2 + with_identity
        counts, taken = bring(other, lines)
        assert list(export(other, None if taken.identity is None else taken.identity.dump())) == lines
        assert counts.identity is with_identity


@given(filled())
@settings(max_examples=20, deadline=None)
def test_what_was_brought_over_is_what_was_there(connection: sqlite3.Connection) -> None:
    """Row by row; a message is the same value, on one line."""
    with closing(connection), closing(database()) as other:
        bring(other, list(export(connection)))
        for kind in transfer.ROWS:
            query = f"SELECT {', '.join(kind.__struct_fields__)} FROM {kind.table} ORDER BY {kind.order}"
            there, here = connection.execute(query).fetchall(), other.execute(query).fetchall()
            assert [[_value(cell) for cell in row] for row in there] == [[_value(cell) for cell in row] for row in here]


def _value(cell: Any) -> Any:
    return json.loads(cell) if isinstance(cell, bytes) else cell


def test_every_table_is_brought_over() -> None:
    """One that is added, and every column of it, must be told of or be known to be derived."""
    with closing(database()) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        told = {kind.table: set(kind.__struct_fields__) for kind in transfer.ROWS}
        assert told.keys() == tables - DERIVED
        for table, columns in told.items():
            assert {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} == columns, table


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(database()) as connection:
        yield connection


HEAD = b'{"kind":"export","format":1,"schema":3}'
SEED = b'{"kind":"seed","address":"localhost:5001"}'


def test_every_bad_line_is_named(connection: sqlite3.Connection) -> None:
    """By its number, all of them at once."""
    signed = IDENTITIES[0].sign("UserX", [], 5)
    contact = {
        "kind": "contact",
        "name": "userx",
        "shown": "UserX",
        "key": verify(signed).key,
        "record": signed.record,
        "sig": signed.sig,
        "seq": 5,
        "first_seen": 1,
        "changed_at": 1,
        "verified_at": None,
    }
    lines = [
        HEAD,
        b"nonsense",
        json.dumps({**contact, "name": "bobby"}).encode(),
        json.dumps({**contact, "sig": "A" * 86}).encode(),
        json.dumps({**contact, "more": 1}).encode(),
        SEED,
        SEED,
        HEAD,
        b'{"kind":"identity","keys":{}}',
        b'{"kind":"end","lines":10}',
    ]
    with pytest.raises(BadLines) as error:
        bring(connection, lines)
    assert [shown.partition(":")[0] for shown in error.value.shown] == [f"line {n}" for n in (2, 3, 4, 5, 7, 8, 9)]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "line 1: the end is missing"),
        ([HEAD], "line 2: the end is missing"),
        ([SEED], "line 1: this is no export"),
        ([HEAD.replace(b"1", b"2")], "line 1: an export of format 2: update meshproto"),
        ([HEAD, b'{"kind":"end","lines":3}'], "line 2: there were 3 lines"),
        ([HEAD, b'{"kind":"end","lines":2}', SEED], "line 3: there is something after the end"),
        ([HEAD, b"x" * (transfer.LINE_BYTES_MAX + 1)], "line 2: longer than"),
        ([HEAD, b"\xff"], "line 2: "),
        ([HEAD, b"[" * 100_000], "line 2: "),
        ([HEAD, b'{"kind":"sequence","name":"other","seq":1}'], "line 2: "),
    ],
)
def test_what_is_no_export(connection: sqlite3.Connection, lines: list[bytes], says: str) -> None:
    """Is said in words."""
    with pytest.raises(BadLines, match=says):
        bring(connection, lines)


def test_numbers_are_not_given_twice(connection: sqlite3.Connection) -> None:
    """A sequence that is behind its rows is refused."""
    row = {"cursor": 7, "sender": "b", "name": "B", "key": "k", "id": "1", "type": "", "message": 1}
    came = json.dumps({"kind": "in", **row, "sent_at": 1, "received_at": 1}).encode()
    with pytest.raises(BadLines, match="line 3: inbox has a number beyond 6"):
        bring(connection, [HEAD, came, b'{"kind":"sequence","name":"inbox","seq":6}', b'{"kind":"end","lines":4}'])


def test_an_identity_comes_once(connection: sqlite3.Connection) -> None:
    """And must be one."""
    keys = b'{"kind":"identity","keys":' + IDENTITIES[0].dump() + b"}"
    with pytest.raises(BadLines, match="line 3: there is an identity already"):
        bring(connection, [HEAD, keys, keys, b'{"kind":"end","lines":4}'])


def test_only_some_bad_lines_are_shown(connection: sqlite3.Connection) -> None:
    """Of a file that is something else altogether."""
    with pytest.raises(BadLines) as error:
        bring(connection, [b"x"] * 100)
    assert (len(error.value.shown), error.value.count) == (transfer.BAD_LINES_MAX, 101)
    assert error.value.detail.endswith("; and 81 more")


def test_rows_are_committed_as_they_come(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are, no more than so many are under way."""
    monkeypatch.setattr(transfer, "ROWS_PER_COMMIT", 2)
    taking = Import(connection)
    taking.take(HEAD)
    for number, in_transaction in enumerate([True, False, True]):
        taking.take(b'{"kind":"seed","address":"seed%d:5001"}' % number)
        assert connection.in_transaction is in_transaction


@given(st.lists(st.binary(max_size=20), max_size=10), st.integers(1, 7))
def test_lines_out_of_pieces(lines: list[bytes], size: int) -> None:
    """Wherever they are cut."""
    lines = [line.replace(b"\n", b"") for line in lines]
    text = b"".join(line + b"\n" for line in lines)
    assert list(lines_of(text[at : at + size] for at in range(0, len(text), size))) == lines


def test_a_line_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of it is kept than shows that it is too long; the next line is a line again."""
    monkeypatch.setattr(transfer, "LINE_BYTES_MAX", 10)
    assert list(lines_of([b"x" * 8] * 1000 + [b"\nnext", b" one"])) == [b"x" * 11, b"next one"]


def test_no_more_than_a_line_is_in_memory(connection: sqlite3.Connection) -> None:
    """Of twenty megabytes, in both directions, less than one."""
    row = ("b", "B", "k", "", b'"' + b"x" * 1000 + b'"', 1, 1)
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO inbox (sender, name, key, type, message, sent_at, received_at, id) VALUES (?,?,?,?,?,?,?,?)",
        ((*row, str(number)) for number in range(20_000)),
    )
    connection.execute("COMMIT")
    with closing(database()) as other:
        taking = Import(other)
        tracemalloc.start()
        try:
            for line in lines_of(export(connection)):
                taking.take(line)
            counts = taking.finish()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert counts.received == 20_000
    assert peak < 1_000_000
