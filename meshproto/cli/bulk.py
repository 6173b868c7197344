"""`mesh send --bulk`: a file of messages, through lost connections and restarts of the node, each of them once."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from meshproto.cli.exits import Exit, exit_code
from meshproto.cli.feed import Feed
from meshproto.cli.ledger import BulkRefused, Ledger
from meshproto.client.errors import Document, Problem, Unreachable, failure, passes
from meshproto.client.node import Node
from meshproto.client.retrying import Patience

GIVE_UP_S = 60.0  # without one answer: a node that restarts is back by then, also one that reads a large store first
RETRY_DELAY_S = 0.5  # doubled each time,
RETRY_DELAY_S_MAX = 5.0  # up to this: soon enough after the node is back
SAVE_EVERY_S = 2.0  # how much of the way may be gone again: each writing waits for the disk
REFUSED_MAX = 1000  # in a row, with "slow down" or "unavailable": the rest of a long file would fare no better


@dataclass
class Tally:
    """What became of the lines so far. `again`: those of the failed ones that are worth sending again."""

    delivered: int = 0
    queued: int = 0
    failed: int = 0
    again: int = 0
    code: Exit = Exit.DONE
    retry_after_s: int | None = None

    @property
    def lines(self) -> int:
        """All that were answered."""
        return self.delivered + self.queued + self.failed


class View(Protocol):
    """Who is told."""

    def result(self, number: int, result: Document, tally: Tally) -> None:
        """The result of the line of this number."""

    def notice(self, text: str) -> None:
        """What happens meanwhile."""


class _TakesNoMore(Exception):
    """The node says of one line after the other that it cannot take it now."""


@dataclass
class Bulk:
    """One run: `feed` to `node`, told to `view`. `fingerprint`: the node's, so that no other one takes its place.

    `save` is called every now and then with what is left to do according to `ledger`.
    """

    node: Node
    fingerprint: str
    feed: Feed
    ledger: Ledger
    view: View
    save: Callable[[], None]
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    tally: Tally = field(default_factory=Tally)
    began: bool = False  # whether the node may have taken a line
    _refused: int = 0
    _connected: bool = False

    def run(self) -> None:
        """Send it all. Raises `Problem` and `Unreachable` when the node refuses, or is away for too long."""
        patience = Patience(
            self.clock, first_s=RETRY_DELAY_S, max_s=RETRY_DELAY_S_MAX, give_up_s=GIVE_UP_S, chance=None
        )
        answered = 0
        while self.feed.wait():
            try:
                self._stream()
            except _TakesNoMore:
                self.view.notice(f"The node refused {REFUSED_MAX} lines in a row; the rest is left for another time.")
                return
            except (Problem, Unreachable) as error:
                if isinstance(error, Problem) and not (self.began and passes(error)):
                    raise
                self.began = True
                if not self.feed.held:  # nothing was under way: the node only grew tired of waiting for standard input
                    continue
                if self.tally.lines > answered:
                    patience.back()
                    answered = self.tally.lines
                if not patience.waits:
                    self.view.notice(f"The connection is lost: {_why(error)}. Trying again for {GIVE_UP_S:g} s.")
                pause_s = patience.lost(error)
                self.feed.rewind()
                self.sleep(pause_s)

    def _stream(self) -> None:
        if self._connected:
            self._same_node()
        self._connected = True
        saved_at = self.clock()
        for result in self.node.send_lines(self.feed):
            self._answered(result)
            if self.clock() - saved_at >= SAVE_EVERY_S:
                self.save()
                saved_at = self.clock()
            if self.feed.ended and not self.feed.waiting:
                return
        if self.feed.held:
            raise Unreachable(self.node.url, "its answer ended half-way")

    def _answered(self, result: Document) -> None:
        line = self.feed.settle(self.node.url, result)
        self.began = True
        problem, tally = failure(result), self.tally
        again = problem is not None and passes(problem)
        self.ledger.answered(line.number, again=again)
        self._refused = self._refused + 1 if again else 0
        if problem is not None:
            tally.failed += 1
            tally.again += again
            tally.code = max(tally.code, exit_code(problem))
            tally.retry_after_s = problem.retry_after_s or tally.retry_after_s
        elif result.get("status") == "delivered":
            tally.delivered += 1
        else:
            tally.queued += 1
        self.view.result(line.number, result, tally)
        if self._refused >= REFUSED_MAX:
            raise _TakesNoMore

    def _same_node(self) -> None:
        """After a restart another node may listen here, and its messages would be those of somebody else."""
        fingerprint = self.node.status().document["fingerprint"]
        if fingerprint != self.fingerprint:
            raise BulkRefused(f"another node, {fingerprint}, answers at {self.node.url} by now")


def _why(error: Problem | Unreachable) -> str:
    return error.reason if isinstance(error, Unreachable) else f"{error.title} ({error.detail})"
