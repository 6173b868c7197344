"""`mesh demo`: the main job, for real. Two seeds and two users as separate processes; every step is checked."""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from meshproto.cli.exits import Exit, sentence
from meshproto.cli.processes import TWISTD, Children, Failed, until
from meshproto.cli.render import Screen
from meshproto.client.errors import Document, Problem, Unreachable, UserNotFound
from meshproto.client.node import Node

HELLO = "Hello UserX"
WHILE_AWAY = "Are you there, UserX?"
SEEDS = 2
AWAY_WAIT_S = 2.0  # enough to find out that nobody is there; the demo need not wait the usual 5 s
ARRIVAL_TIMEOUT_S = 30.0  # the return is told at once; were that lost, retries would still come within this time
READ_WAIT_S = 1.0
IDLE_S = 1.0  # not signal.pause(): a signal just before it would be slept through

Step = Callable[[], Iterator[str]]


def demonstrate(screen: Screen, *, once: bool, command: tuple[str, ...] = TWISTD) -> Exit:
    """Run the steps, then stay until Ctrl-C or SIGTERM unless `once`."""
    with (
        tempfile.TemporaryDirectory(prefix="mesh-demo-", ignore_cleanup_errors=True) as directory,
        Children(Path(directory), command) as children,
    ):
        demo = Demo(children)
        try:
            for number, (title, step) in enumerate(demo.steps(), start=1):
                screen.line(f"{number}. {title}", "bold")
                for fact in step():
                    screen.line(f"   {fact}", "green")
        except (Failed, Problem, Unreachable) as error:
            screen.line(f"   failed: {error if isinstance(error, Failed) else sentence(error)}", "bold red")
            for child in children.all.values():
                screen.line(f"--- the end of {child.name}'s log\n{child.last_words()}")
            return Exit.FAILED
        if not once:
            _stay(screen, demo)
    return Exit.DONE


def _stay(screen: Screen, demo: "Demo") -> None:
    try:
        screen.line("\nAll of it runs on. Try it yourself; Ctrl-C ends it.\n", "bold")
        screen.line("# in a browser: the pages of UserX and of Bobby", "dim")
        screen.line("\n".join(demo.pages()))
        screen.line("# in another terminal", "dim")
        for comment, line in demo.next_lines():
            screen.line(f"# {comment}", "dim")
            screen.line(line)
        while True:
            time.sleep(IDLE_S)
    except KeyboardInterrupt:
        screen.line("\nEnding the nodes.")


class Demo:
    """The steps. Each yields the facts it has seen, and raises Failed when they are not what they must be."""

    def __init__(self, children: Children) -> None:
        self._children = children
        self._seed_address = ""  # of seedY, at which Bobby is registered
        self._user: Node
        self._bobby: Node
        self._cursor: int

    def steps(self) -> tuple[tuple[str, Step], ...]:
        """What happens, in order."""
        return (
            ("Two seeds and two users start, each a process of its own", self._start),
            ("Bobby sends to UserX", self._send),
            ("UserX reads the inbox", self._read),
            ("Bobby sends to Nobody", self._send_to_nobody),
            ("UserX goes away, is sent a message, and comes back", self._return),
        )

    def pages(self) -> list[str]:
        """To be opened in a browser: a user each."""
        return [f"{node.url}/" for node in (self._user, self._bobby)]

    def next_lines(self) -> Iterator[tuple[str, str]]:
        """Commands to go on with, and what each does."""
        user, bobby = self._user.url, self._bobby.url
        seed = urlsplit(f"//{self._seed_address}")
        request = '{"jsonrpc": "2.0", "id": 1, "method": "lookup", "params": {"name": "UserX"}}'
        yield "Bobby sends to UserX", f"""curl {bobby}/send -d '{{"to": "UserX", "message": "{HELLO}"}}'"""
        yield "UserX reads the inbox", f"curl {user}/inbox"
        yield "where Bobby's node finds UserX", f"curl {bobby}/lookup/UserX"
        yield "how UserX's node is", f"curl {user}/status"
        yield "a conversation in the terminal", f"mesh --node {user} chat Bobby"
        yield "a seed answers anyone", f"printf '%s\\n' '{request}' | nc -w 1 {seed.hostname} {seed.port}"

    def _start(self) -> Iterator[str]:
        first = self._children.start("meshseed", "seedX")
        yield f"seedX listens at {first}"
        self._seed_address = self._children.start("meshseed", "seedY", "--peer", first)
        yield f"seedY listens at {self._seed_address}, and was told of seedX"
        self._user = Node(self._children.start("meshuser", "UserX", "--seed", first))
        self._bobby = Node(self._children.start("meshuser", "Bobby", "--seed", self._seed_address))
        for name, node in (("UserX", self._user), ("Bobby", self._bobby)):
            home = until(partial(_home, node), f"{name} is registered")
            until(partial(_knows_seeds, node), f"{name} knows {SEEDS} seeds")
            yield f"{name} listens at {node.url}, is registered at {home}, and knows {SEEDS} seeds"

    def _send(self) -> Iterator[str]:
        answer = self._bobby.send("UserX", HELLO)
        said = f"POST {self._bobby.url}/send: {answer.status} {answer.document.get('status')}"
        _check((answer.status, answer.document.get("status")) == (200, "delivered"), said)
        yield said

    def _read(self) -> Iterator[str]:
        page = self._user.inbox().document
        seen = [(message["from"]["name"], message["message"]) for message in page["messages"]]
        said = f"GET {self._user.url}/inbox: " + ", ".join(f"{name}: {text!r}" for name, text in seen)
        _check(seen == [("Bobby", HELLO)], said)
        self._cursor = page["next"]
        yield said

    def _send_to_nobody(self) -> Iterator[str]:
        try:
            answer = self._bobby.send("Nobody", HELLO)
        except Problem as problem:
            said = f"POST {self._bobby.url}/send: {problem.status} {problem.title}"
            _check(isinstance(problem, UserNotFound), said)
            yield said
        else:
            raise Failed(f"POST {self._bobby.url}/send: {answer.status} {answer.text}")

    def _return(self) -> Iterator[str]:
        port = urlsplit(self._user.url).port or 0
        self._children.stop("UserX")
        yield "UserX is stopped"
        answer = self._bobby.send("UserX", WHILE_AWAY, wait_s=AWAY_WAIT_S)
        said = f"POST {self._bobby.url}/send: {answer.status} {answer.document.get('status')}"
        _check((answer.status, answer.document.get("status")) == (202, "queued"), said)
        yield said
        first = self._children.all["seedX"].state.joinpath("address").read_text(encoding="utf-8").strip()
        address = self._children.start("meshuser", "UserX", "--seed", first, port=port)
        back_at_s = time.monotonic()
        _check(address == self._user.url, f"UserX is back, at {address}")
        yield f"UserX is back at {address}"
        message = until(self._arrival, "the message has arrived", ARRIVAL_TIMEOUT_S)
        yield f"{message['message']!r} arrived {time.monotonic() - back_at_s:.2f} s after the return"

    def _arrival(self) -> Document | None:
        page = self._user.inbox(after=self._cursor, wait_s=READ_WAIT_S).document
        found = [message for message in page["messages"] if message["message"] == WHILE_AWAY]
        return found[0] if found else None


def _home(node: Node) -> str | None:
    """The seed at which a user is registered, once it is."""
    status = node.status().document
    return str(status["home"]["name"]) if status["registered"] and status["home"] else None


def _knows_seeds(node: Node) -> bool | None:
    """True once the node sees both seeds alive: until then a name of the other seed may be unknown to it."""
    return sum(seed["alive"] for seed in node.seeds().document["seeds"]) >= SEEDS or None


def _check(holds: bool, said: str) -> None:
    if not holds:
        raise Failed(said)
