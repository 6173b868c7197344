"""Does :mod:`bench.faults` find bugs? `python -m bench.faults_mutants` breaks a copy of the code, one way at a time,
and tells in which run each is found. Runs that fail without it too are not counted.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from bench.mutants import Mutant, broken

RUNS_AT_ONCE: Final = 50


MUTANTS: Final = [
    Mutant(
        "the receipt goes out before the letters are on disk",
        "net/receiving.py",
        "repeated = await self._table.receive(sender, opened.signed, letters, self._now_ms())",
        "repeated = frozenset(); "
        "self._table.receive(sender, opened.signed, letters, self._now_ms()).addErrback(lambda _: None)",
    ),
    Mutant(
        "a COMMIT that fails is taken for one that works",
        "net/store.py",
        "            self._undo()\n            raise\n        return results\n",
        "            self._undo()\n        return results\n",
    ),
    Mutant(
        "the inbox takes the same id twice",
        "net/inbox_table.py",
        "    received_at INTEGER NOT NULL,\n    UNIQUE (key, id)                        -- what makes",
        "    received_at INTEGER NOT NULL            -- what makes",
    ),
    Mutant(
        "what comes back from an attempt is put back in the wrong order",
        "core/queue.py",
        "for message in reversed(list(messages)):",
        "for message in list(messages):",
    ),
    Mutant(
        "what comes back from an attempt is put behind the others",
        "core/queue.py",
        "            self.ready.appendleft(message)\n",
        "            self.ready.append(message)\n",
    ),
    Mutant(
        "a message belongs to the request that brought it",
        "net/accepting.py",
        "await shield(self._keep(orders, found, patient=patient))",
        "await self._keep(orders, found, patient=patient)",
    ),
    Mutant(
        "no answer is taken for an acknowledgement",
        "net/sending.py",
        "            self._failed(attempt, cause_of(error), error.detail, wait_s or 0.0)\n",
        "            ids = {message.id for message in attempt.batch}\n"
        "            self._core.found(attempt.key)\n"
        "            self._carry_out(self._core.answered(attempt.key, ids, {}, self._now()))\n",
    ),
    Mutant(
        "messages expire three seconds early",
        "net/sending.py",
        "self._table.overdue(self._now_ms(), after).add",
        "self._table.overdue(self._now_ms() + 3000, after).add",
    ),
    Mutant(
        "what was on its way is said not to have arrived",
        "core/outbox.py",
        "        queue.row_sent = max(queue.row_sent, queue.under_way[-1].row)\n",
        "        pass\n",
    ),
    Mutant(
        "an address that was looked up once is kept for ever",
        "net/finding.py",
        "        if not fresh:\n            cached = self._cache.get(name, now)",
        "        if True:\n            cached = self._cache.get(name, 0.0)",
    ),
    Mutant(
        "ids are forgotten at a restart",
        "net/user_store.py",
        "    seq = connection.execute(",
        "    connection.execute(\"DELETE FROM outbox WHERE status<>'queued'\")\n    seq = connection.execute(",
    ),
    Mutant(
        "what waits is forgotten at a restart",
        "net/node.py",
        "        self.sending.restore(self._waiting)\n",
        "",
    ),
    Mutant(
        "two batches for one recipient are under way at a time",
        "core/queue.py",
        "return self.loading or bool(self.under_way)",
        "return self.loading",
    ),
    Mutant(
        "a disk that could not be read is not read again",
        "core/outbox.py",
        "            self._back_off(key, queue, reason, now)\n        return self._serve(now)\n\n    # -- how",
        "            pass\n        return self._serve(now)\n\n    # -- how",
    ),
    Mutant(
        "the sequence of records follows the clock alone",
        "core/identity.py",
        "return max(last + 1, now_ms)",
        "return now_ms",
    ),
    Mutant(
        "an id may be used again for another text",
        "net/outbox_table.py",
        "if other_key or (message.message, message.type) != (draft.message, draft.type):",
        "if other_key or message.type != draft.type:",
    ),
    Mutant(
        "an end is told before it is on disk",
        "net/sending.py",
        "                self._marks += 1\n",
        "                self._tell(effect.rows, End(effect.status, effect.reason))\n"
        "                self._marks += 1\n",
    ),
    Mutant(
        "an end that the disk refuses is not written again",
        "core/outbox.py",
        "        self._unwritten.appendleft(finish)\n"
        "        if self._write_at is None:\n"
        "            self._write_at = now + MARK_RETRY_S\n",
        "        pass\n",
    ),
    Mutant(
        "after a restart everything is queued again",
        "core/outbox.py",
        "queue.phase, queue.row_tried, queue.row_sent = Status.DELIVERING, last_row, last_row",
        "queue.row_sent = last_row",
    ),
    Mutant(
        "a failed attempt is not tried again",
        "core/outbox.py",
        "least_s)\n        heapq.heappush(self._retries, (queue.next_try, key))\n",
        "least_s)\n",
    ),
]


def found_in(directory: str, runs: int, known: set[int]) -> tuple[int, str] | None:
    """The first run that fails, none of those known, and with what."""
    environment = {**os.environ, "PYTHONPATH": directory}
    for first in range(1, runs + 1, RUNS_AT_ONCE):
        command = [sys.executable, "-m", "bench.faults", "--first", str(first), "--runs", str(RUNS_AT_ONCE)]
        done = subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.PIPE, text=True, check=False)
        for line in done.stdout.splitlines():
            problem, mark, number = line.rpartition(" (python -m bench.faults --seed ")
            if mark and int(number.rstrip(")")) not in known:
                return int(number.rstrip(")")), problem
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.faults_mutants", description=__doc__)
    parser.add_argument("--runs", type=int, default=400, help="at most so many for each (%(default)s)")
    parser.add_argument("--only", metavar="WORD", default="", help="those whose name has it")
    parser.add_argument("--known", metavar="FILE", help="the output of bench.faults as it is: those runs do not count")
    options = parser.parse_args(arguments)
    known: set[int] = set()
    if options.known:
        text = Path(options.known).read_text()
        known = {int(part.split(")")[0]) for part in text.split("bench.faults --seed ")[1:]}
    missed = 0
    print("| what is broken | found in run | by |\n|---|---|---|", flush=True)
    for mutant in MUTANTS:
        if options.only not in mutant.name:
            continue
        with tempfile.TemporaryDirectory() as directory:
            if not broken(mutant, directory):
                found: tuple[int, str] | None = None
                print(f"| {mutant.name} | does not fit the code any more: write it anew | |", flush=True)
            else:
                found = found_in(directory, options.runs, known)
                number, problem = found or (f"none of {options.runs}", "")
                print(f"| {mutant.name} | {number} | {problem[:110]} |", flush=True)
        missed += found is None
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
