"""Database files: how they are opened, made, upgraded and given back."""

import errno
import os
import sqlite3
from pathlib import Path

import pytest

from meshproto.errors import BadState
from meshproto.net.database_file import connect, shrink
from tests.net.store_rig import SCHEMA, insert, words


class TestConnect:
    def test_durable(self, tmp_path: Path) -> None:
        """The journal is a WAL, and every commit waits for the disk (FULL = 2)."""
        connection = connect(tmp_path / "words.db", SCHEMA, 1)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        connection.close()

    def test_can_shrink(self, tmp_path: Path) -> None:
        """A new database gives pages back when asked (INCREMENTAL = 2), at most as many as that, and none that it has
        not."""
        connection = connect(tmp_path / "words.db", SCHEMA, 1)
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        insert("x" * 200_000)(connection)
        connection.execute("DELETE FROM words")
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        assert free > 40
        connection.execute("BEGIN")
        assert shrink(connection, 30) == 30
        connection.execute("COMMIT")
        assert connection.execute("PRAGMA freelist_count").fetchone() == (free - 30,)
        assert shrink(connection, 1000) == free - 30
        assert shrink(connection, 1000) == 0
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert (tmp_path / "words.db").stat().st_size < 50_000
        connection.close()

    def test_again(self, tmp_path: Path) -> None:
        """A database opened again has what it had; its schema is made once."""
        connection = connect(tmp_path / "words.db", SCHEMA, 7)
        insert("a")(connection)
        connection.close()
        connection = connect(tmp_path / "words.db", SCHEMA, 7)
        assert words(connection) == ["a"]
        assert connection.execute("PRAGMA user_version").fetchone() == (7,)
        connection.close()

    def test_damaged(self, tmp_path: Path) -> None:
        """A file that is no database is refused with the file's name and what to do."""
        path = tmp_path / "words.db"
        path.write_bytes(b"this is no database" * 1000)
        with pytest.raises(BadState, match=r"words.db is damaged \(file is not a database\): restore a backup"):
            connect(path, SCHEMA, 1)
        assert path.read_bytes() == b"this is no database" * 1000

    def test_other_version(self, tmp_path: Path) -> None:
        """A database of another schema is left alone, and the refusal says which version to use."""
        connect(tmp_path / "words.db", SCHEMA, 2).close()
        with pytest.raises(BadState, match=r"has schema 2, .*: this one knows schema 1; use the newer version$"):
            connect(tmp_path / "words.db", SCHEMA, 1)
        connect(tmp_path / "words.db", SCHEMA, 2).close()

    def test_upgrade(self, tmp_path: Path) -> None:
        """A database of a former schema is brought forward step by step, and a copy of it stands beside it."""
        first = connect(tmp_path / "words.db", SCHEMA, 1)
        insert("a")(first)
        first.close()
        steps = {1: "ALTER TABLE words ADD COLUMN a", 2: "ALTER TABLE words ADD COLUMN b"}
        connection = connect(tmp_path / "words.db", "not used", 3, steps)
        assert connection.execute("SELECT * FROM words").fetchall() == [("a", None, None)]
        connection.close()
        copy = connect(tmp_path / "words.db.schema1", SCHEMA, 1)
        assert words(copy) == ["a"]
        copy.close()
        assert (tmp_path / "words.db.schema1").stat().st_mode & 0o777 == 0o600

    def test_no_upgrade_without_a_copy(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the disk does not sync the copy there is no upgrade, and nothing that looks like a copy; the next start
        tries again, over what this one has left."""
        connect(tmp_path / "words.db", SCHEMA, 1).close()
        steps = {1: "ALTER TABLE words ADD COLUMN a"}

        def broken(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with monkeypatch.context() as failing:
            failing.setattr(os, "fsync", broken)
            with pytest.raises(BadState, match="cannot be opened as a database: Input/output error"):
                connect(tmp_path / "words.db", SCHEMA, 2, steps)
        assert not (tmp_path / "words.db.schema1").exists()
        assert (tmp_path / "words.db.schema1.part").exists()
        connect(tmp_path / "words.db", SCHEMA, 1).close()
        connect(tmp_path / "words.db", SCHEMA, 2, steps).close()
        assert not (tmp_path / "words.db.schema1.part").exists()
        assert (tmp_path / "words.db.schema1").exists()

    def test_an_upgraded_one_can_shrink(self, tmp_path: Path) -> None:
        """A database of a time when none could shrink can after its upgrade."""
        former = sqlite3.connect(tmp_path / "words.db", isolation_level=None)
        former.executescript(
            f"PRAGMA journal_mode=WAL; {SCHEMA}; PRAGMA user_version=1; INSERT INTO words VALUES ('a')"
        )
        assert former.execute("PRAGMA auto_vacuum").fetchone() == (0,)
        former.close()
        connection = connect(tmp_path / "words.db", SCHEMA, 2, {1: "ALTER TABLE words ADD COLUMN a"})
        assert connection.execute("PRAGMA auto_vacuum").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT * FROM words").fetchall() == [("a", None)]
        connection.close()

    def test_upgrade_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """A step that fails leaves the database as it was, for the next attempt."""
        connect(tmp_path / "words.db", SCHEMA, 1).close()
        for _ in range(2):
            with pytest.raises(BadState):
                connect(tmp_path / "words.db", SCHEMA, 3, {1: "ALTER TABLE words ADD COLUMN a", 2: "nonsense"})
        connect(tmp_path / "words.db", SCHEMA, 1).close()

    def test_a_step_is_missing(self, tmp_path: Path) -> None:
        """Without a way from its schema to this one a database is left alone."""
        connect(tmp_path / "words.db", SCHEMA, 1).close()
        with pytest.raises(BadState, match=r"has schema 1, .* this one knows schema 3, and no way from there"):
            connect(tmp_path / "words.db", SCHEMA, 3, {2: "ALTER TABLE words ADD COLUMN b"})

    def test_no_directory(self, tmp_path: Path) -> None:
        """Where no file can be made the reason is told, and no backup is asked for."""
        with pytest.raises(BadState, match=r"unable to open database file$"):
            connect(tmp_path / "missing" / "words.db", SCHEMA, 1)

    def test_schema_whole_or_not_at_all(self, tmp_path: Path) -> None:
        """A schema that cannot be made leaves nothing behind, so that the next start can make it."""
        with pytest.raises(BadState):
            connect(tmp_path / "words.db", f"{SCHEMA}; CREATE TABLE words (a)", 1)
        connect(tmp_path / "words.db", SCHEMA, 1).close()
