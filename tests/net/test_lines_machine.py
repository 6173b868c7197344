"""A connection to a seed, whatever is said on it and however it is cut into pieces: every request is answered once."""

import json
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure

from meshproto import wire
from meshproto.net.lines import Lines
from tests.core.users import signed
from tests.net.pipe import Pipe
from tests.world import World

METHODS: dict[str, Any] = {
    "ping": {},
    "status": {},
    "seeds": {},
    "names": {},
    "lookup": {"name": "Anna"},
    "watch": {"names": ["Anna"]},
    "unwatch": {"names": ["Anna", "Bert"]},
    "hello": {"version": 1, "role": "user", "name": "Anna"},
}
WRONG = {
    b"what?": -32700,
    b'{"jsonrpc":"2.0","id":1,': -32700,
    b"\xff\xfe": -32700,
    b"[1,2]": -32600,
    b'{"jsonrpc":"2.0","id":{},"method":"ping"}': -32600,
    b"{}": -32600,
}
"""Lines that are none, and have no id that an answer could carry."""


class LinesMachine(RuleBasedStateMachine):
    """What is due is known at each step; it has come when all was given to the seed and its disk has had time."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(seed=1)
        self.world.add_seed("seedX")
        self.pipe = Pipe()
        handler = self.world.seeds["seedX"].link("")
        assert handler is not None
        self.lines = Lines(handler, self.world.hosts["seedX"])
        self.lines.makeConnection(self.pipe)
        self.unsaid = b""
        self.due: dict[int, set[int] | None] = {}  # id -> the codes it may have, None: a result or an error
        self.nameless: list[int] = []
        self.last_id = 0

    @initialize()
    def begin(self) -> None:
        """A connection that says nothing is owed nothing."""

    def _say(self, line: bytes) -> None:
        self.unsaid += line + b"\n"

    def _ask(self, method: Any, params: Any, codes: set[int] | None = None) -> None:
        self.last_id += 1
        self.due[self.last_id] = codes
        self._say(json.dumps({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}).encode())

    @rule(method=st.sampled_from(sorted(METHODS)))
    def ask(self, method: str) -> None:
        self._ask(method, METHODS[method])

    @rule(owner=st.integers(1, 2), seq=st.integers(1, 5), gone=st.booleans())
    def register(self, owner: int, seq: int, gone: bool) -> None:
        record = signed("Anna", seq, owner=owner, gone=gone)
        self._ask("unregister" if gone else "register", {"record": record.record, "sig": record.sig})

    @rule(method=st.sampled_from(["", "gossip2", "PING"]))
    def ask_for_what_there_is_not(self, method: str) -> None:
        self._ask(method, {}, {-32601})

    @rule(
        method=st.sampled_from(["lookup", "watch", "hello", "register"]),
        params=st.sampled_from([{}, [], 5, {"name": 1}]),
    )
    def ask_wrongly(self, method: str, params: Any) -> None:
        self._ask(method, params, {400})

    @rule(method=st.sampled_from(sorted(METHODS)))
    def tell(self, method: str) -> None:
        """Without an id: nothing comes back."""
        self._say(json.dumps({"jsonrpc": "2.0", "method": method, "params": METHODS[method]}).encode())

    @rule(blank=st.sampled_from([b"", b" ", b"\r", b"\t \r"]))
    def say_nothing(self, blank: bytes) -> None:
        self._say(blank)

    @rule(line=st.sampled_from(sorted(WRONG)))
    def say_what_is_no_request(self, line: bytes) -> None:
        self.nameless.append(WRONG[line])
        self._say(line)

    @rule(part=st.floats(0, 1))
    def bring(self, part: float) -> None:
        """So much of what was said arrives."""
        at = round(len(self.unsaid) * part)
        piece, self.unsaid = self.unsaid[:at], self.unsaid[at:]
        if piece:
            self.lines.dataReceived(piece)

    @rule()
    def bring_all_and_listen(self) -> None:
        self.bring(1.0)
        self.world.run(0.1)
        nameless = []
        for line in self.pipe.take().split(b"\n")[:-1]:
            answer = wire.decode_answer(line)
            if isinstance(answer.method, str):
                continue
            code = answer.error.code if isinstance(answer.error, wire.RpcError) else None
            if answer.id is None:
                nameless.append(code)
                continue
            assert isinstance(answer.id, int)
            wanted = self.due.pop(answer.id)
            assert wanted is None or code in wanted
        assert self.due == {}
        assert nameless == self.nameless
        self.nameless = []

    @invariant()
    def it_goes_on(self) -> None:
        assert not self.pipe.aborted

    def teardown(self) -> None:
        self.lines.connectionLost(Failure(ConnectionDone()))
        self.world.close()


TestLinesMachine = LinesMachine.TestCase
TestLinesMachine.settings = settings(deadline=None, max_examples=60, stateful_step_count=30)
