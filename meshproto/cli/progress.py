"""A bar for what takes long: on a terminal, on standard error, and nowhere else."""

import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import rich.progress

SHOW_EVERY_S = 0.1  # what an eye can follow


class Bar:
    """`what` is done. Costs nothing where there is no terminal."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._shown_at = 0.0
        self._bar: rich.progress.Progress | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415 -- a tenth of a second, for terminals only
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
            from rich.progress import Progress as RichBar  # noqa: PLC0415

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bar = self._open.enter_context(RichBar(*columns, console=Console(stderr=True), transient=True))
            self._task = self._bar.add_task(self._what, total=None)
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()
        self._bar = None

    def __call__(self, done: int, total: int) -> None:
        """So much is done, of so much."""
        if self._bar is not None and (now := time.monotonic()) - self._shown_at >= SHOW_EVERY_S:
            self._shown_at = now
            self._bar.update(self._task, completed=done, total=total or None)
