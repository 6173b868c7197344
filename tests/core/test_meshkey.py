"""The mesh key: its file, and a handshake that only those who have it get through, once, as who they are."""

import hashlib
import hmac
import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshproto.core.identity import b64
from meshproto.core.meshkey import KEY_CHARS_MIN, KEYS_MAX, Gate, Handshake, Keyring, Role, proven_text
from meshproto.core.seed import Settings
from meshproto.errors import BadParams, PeerError, Unauthorized
from meshproto.wire import (
    GossipParams,
    GossipResult,
    HelloParams,
    HelloResult,
    LineError,
    decode_request,
    encode_request,
)
from tests.core.seed_mesh import Client, SeedMesh

KEY, OTHER_KEY = "the one key of this mesh", "a key of some other mesh"
LISTENER_AT = "seedA:5001"

texts = st.text(max_size=20)
handshakes = st.builds(Handshake, texts, texts, texts, texts)
roles: st.SearchStrategy[Role] = st.sampled_from(["dialler", "listener"])


def gate(name: str, *keys: str, seed: int = 1) -> Gate:
    return Gate(name, Keyring(*keys), random.Random(f"{name} {seed}").randbytes)


def client(*keys: str, trusted: bool = False) -> Client:
    """A connection to seedA, which has the keys, from a public address."""
    return Client(SeedMesh("seedA", settings=Settings(mesh_keys=Keyring(*keys))), "seedA", trusted=trusted)


def hello(to: Client, params: HelloParams) -> HelloResult:
    return to.call("hello", params, HelloResult)


def proven(to: Client, dialler: Gate) -> None:
    """The whole handshake."""
    first = dialler.hello()
    answer = dialler.answer(LISTENER_AT, first, hello(to, first))
    assert answer is not None
    hello(to, answer)


def shut_out(caller: Client) -> None:
    """It may not gossip, and is told why."""
    error = caller.refused("gossip", GossipParams({}))
    assert (error.code, error.message) == (401, "Unauthorized")
    assert "--mesh-key" in error.data.detail


class TestFile:
    def test_a_keyring(self) -> None:
        """Keys stand one a line; blank lines, comments and the space around a key do not count."""
        keys = Keyring.parse(f"# of our mesh\n\n  {KEY} \r\n#\n{OTHER_KEY}".encode())
        handshake = Handshake("b", "a", "1", "2")
        assert len(keys) == 2
        assert keys.prove("dialler", handshake) == Keyring(KEY).prove("dialler", handshake)
        assert keys.accepts(Keyring(OTHER_KEY).prove("dialler", handshake), "dialler", handshake)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"", "there is no mesh key in it"),
            (b"# none\n \n", "there is no mesh key in it"),
            (b"# one\nsecret-in-short\n", "line 2: a mesh key has at least 16 characters, not 15"),
            (KEY.encode() + b"\nsecret\n", "line 2: a mesh key has at least 16 characters, not 6"),
            (b"secret \xff\xfe", "a mesh key file is text in UTF-8"),
            ("".join(f"secret-in-short{n}{n}\n" for n in range(KEYS_MAX + 1)).encode(), "17 mesh keys, where 16"),
        ],
    )
    def test_what_is_no_keyring(self, text: bytes, says: str) -> None:
        """The error says what is wrong and where, and never what is in the file."""
        with pytest.raises(BadParams, match=says) as refused:
            Keyring.parse(text)
        assert "secret" not in str(refused.value)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (b"", "there is no register token in it: a seed has made its own in the file register-token"),
            (b"secret\n", "line 1: a register token has at least 16 characters, not 6"),
            (b"secret \xff\xfe", "a register token file is text in UTF-8"),
            ("".join(f"secret-in-short{n}{n}\n" for n in range(KEYS_MAX + 1)).encode(), "17 register tokens, where 16"),
        ],
    )
    def test_a_file_of_register_tokens_is_spoken_of_as_one(self, text: bytes, says: str) -> None:
        """Whoever gave --register-token is not told of a mesh key."""
        with pytest.raises(BadParams, match=says) as refused:
            Keyring.parse(text, "register")
        assert "secret" not in str(refused.value)

    def test_keys_are_not_shown(self) -> None:
        """No repr of anything that holds keys has one in it."""
        keys = Keyring(KEY)
        shown = f"{keys!r} {keys} {Settings(mesh_keys=keys)!r} {vars(gate('seedA', KEY))!r}"
        assert KEY not in shown and KEY[:KEY_CHARS_MIN] not in shown
        assert "<Keyring of 1>" in shown


class TestFraming:
    @given(roles, handshakes, roles, handshakes)
    def test_one_text_for_one_handshake(self, role: Role, one: Handshake, other_role: Role, other: Handshake) -> None:
        """Two inputs of the MAC are the same only where role, names and nonces are."""
        same_text = proven_text(role, one) == proven_text(other_role, other)
        assert same_text == ((role, one) == (other_role, other))

    @given(texts, st.data())
    def test_where_one_field_ends_matters(self, text: str, data: st.DataObject) -> None:
        """The same characters, cut into fields elsewhere, are another text."""

        def cut() -> Handshake:
            ends = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=3, max_size=3)))
            return Handshake(text[: ends[0]], text[ends[0] : ends[1]], text[ends[1] : ends[2]], text[ends[2] :])

        one, other = cut(), cut()
        assert (proven_text("dialler", one) == proven_text("dialler", other)) == (one == other)

    def test_what_is_signed(self) -> None:
        """The text and the proof as docs/protocol.md describes them, made without our code."""
        text = b"meshproto mesh 1 listener\n3:n-d,3:n-l,5:seedB,5:seedA,"
        handshake = Handshake("seedB", "seedA", "n-d", "n-l")
        assert proven_text("listener", handshake) == text
        assert Keyring(KEY).prove("listener", handshake) == b64(hmac.new(KEY.encode(), text, hashlib.sha256).digest())


class TestListening:
    def test_whoever_proves_the_key_may_gossip(self) -> None:
        """From any address; the answer to the first hello proves that the listener has the key too."""
        caller = client(KEY)
        shut_out(caller)
        first = gate("seedB", KEY).hello()
        greeting = hello(caller, first)
        assert (greeting.seed, greeting.mesh) == ("seedA", "key")
        shut_out(caller)
        answer = gate("seedB", KEY).answer(LISTENER_AT, first, greeting)
        assert answer is not None and answer.nonce is None
        assert hello(caller, answer).proof is None
        caller.call("gossip", GossipParams({}), GossipResult)

    def test_without_a_key_nothing_is_proven(self) -> None:
        """A seed without a mesh key says so, and signs nothing for anybody."""
        caller = client(trusted=True)
        greeting = hello(caller, gate("seedB", KEY).hello())
        assert (greeting.mesh, greeting.nonce, greeting.proof) == ("open", None, None)
        caller.call("gossip", GossipParams({}), GossipResult)

    def test_users_need_no_key(self) -> None:
        """A user's hello is answered as ever, and a register taken."""
        caller = client(KEY)
        greeting = hello(caller, HelloParams(1, "user", "UserX"))
        assert (greeting.mesh, greeting.nonce, greeting.proof) == ("key", None, None)
        caller.register("UserX")
        shut_out(caller)

    def test_a_seed_that_has_no_key(self) -> None:
        """A hello without a nonce, also from a private address, opens no session."""
        caller = client(KEY, trusted=True)
        assert hello(caller, gate("seedB").hello()).proof is None
        shut_out(caller)

    @pytest.mark.parametrize("keys", [[KEY], [OTHER_KEY, KEY]])
    def test_a_wrong_key(self, keys: list[str]) -> None:
        """A proof by a key that the listener does not have is refused, whatever else is in the dialler's keyring."""
        caller = client(OTHER_KEY if keys == [KEY] else KEY)
        dialler = Keyring(*keys)
        greeting = hello(caller, gate("seedB", *keys).hello())
        nonce = gate("seedB", *keys).hello().nonce or ""
        proof = dialler.prove("dialler", Handshake("seedB", "seedA", nonce, greeting.nonce or ""))
        assert caller.refused("hello", HelloParams(1, "seed", "seedB", proof=proof)).code == 401
        shut_out(caller)

    def test_a_proof_is_good_for_one_connection(self) -> None:
        """What was proven over one connection opens no other, not even with the same nonce of the dialler."""
        mesh = SeedMesh("seedA", settings=Settings(mesh_keys=Keyring(KEY)))
        one, other = Client(mesh, "seedA"), Client(mesh, "seedA")
        first = gate("seedB", KEY).hello()
        answer = gate("seedB", KEY).answer(LISTENER_AT, first, hello(one, first))
        assert answer is not None
        hello(one, answer)
        assert other.refused("hello", answer).code == 401
        hello(other, first)
        assert other.refused("hello", answer).code == 401
        shut_out(other)

    def test_a_nonce_is_good_for_one_proof(self) -> None:
        """After one proof, right or wrong, the same handshake proves nothing more: a guess costs a round."""
        caller, dialler = client(KEY), gate("seedB", KEY)
        first = dialler.hello()
        answer = dialler.answer(LISTENER_AT, first, hello(caller, first))
        assert answer is not None
        wrong = HelloParams(1, "seed", "seedB", proof="QQ")
        assert caller.refused("hello", wrong).code == 401
        assert caller.refused("hello", answer).code == 401
        shut_out(caller)

    def test_a_reflected_proof(self) -> None:
        """The listener's own proof, sent back to it, is not the dialler's."""
        caller = client(KEY)
        greeting = hello(caller, gate("seedB", KEY).hello())
        assert caller.refused("hello", HelloParams(1, "seed", "seedB", proof=greeting.proof)).code == 401
        shut_out(caller)

    def test_a_proof_under_another_name(self) -> None:
        """Who has proven to be seedB is not taken for seedC."""
        caller, dialler = client(KEY), gate("seedB", KEY)
        first = dialler.hello()
        answer = dialler.answer(LISTENER_AT, first, hello(caller, first))
        assert answer is not None
        assert caller.refused("hello", HelloParams(1, "seed", "seedC", proof=answer.proof)).code == 401
        shut_out(caller)

    def test_a_later_hello_ends_the_session(self) -> None:
        """Whoever says hello again, as another seed say, has to prove the key again."""
        caller, dialler = client(KEY), gate("seedB", KEY)
        proven(caller, dialler)
        hello(caller, gate("seedC", KEY).hello())
        shut_out(caller)

    def test_every_hello_gets_a_nonce_of_its_own(self) -> None:
        """Also the same hello over the same connection."""
        caller, first = client(KEY), gate("seedB", KEY).hello()
        assert len({hello(caller, first).nonce for _ in range(3)}) == 3

    def test_a_nonce_of_another_length(self) -> None:
        """Is refused as what does not fit."""
        with pytest.raises(LineError) as refused:
            decode_request(encode_request("hello", HelloParams(1, "seed", "seedB", nonce="QQ"), 1))
        assert refused.value.error.code == 400


class TestDialling:
    first = gate("seedB", KEY).hello()

    def greeting(self, *keys: str) -> HelloResult:
        """How seedA, with these keys, answers."""
        listener = gate("seedA", *keys)
        return listener.greeting({}, listener.challenge("seedB", self.first.nonce or ""))

    def refused(self, greeting: HelloResult, dialler: Gate | None = None) -> str:
        with pytest.raises(PeerError) as refused:
            (dialler or gate("seedB", KEY)).answer(LISTENER_AT, self.first, greeting)
        return refused.value.detail

    def test_a_seed_that_proves_nothing(self) -> None:
        """One without a mesh key, and one that says it has one."""
        says = "the seed at seedA:5001 does not prove the mesh key"
        assert self.refused(HelloResult(1, "seedA", "open", {})) == says
        assert self.refused(HelloResult(1, "seedA", "key", {}, b64(os.urandom(32)))) == says

    @pytest.mark.parametrize("keys", [[OTHER_KEY], [OTHER_KEY, KEY]])
    def test_a_seed_that_proves_another_key(self, keys: list[str]) -> None:
        """Only the first key proves."""
        assert "does not prove" in self.refused(self.greeting(*keys))

    def test_a_proof_of_another_time(self) -> None:
        """An answer to another nonce of the dialler, recorded and played again, is refused."""
        later = gate("seedB", KEY, seed=2)
        with pytest.raises(PeerError):
            later.answer(LISTENER_AT, later.hello(), self.greeting(KEY))

    def test_a_proof_of_another_seed(self) -> None:
        """seedA's answer is not taken from whoever calls itself seedC."""
        right = self.greeting(KEY)
        assert "does not prove" in self.refused(HelloResult(1, "seedC", "key", {}, right.nonce, right.proof))

    def test_a_proof_of_the_other_side(self) -> None:
        """A dialler's proof does not answer for a listener."""
        right = self.greeting(KEY)
        handshake = Handshake("seedB", "seedA", self.first.nonce or "", right.nonce or "")
        swapped = Keyring(KEY).prove("dialler", handshake)
        assert "does not prove" in self.refused(HelloResult(1, "seedA", "key", {}, right.nonce, swapped))

    def test_without_a_key_at_a_seed_that_has_one(self) -> None:
        """The dialler says what is missing."""
        says = self.refused(self.greeting(KEY), gate("seedB"))
        assert says == "the seed at seedA:5001 asks for a mesh key: start this seed with the same --mesh-key"

    def test_without_a_key_at_a_seed_without_one(self) -> None:
        """One hello is all, without a nonce."""
        dialler = gate("seedB")
        assert dialler.hello() == HelloParams(1, "seed", "seedB")
        assert dialler.answer(LISTENER_AT, dialler.hello(), gate("seedA").greeting({}, None)) is None


def test_a_proof_that_nobody_asked_for() -> None:
    """Says what to do first."""
    with pytest.raises(Unauthorized, match="say hello with a nonce"):
        gate("seedA", KEY).check(None, "seedB", "QQ")
