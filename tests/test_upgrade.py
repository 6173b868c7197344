"""An upgrade, for real: state directories that an early version has written (its processes, that is: three messages
each way, two that wait), taken up by this one."""

import json
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from meshproto.core.identity import fingerprint, unb64

FORMER = Path(__file__).parent / "former" / "schema1.tar.gz"
DATABASES = {"olga/user.db": "outbox", "seed/seed.db": "entries"}
TIMEOUT_S = 30.0


def ask(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


@pytest.fixture
def former(tmp_path: Path) -> Path:
    with tarfile.open(FORMER) as archive:
        archive.extractall(tmp_path, filter="fully_trusted")
    with closing(sqlite3.connect(tmp_path / "olga" / "user.db")) as olga:
        olga.execute("UPDATE outbox SET expires_at = ?", ((time.time() + 3600) * 1000,))
        olga.commit()
    return tmp_path


@pytest.fixture
def children(former: Path) -> Iterator[Children]:
    with Children(former) as children:
        yield children


def shown(url: str) -> dict[str, Any]:
    node = Node(url, timeout_s=TIMEOUT_S)
    until(lambda: node.status().document["registered"] or None, "it is registered", TIMEOUT_S)
    return {
        "address": node.status().document["address"],
        "inbox": [message["message"] for message in node.inbox().document["messages"]],
        "waiting": [message["id"] for message in node.outbox(status="waiting").document["messages"]],
        "delivered": [message["id"] for message in node.outbox(status="delivered").document["messages"]],
    }


def test_what_was_there_is_there(former: Path, children: Children) -> None:
    """The identity, the messages, the queue in its order, the claim; beside each database a copy of what it was, whole
    and its owner's alone. The next start has nothing to do."""
    before = {name: ask(former / name, f"SELECT * FROM {table}") for name, table in DATABASES.items()}
    ((record,),) = ask(former / "seed" / "seed.db", "SELECT record FROM entries")
    registered = fingerprint(unb64(json.loads(record)["key"]))  # by the early version
    seed = children.start("meshseed", "seed")
    url = children.start("meshuser", "olga", "--seed", seed)
    assert shown(url) == {
        "address": f"olga~{registered}",
        "inbox": ["dear Olga 1", "dear Olga 2", "dear Olga 3"],
        "waiting": ["to-pete-4", "to-pete-5"],
        "delivered": ["to-pete-3", "to-pete-2", "to-pete-1"],
    }
    copies = {name: former / f"{name}.schema1" for name in DATABASES}
    for name, table in DATABASES.items():
        assert ask(copies[name], "PRAGMA quick_check") == [("ok",)]
        assert ask(copies[name], "PRAGMA user_version") == [(1,)]
        assert ask(copies[name], f"SELECT * FROM {table}") == before[name]
        assert copies[name].stat().st_mode & 0o777 == 0o600
        assert not Path(f"{copies[name]}.part").exists()
    made = {name: copy.stat().st_mtime_ns for name, copy in copies.items()}
    children.stop("olga")
    assert len(shown(children.start("meshuser", "olga", "--seed", seed))["inbox"]) == 3
    assert {name: copy.stat().st_mtime_ns for name, copy in copies.items()} == made


def test_and_back(former: Path, children: Children) -> None:
    """A version that is older than a database says which schema it has, which it knows itself, and where what was
    before the upgrade lies; the database is left as it was."""
    children.start("meshuser", "olga", "--seed", "localhost:1")
    children.stop("olga")
    database = former / "olga" / "user.db"
    copy = Path(f"{database}.schema1")
    with closing(sqlite3.connect(database)) as later:
        ((known,),) = later.execute("PRAGMA user_version").fetchall()
        later.execute(f"PRAGMA user_version={known + 1}")
    copy.rename(f"{database}.schema{known}")
    command = [
        str(Path(sys.executable).parent / "twistd"),
        "-n",
        "--pidfile=",
        "meshuser",
        "--name",
        "olga",
        "--port",
        "0",
    ]
    ended = subprocess.run(
        [*command, "--state", str(former / "olga")],
        cwd=former,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"meshuser: {database} has schema {known + 1}, of another version of meshproto: this one knows schema {known}; "
        f"use the newer version, or go back to what it was before the upgrade: {database}.schema{known}\n"
    )
    assert ask(database, "PRAGMA user_version") == [(known + 1,)]
