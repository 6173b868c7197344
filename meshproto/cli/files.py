"""The files of a node on this machine: `mesh export`, `mesh import`, `mesh backup`.

The one place where the command knows how a node keeps its data, as there is no node to ask: what is read here is read
while it runs, and what is written here belongs to no node yet.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from meshproto.cli import render
from meshproto.cli.exits import FilesRefused
from meshproto.cli.progress import Bar
from meshproto.core.identity import Identity
from meshproto.errors import BadState
from meshproto.net import backup, database_file, transfer, user_store
from meshproto.net.state import KEY_FILE, StateDir, default_path, read_secret

STANDARD = Path("-")  # standard input or output
DATABASE = "user.db"
DRAFT = "user.db.importing"
READ_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

IDENTITY_WARNING = (
    "THIS HOLDS YOUR PRIVATE KEYS: whoever has it can read what is sent to you and write under your name. "
    "Keep it where nobody else can read it."
)
NO_IDENTITY = "Your private keys are not in it (--identity adds them): without them it is not you who goes on."


def state_directory(given: Path | None, own_name: Callable[[], str]) -> Path:
    """The one that is meant. `own_name`: asks the node; it is, when nothing else says where it keeps its state."""
    if given is not None:
        return given
    name = os.environ.get("USER_NAME") or own_name()
    if not _NAME.fullmatch(name):
        raise click.UsageError("The node has no name: give its state directory with --state DIR.")
    return default_path("user", name)


# -- export -------------------------------------------------------------------------------------------------------


def export(state: Path, target: Path, *, identity: bool) -> None:
    """All of it, to a file or to standard output."""
    with _refusing(), closing(backup.read_database(state / DATABASE)) as connection:
        keys = read_secret(state / KEY_FILE) if identity else None
        total = transfer.rows_in(connection)
        with _output(target) as output, Bar("export") as bar:
            for number, line in enumerate(transfer.export(connection, keys), start=1):
                output.write(line)
                bar(number, total)
    where = "" if target == STANDARD else f" to {target}"
    click.echo(f"mesh: {number} lines were written{where}.", err=True)
    click.echo(f"mesh: {IDENTITY_WARNING if identity else NO_IDENTITY}", err=True)


@contextmanager
def _output(target: Path) -> Iterator[BinaryIO]:
    """A file that is not there yet, and that nobody else can read; it is gone again if it is not written to its end."""
    if target == STANDARD:
        try:
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise FilesRefused(f"standard output cannot be written ({error.strerror}): free space there") from None
        return
    try:
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise FilesRefused(f"{target} is there already: delete it, or name another file") from None
    except OSError as error:
        raise FilesRefused(f"{target} cannot be written ({error.strerror}): name a file where you may write") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(handle)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise FilesRefused(f"{target} cannot be written ({error.strerror}): free space, or name another file") from None
    except BaseException:
        target.unlink(missing_ok=True)
        raise


# -- import -------------------------------------------------------------------------------------------------------


def import_(source: Path, state: Path, *, as_json: bool) -> None:
    """All of it, into a state directory that no node has used; or nothing."""
    with _refusing(), _input(source) as given:
        directory = StateDir(state)
        try:
            _check_unused(state)
            counts = _take_in(given, directory)
        finally:
            directory.close()
    if as_json:
        click.echo(json.dumps({"state": str(state), **counts._asdict()}))
        return
    told = f"{counts.contacts} contacts, {counts.sent} messages sent, {counts.received} received"
    render.Screen().line(f"{told}: now in {state}.", "green")
    if not counts.identity:
        click.echo("mesh: There were no private keys in it: the node makes new ones when it starts.", err=True)


def _check_unused(state: Path) -> None:
    used = [name for name in (DATABASE, KEY_FILE) if (state / name).exists()]
    if used:
        raise FilesRefused(f"{state} has been used by a node ({used[0]} is there): give an empty one with --state DIR")


def _take_in(given: BinaryIO, directory: StateDir) -> transfer.Counts:
    """The database has its name when it is whole, and its keys lie beside it by then."""
    for leftover in directory.path.glob(f"{DRAFT}*"):
        leftover.unlink()
    draft = directory.database(DRAFT)
    try:
        with closing(database_file.connect(draft, user_store.SCHEMA, user_store.SCHEMA_VERSION)) as connection:
            taking = transfer.Import(connection)
            with Bar("import") as bar:
                for line in transfer.lines_of(_pieces(given, bar)):
                    taking.take(line)
            counts = taking.finish()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        if taking.identity is not None:
            directory.save(taking.identity)
        draft.replace(directory.path / DATABASE)
    finally:
        for leftover in directory.path.glob(f"{DRAFT}*"):
            leftover.unlink()
    return counts


def _pieces(given: BinaryIO, bar: Bar) -> Iterator[bytes]:
    size = os.fstat(given.fileno()).st_size if given is not sys.stdin.buffer else 0
    done = 0
    while piece := given.read(READ_BYTES):
        done += len(piece)
        bar(done, size)
        yield piece


@contextmanager
def _input(source: Path) -> Iterator[BinaryIO]:
    if source == STANDARD:
        yield sys.stdin.buffer
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise FilesRefused(f"{source} cannot be read ({error.strerror}): name an export") from None
    with file:
        yield file


# -- backup -------------------------------------------------------------------------------------------------------


def back_up(state: Path, target: Path, *, as_json: bool) -> None:
    """A copy of the state directory, of one moment, checked."""
    with _refusing(), Bar("backup") as bar:
        names = backup.back_up(state, target, bar)
    if as_json:
        click.echo(json.dumps({"state": str(state), "backup": str(target), "files": names}))
        return
    render.Screen().line(f"{target} has {', '.join(names)}: whole and checked.", "green")
    click.echo(f"mesh: {IDENTITY_WARNING}", err=True)


@contextmanager
def _refusing() -> Iterator[None]:
    """What the node's own files say is said as any error of the command."""
    try:
        yield
    except transfer.BadLines as error:
        raise FilesRefused(f"nothing was imported: {error.detail}", damaged=True) from None
    except BadState as error:
        raise FilesRefused(error.detail) from None


def damage(path: Path) -> list[str]:
    """What is wrong with a database; nothing, if it is whole. Raises `FilesRefused`."""
    with _refusing():
        return backup.findings(path)


def fingerprint(state: Path) -> str:
    """Of the keys in a state directory. Raises `FilesRefused`."""
    with _refusing():
        return Identity.load(read_secret(state / KEY_FILE)).fingerprint
