"""What the doctor finds, and what it says to do."""

import copy
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from meshproto import __version__
from meshproto.cli import doctor
from meshproto.cli.doctor import (
    OK,
    WARNING,
    WRONG,
    Finding,
    of_addresses,
    of_clock,
    of_files,
    of_home,
    of_node,
    of_seeds,
    of_space,
    tell,
)
from meshproto.cli.exits import Exit
from meshproto.net import user_store
from meshproto.net.database_file import connect
from meshproto.net.state import StateDir
from tests.cli.conftest import Mesh
from tests.cli.stub import Stub, json_reply, problem_reply

NOW_MS = 1_795_343_300_000.0
STATUS: dict[str, Any] = {
    "name": "UserX",
    "address": "UserX~abcd",
    "fingerprint": "abcd",
    "version": __version__,
    "uptime_s": 70,
    "home": {"name": "seedX", "address": "localhost:5001", "since": 1},
    "problem": None,
    "disk": None,
    "outbox": {"waiting": 0, "recipients": 0, "oldest_at": None},
    "contacts": {"key_changed": 0},
}
SEED: dict[str, Any] = {
    "address": "seed.example:5001",
    "home": True,
    "reason": None,
    "name": "seedX",
    "version": "1",
    "took_ms": 3.0,
    "sees": "192.0.2.7",
    "knows": "current",
    "clock_ms": 10,
}
URI = {"uri": "http://192.0.2.7:3000", "leads_here": True, "took_ms": 2.0, "reason": None}
REPORT: dict[str, Any] = {"now": NOW_MS, "seeds": [SEED], "unasked": 0, "uris": [URI]}


def levels(findings: Any) -> list[str]:
    return [finding.level for finding in findings]


def only(findings: Any) -> Finding:
    (found,) = findings
    assert isinstance(found, Finding)
    assert (found.advice is None) == (found.level == OK)
    return found


@pytest.mark.parametrize(
    ("change", "level", "about", "says"),
    [
        ({}, OK, "node", "UserX~abcd answers at URL, up for 1 min"),
        ({"version": "0.0.1"}, WARNING, "version", "the node is 0.0.1"),
        ({"disk": "the disk does not take it: full"}, WRONG, "disk", "full"),
        ({"contacts": {"key_changed": 2}}, WARNING, "keys of others", "of 2 contacts"),
        ({"outbox": {"waiting": 3, "oldest_at": NOW_MS - 2 * 86_400_000}}, WARNING, "queue", "3 messages wait"),
    ],
)
def test_the_node(change: dict[str, Any], level: str, about: str, says: str) -> None:
    """What it says of itself."""
    found = {finding.about: finding for finding in of_node({**STATUS, **change}, "URL", NOW_MS)}
    assert found[about].level == level
    assert says in found[about].text
    assert len(found) == 2 + (about not in ("node", "version"))


def test_whether_it_is_registered() -> None:
    """And why not."""
    assert of_home(STATUS).level == OK
    assert "seed X: refused" in of_home({**STATUS, "home": None, "problem": "seed X: refused"}).text
    assert "no seed has answered yet" in of_home({**STATUS, "home": None}).text
    twice = of_home({**STATUS, "registered": False, "problem": "another node has this one's key and name"})
    assert (twice.level, twice.text) == (WRONG, "another node has this one's key and name")


def test_a_reason_that_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """Other programs' reasons end with a full stop, and there is one at the end already."""
    tell([Finding(WRONG, "seed", "does not answer: refused.", "see whether it runs")], as_json=False)
    assert capsys.readouterr().out.splitlines()[0] == "wrong    seed: does not answer: refused; see whether it runs."


@pytest.mark.parametrize(
    ("change", "level", "says"),
    [
        ({}, OK, "answers in 3 ms, version 1, and knows you"),
        ({"took_ms": 2000.0}, WARNING, "answers in 2000 ms"),
        ({"knows": "other key"}, WRONG, "another key"),
        ({"knows": "unknown"}, WARNING, "does not know you"),
        ({"knows": "older"}, WARNING, "an older record"),
        ({"reason": "refused", "name": None}, WRONG, "seed.example:5001 does not answer: refused"),
    ],
)
def test_a_seed(change: dict[str, Any], level: str, says: str) -> None:
    """What it answers, and what it knows."""
    found = only(of_seeds({**REPORT, "seeds": [{**SEED, **change}]}))
    assert (found.level, found.about) == (level, "home seed")
    assert says in found.text


def test_one_seed_of_several_may_be_away() -> None:
    """That is what several are for."""
    away = {**SEED, "home": False, "reason": "refused"}
    assert levels(of_seeds({**REPORT, "seeds": [SEED, away], "unasked": 4})) == [OK, WARNING, OK]
    assert only(of_seeds({**REPORT, "seeds": []})).level == WRONG


@pytest.mark.parametrize(
    ("offsets", "level", "says"),
    [
        ([10, -20, 30], OK, "as those of 3 seeds, to 0.0 s"),
        ([-60_000, -61_000, 900_000], WARNING, "1 min ahead of those of 3 seeds"),
        ([600_000], WRONG, "10 min behind that of the seed"),
    ],
)
def test_the_clock(offsets: list[int], level: str, says: str) -> None:
    """As most seeds' clocks show."""
    found = only(of_clock({"seeds": [{"clock_ms": offset} for offset in (*offsets, None)]}))
    assert (found.level, found.text) == (level, says)


def test_where_nothing_tells_the_time_nothing_is_said() -> None:
    """Of the clock."""
    assert list(of_clock({"seeds": [{"clock_ms": None}]})) == []


@pytest.mark.parametrize(
    ("uri", "sees", "leads_to", "levels_found", "says"),
    [
        ({}, "192.0.2.7", {"192.0.2.7"}, [OK, OK], "is where seeds elsewhere see this node come from"),
        ({}, "192.0.2.7", {"10.0.0.1", "fe80::1%eth0"}, [OK, WARNING], "with a router or proxy"),
        ({}, "192.0.2.7", {"127.0.0.1", "::1"}, [OK, WRONG], "every machine's own"),
        ({}, "192.0.2.7", set(), [OK, WRONG], "nobody finds the host 192.0.2.7"),
        ({}, "127.0.0.1", set(), [OK, OK], "none sees it from elsewhere"),
        ({}, None, set(), [OK, OK], "none sees it from elsewhere"),
        ({"leads_here": False, "reason": "refused"}, None, set(), [WRONG, OK], "does not lead here: refused"),
    ],
)
def test_the_way_to_the_node(
    uri: dict[str, Any], sees: str | None, leads_to: set[str], levels_found: list[str], says: str
) -> None:
    """What others are told, what seeds see, and where it leads."""
    report = {**REPORT, "uris": [{**URI, **uri}], "seeds": [{**SEED, "sees": sees}]}
    found = list(of_addresses(report, lambda _: leads_to))
    assert levels(found) == levels_found
    assert says in " ".join(f"{finding.text} {finding.advice}" for finding in found)


def test_names_are_resolved() -> None:
    """As this machine does."""
    assert doctor.addresses_of("127.0.0.1") == {"127.0.0.1"}
    assert doctor.addresses_of("invalid..name") == set()


# -- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = StateDir(tmp_path / "state")
    directory.identity(os.urandom, 1)
    connect(directory.database("user.db"), user_store.SCHEMA, user_store.SCHEMA_VERSION).close()
    directory.close()
    return directory.path


def test_files_that_are_well(state: Path) -> None:
    """Nothing to do."""
    assert set(levels(of_files(state, None))) == {OK}


def test_files_of_another_node(state: Path) -> None:
    """Than the one that answers."""
    found = {finding.about: finding for finding in of_files(state, "abcd")}
    assert found["keys"].level == WARNING


@pytest.mark.parametrize(
    ("name", "mode", "advice"),
    [("", 0o755, "chmod 700"), ("keys.json", 0o640, "chmod 600"), ("user.db", 0o644, "chmod 600")],
)
def test_files_that_others_can_read(state: Path, name: str, mode: int, advice: str) -> None:
    """Each is told with the command that mends it, once."""
    (state / name).chmod(mode)
    wrong = [finding for finding in of_files(state, None) if finding.level == WRONG]
    assert [finding.advice for finding in wrong] == [f"{advice} {state / name}".rstrip("/")]


def test_files_that_are_damaged(state: Path) -> None:
    """Keys that do not read, and a database that is not whole."""
    (state / "keys.json").write_text("{}")
    (state / "keys.json").chmod(0o600)
    with closing(sqlite3.connect(state / "user.db")) as connection:
        connection.execute("PRAGMA journal_mode=DELETE").fetchall()
    with (state / "user.db").open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    found = {finding.about: finding for finding in of_files(state, None) if finding.level == WRONG}
    assert "damaged" in found["keys"].text
    assert "damaged" in found["database"].text
    (state / "user.db").write_bytes(b"no database" * 1000)
    (wrong,) = [f for f in of_files(state, None) if (f.level, f.about) == (WRONG, "database")]
    assert "cannot be read" in wrong.text


def test_files_that_are_missing(state: Path, tmp_path: Path) -> None:
    """Of a node, or all of them."""
    (state / "keys.json").unlink()
    (state / "user.db").unlink()
    assert [finding.about for finding in of_files(state, None) if finding.level == WRONG] == ["keys", "database"]
    assert only(of_files(tmp_path / "nowhere", None)).level == WARNING


@pytest.mark.parametrize(("free", "level"), [(10**12, OK), (500 << 20, WARNING), (5000, WRONG)])
def test_space(free: int, level: str, tmp_path: Path) -> None:
    """Before the disk is full."""
    assert of_space(free, tmp_path).level == level


# -- the command --------------------------------------------------------------------------------------------------


@pytest.fixture
def well(stub: Stub, state: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    """All is well with it, but that the keys are another's."""
    monkeypatch.delenv("USER_NAME", raising=False)
    monkeypatch.delenv("MESH_STATE", raising=False)
    monkeypatch.setattr(doctor, "addresses_of", lambda host: {host})
    stub.routes |= {"GET /status": lambda _: json_reply(STATUS), "GET /doctor": lambda _: json_reply(REPORT)}
    return stub


def test_the_command_says_a_line_each(well: Stub, run: Mesh, state: Path) -> None:
    """And at the end how many are not well; a warning is no failure."""
    result = run("doctor", "--state", str(state))
    lines = result.stdout.splitlines()
    assert lines[0].startswith("ok       node: UserX~abcd answers at http://127.0.0.1")
    assert lines[-1].startswith("0 wrong, 1 to look at, ")
    assert all(line.split()[0] in (OK, WARNING) for line in lines[:-1])
    assert result.exit_code == Exit.DONE


def test_the_command_for_programs(well: Stub, run: Mesh, state: Path) -> None:
    """An object a line."""
    result = run("doctor", "--state", str(state), "--json")
    first = json.loads(result.stdout.splitlines()[0])
    assert first.keys() == {"level", "about", "text", "advice"}


def test_what_is_wrong_is_an_exit_code(well: Stub, run: Mesh, state: Path) -> None:
    """Of its own."""
    wrong = copy.deepcopy(REPORT)
    wrong["uris"][0]["leads_here"] = False
    well.routes["GET /doctor"] = lambda _: json_reply(wrong)
    assert run("doctor", "--state", str(state)).exit_code == Exit.WRONG
    well.routes["GET /doctor"] = lambda _: problem_reply(404, "Not Found")
    assert run("doctor", "--state", str(state)).exit_code == Exit.WRONG


def test_without_a_node_the_files_are_looked_at(run: Mesh, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is when it is needed most."""
    with Stub() as gone:
        pass
    monkeypatch.setenv("MESH_NODE", gone.url)
    result = run("doctor", "--state", str(state))
    assert result.stdout.startswith("wrong    node: No user node answers at")
    assert "database" in result.stdout
    assert result.exit_code == Exit.WRONG


def test_which_state_directory(well: Stub, run: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one that a node of that name has by itself; nobody knows, where no name is told."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert f"{tmp_path}/meshproto/user-userx cannot be looked at" in run("doctor").stdout
    monkeypatch.setenv("USER_NAME", "Bobby")
    assert f"{tmp_path}/meshproto/user-bobby cannot be looked at" in run("doctor").stdout
    monkeypatch.delenv("USER_NAME")
    well.routes["GET /status"] = lambda _: problem_reply(401, "Unauthorized")
    assert "it is not known which it is" in run("doctor").stdout
