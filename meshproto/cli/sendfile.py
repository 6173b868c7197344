"""`mesh send --bulk` as it is typed: the file, what is shown on the way, and how it ends."""

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Self

import click

from meshproto.cli import render
from meshproto.cli.bulk import Bulk, Tally
from meshproto.cli.exits import Exit
from meshproto.cli.feed import Feed, Source
from meshproto.cli.ledger import RUN_ID_BYTES, BulkFile, BulkRefused, Ledger, progressed
from meshproto.client.errors import Document, Problem, failure
from meshproto.client.node import Node

if TYPE_CHECKING:
    import rich.progress

FAILURES_SHOWN_MAX = 20  # a screenful; --json tells all of them
SHOW_EVERY_S = 0.1  # what an eye can follow
STANDARD_INPUT = Path("-")


def send_file(
    node: Node, path: Path, *, to: str | None, wait_s: float | None, ttl_s: float | None, as_json: bool
) -> Exit:
    """Send every line of a file, or of standard input, and say what came of it."""
    defaults = {"to": to, "wait": wait_s, "ttl": ttl_s}
    if path == STANDARD_INPUT:
        return _send_standard_input(node, defaults, as_json=as_json)
    file = BulkFile(path)
    try:
        return _send_resumably(node, file, defaults, to=to, as_json=as_json)
    finally:
        file.close()


def _send_standard_input(node: Node, defaults: Document, *, as_json: bool) -> Exit:
    ledger = Ledger()
    feed = Feed(Source(sys.stdin.fileno()), ledger.wants, token_hex(RUN_ID_BYTES), defaults)
    with Progress("standard input", None, as_json=as_json) as progress:
        bulk = Bulk(node, node.status().document["fingerprint"], feed, ledger, progress, save=lambda: None)
        try:
            bulk.run()
        except BaseException as error:
            progress.notice(f"The first {ledger.done} lines of standard input were answered; of more it is not known.")
            return _ended(error)
    return _told(bulk.tally, progress, "send those lines again")


def _send_resumably(node: Node, file: BulkFile, defaults: Document, *, to: str | None, as_json: bool) -> Exit:
    fingerprint = node.status().document["fingerprint"]
    run, is_new = file.begin(fingerprint, to)
    ledger = Ledger(run.done, run.again)
    feed = Feed(Source(file.fd), ledger.wants, run.run, defaults)
    with Progress(str(file.path), file.lines, as_json=as_json) as progress:

        def save() -> None:
            try:
                file.save(progressed(run, ledger))
            except BulkRefused as error:  # the run's id is on disk, so this costs no more than time
                progress.notice(f"How far it has come is not written down: {error}.")

        if not is_new:
            progress.notice(f"Going on with {file.path}: {_through(ledger)} of {file.lines} lines are through.")
        bulk = Bulk(node, fingerprint, feed, ledger, progress, save)
        try:
            bulk.run()
        except BaseException as error:
            if is_new and not bulk.began and isinstance(error, Problem):  # refused as a whole: FILE may be changed
                file.finish()
            else:
                save()
                here = f"{_through(ledger)} of {file.lines} lines are through"
                progress.notice(f"{here}; the same command goes on from there and sends nothing twice.")
            return _ended(error)
    if bulk.tally.again:
        save()
    else:
        file.finish()
    return _told(bulk.tally, progress, "the same command sends those again, and nothing twice")


def _through(ledger: Ledger) -> int:
    return ledger.done - sum(last - first + 1 for first, last in ledger.again)


def _ended(error: BaseException) -> Exit:
    """Ctrl-C is told by then; anything else is told where every error is."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.FAILED
    raise error


def _told(tally: Tally, progress: "Progress", remedy: str) -> Exit:
    progress.summary(tally)
    if tally.again:
        later = f", best in {tally.retry_after_s} s" if tally.retry_after_s else ""
        progress.notice(f"{tally.again} of the failed lines may be taken another time: {remedy}{later}.")
    return tally.code


class Progress:
    """What is seen of a run: a bar on a terminal, failed lines as they come, a summary; or all results as JSON.

    `name`: what failed lines are lines of. `lines`: how many there are, if that is known.
    """

    def __init__(self, name: str, lines: int | None, *, as_json: bool) -> None:
        self._name, self._lines, self._as_json = name, lines, as_json
        self._failures = 0
        self._shown_at = 0.0
        self._bar: rich.progress.Progress | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._bar = self._open.enter_context(_bar())
            self._task = self._bar.add_task("", total=self._lines, counts="", rate="")
            self._began_at = time.monotonic()
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()
        self._bar = None

    def result(self, number: int, result: Document, tally: Tally) -> None:
        """Show it; a line of a stream says which line of all of them it is."""
        problem = failure(result)
        if self._as_json:
            text = json.dumps({**result, "line": number}, ensure_ascii=False, separators=(",", ":"))
            click.echo(render.spelled_json(text))
        elif problem is not None:
            self._failures += 1
            if self._failures <= FAILURES_SHOWN_MAX:
                reason = f" ({problem.detail})" if problem.detail else ""
                self._say(render.one_line(f"{self._name}:{number}: {problem.status} {problem.title}{reason}"))
        if self._bar is not None and (now := time.monotonic()) - self._shown_at >= SHOW_EVERY_S:
            self._shown_at = now
            rate = f"{tally.lines / max(now - self._began_at, SHOW_EVERY_S):,.0f}/s"
            self._bar.update(self._task, completed=number, counts=_counts(tally), rate=rate)

    def notice(self, text: str) -> None:
        """What happens meanwhile."""
        self._say(f"mesh: {render.one_line(text)}")

    def summary(self, tally: Tally) -> None:
        """What became of it all, when the bar is gone; programs have counted themselves."""
        more = self._failures - FAILURES_SHOWN_MAX
        if more > 0:
            self._say(f"{self._name}: and {more} more; --json tells all of them")
        if not self._as_json:
            style = "red" if tally.failed else "yellow" if tally.queued else "green"
            render.Screen().line(f"{tally.lines} lines: {_counts(tally)}", style)

    def _say(self, text: str) -> None:
        if self._bar is None:
            click.echo(text, err=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _counts(tally: Tally) -> str:
    return f"{tally.delivered} delivered, {tally.queued} queued, {tally.failed} failed"


def _bar() -> "rich.progress.Progress":
    from rich.console import Console  # noqa: PLC0415 -- a tenth of a second, for terminals only
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn  # noqa: PLC0415
    from rich.progress import Progress as Bar  # noqa: PLC0415

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}  {task.fields[counts]}"))
    return Bar(*columns, console=Console(stderr=True), transient=True)
