"""The mesh key: how two seeds prove to each other that they belong to one mesh, without telling anybody the key.

Both sides pick a nonce, and each shows an HMAC (RFC 2104, with SHA-256) of both nonces and both names:

    dialler -> listener   hello, with the dialler's nonce
    listener -> dialler   its own nonce, and its proof over both
    dialler -> listener   hello again, with the dialler's proof over both

A proof is good for one connection, since each side has put a fresh nonce into it; for one direction, since the roles
are in it; and for these two seeds, since their names are. A listener shows its proof to anybody who asks, so a key that
can be guessed can be guessed at leisure: keys are to be random.

A user proves a seed's register token to it likewise, in a domain of its own: the user is the dialler.

Several keys are a keyring: the first one proves, any of them is accepted. So a key is changed seed by seed, without a
break. Keys stay in :class:`Keyring`, which shows them to nobody.
"""

import hashlib
import hmac
from typing import Final, Literal

from msgspec import Struct

from meshproto.core.identity import Entropy, b64
from meshproto.errors import BadParams, PeerError, Unauthorized
from meshproto.wire import NONCE_BYTES, PROTOCOL_VERSION, HelloParams, HelloResult

KEY_CHARS_MIN: Final = 16
"""Below it a key is surely a word or two; a good one is 32 random bytes in base64."""
KEYS_MAX: Final = 16
"""A rotation takes two; each key costs an HMAC for each proof that is checked."""

MARK_TEXT: Final = b"meshproto mark 1\n"
"""No proof is made of it (:func:`proven_text`)."""

Role = Literal["dialler", "listener"]
Domain = Literal["mesh", "register"]
"""What is proven: the mesh key, or a seed's register token."""


class Handshake(Struct, frozen=True):
    """What is proven over. The nonces as they travel: unpadded base64url."""

    dialler: str
    listener: str
    dialler_nonce: str
    listener_nonce: str
    domain: Domain = "mesh"


def proven_text(role: Role, handshake: Handshake) -> bytes:
    """What the HMAC is taken of: no two (role, handshake) share it, because each field says its length first (as
    D. J. Bernstein's netstrings do, https://cr.yp.to/proto/netstrings.txt)."""
    nonces = handshake.dialler_nonce, handshake.listener_nonce
    fields = [text.encode() for text in (*nonces, handshake.dialler, handshake.listener)]
    head = f"meshproto {handshake.domain} 1 {role}\n".encode()
    return head + b"".join(b"%d:%b," % (len(field), field) for field in fields)


class Keyring:
    """Keys that are never shown; an empty one is false."""

    def __init__(self, *keys: str) -> None:
        self._keys = tuple(key.encode() for key in keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"<Keyring of {len(self)}>"

    @classmethod
    def parse(cls, text: bytes, domain: Domain = "mesh") -> "Keyring":
        """A file's text: one key a line; blank lines and those that begin with # are skipped. Raises
        :class:`BadParams`, which names the line and not what is in it, in the words of the domain."""
        called, whence = _CALLED[domain]
        try:
            lines = [line.strip() for line in text.decode("utf-8-sig").split("\n")]
        except UnicodeDecodeError:
            raise BadParams(f"a {called} file is text in UTF-8") from None
        keys = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
        for number, key in keys:
            if len(key) < KEY_CHARS_MIN:
                raise BadParams(f"line {number}: a {called} has at least {KEY_CHARS_MIN} characters, not {len(key)}")
        if not keys:
            raise BadParams(f"there is no {called} in it: {whence}")
        if len(keys) > KEYS_MAX:
            raise BadParams(f"{len(keys)} {called}s, where {KEYS_MAX} are the most")
        return cls(*(key for _, key in keys))

    def prove(self, role: Role, handshake: Handshake) -> str:
        """The proof that the first key gives: unpadded base64url."""
        return _proof(self._keys[0], role, handshake)

    def accepts(self, proof: str, role: Role, handshake: Handshake) -> bool:
        """Whether one of the keys gives this proof; how long that takes does not tell how nearly it fits."""
        return any(hmac.compare_digest(proof, _proof(key, role, handshake)) for key in self._keys)

    def marks(self) -> list[str]:
        """What tells each key from others, in the open: a tag of 64 bits in hexadecimal. A key that can be guessed can
        be guessed by it, as by a proof."""
        return [hmac.new(key, MARK_TEXT, hashlib.sha256).hexdigest()[:16] for key in self._keys]

    def proven(self, proof: str, role: Role, handshake: Handshake) -> "Keyring":
        """Those of the keys that give this proof."""
        return Keyring(*(key.decode() for key in self._keys if Keyring(key.decode()).accepts(proof, role, handshake)))


NO_KEYS: Final = Keyring()

_CALLED: Final[dict[Domain, tuple[str, str]]] = {
    "mesh": ("mesh key", "write one with openssl rand -base64 32"),
    "register": ("register token", "a seed has made its own in the file register-token of its state directory"),
}
"""What a key is called, and where one comes from."""


def _proof(key: bytes, role: Role, handshake: Handshake) -> str:
    return b64(hmac.digest(key, proven_text(role, handshake), hashlib.sha256))


class Gate:
    """One seed's part in the handshake, on either side. `entropy` makes a nonce for each hello. `tokens`: what users
    have to prove who want to register."""

    def __init__(self, name: str, keys: Keyring, entropy: Entropy, tokens: Keyring = NO_KEYS) -> None:
        self._name = name
        self._keys = keys
        self._rings: dict[Domain, Keyring] = {"mesh": keys, "register": tokens}
        self._entropy = entropy

    def rekey(self, keys: Keyring, tokens: Keyring) -> None:
        """What is proven from now on, to whom nothing else was proven before: a connection that has done so stands."""
        self._keys = keys
        self._rings = {"mesh": keys, "register": tokens}

    @property
    def keyed(self) -> bool:
        """Whether this seed gossips with those alone that prove the mesh key."""
        return bool(self._keys)

    @property
    def asks_for_token(self) -> bool:
        """Whether this seed registers those alone that prove its token."""
        return bool(self._rings["register"])

    # -- listening -----------------------------------------------------------------------------------------------

    def challenge(self, dialler: str, nonce: str, domain: Domain = "mesh") -> Handshake:
        """What a dialler that said hello with the nonce has to prove."""
        return Handshake(dialler, self._name, nonce, _nonce(self._entropy), domain)

    def greeting(self, limits: dict[str, int], handshake: Handshake | None) -> HelloResult:
        """The answer to a hello; where there is a handshake it proves that this seed has what is asked for."""
        mesh = "key" if self.keyed else "open"
        if handshake is None:
            return HelloResult(PROTOCOL_VERSION, self._name, mesh, limits)
        proof = self._rings[handshake.domain].prove("listener", handshake)
        return HelloResult(PROTOCOL_VERSION, self._name, mesh, limits, handshake.listener_nonce, proof)

    def check(self, handshake: Handshake | None, dialler: str, proof: str, domain: Domain = "mesh") -> None:
        """Raises :class:`Unauthorized` unless the dialler has proven what it was asked to (None: nothing was)."""
        if handshake is None:
            raise Unauthorized("a proof answers a nonce: say hello with a nonce of your own first")
        if dialler != handshake.dialler or not self._rings[domain].accepts(proof, "dialler", handshake):
            raise Unauthorized(_NO_PROOF[domain])

    # -- dialling ------------------------------------------------------------------------------------------------

    def hello(self) -> HelloParams:
        """What is said first on a connection."""
        return HelloParams(PROTOCOL_VERSION, "seed", self._name, nonce=_nonce(self._entropy) if self.keyed else None)

    def answer(self, address: str, hello: HelloParams, greeting: HelloResult) -> HelloParams | None:
        """What is said next to the seed at the address, if anything is. Raises :class:`PeerError` when it is none to
        gossip with."""
        if not self.keyed:
            if greeting.mesh == "key":
                raise PeerError(f"the seed at {address} asks for a mesh key: start this seed with the same --mesh-key")
            return None
        handshake = Handshake(self._name, greeting.seed, hello.nonce or "", greeting.nonce or "")
        if greeting.proof is None or not self._keys.accepts(greeting.proof, "listener", handshake):
            raise PeerError(f"the seed at {address} does not prove the mesh key")
        proof = self._keys.prove("dialler", handshake)
        return HelloParams(PROTOCOL_VERSION, "seed", self._name, proof=proof)


_NO_PROOF: Final[dict[Domain, str]] = {
    "mesh": "this is no proof of the mesh key: start both seeds with the same --mesh-key",
    "register": "this is no proof of the register token: ask the seed's operator for its file register-token",
}


class Applicant:
    """A user's part in the handshake with a seed that registers those alone that prove its token. `tokens`: of several
    seeds, perhaps."""

    def __init__(self, name: str, tokens: Keyring, entropy: Entropy) -> None:
        self._name = name
        self._tokens = tokens
        self._entropy = entropy

    def rekey(self, tokens: Keyring) -> None:
        """What is proven from the next hello on."""
        self._tokens = tokens

    def hello(self) -> HelloParams:
        """What is said first on a connection."""
        return HelloParams(PROTOCOL_VERSION, "user", self._name, nonce=_nonce(self._entropy) if self._tokens else None)

    def answer(self, address: str, hello: HelloParams, greeting: HelloResult) -> HelloParams | None:
        """What is said next to the seed at the address, if it asks for anything. Raises :class:`PeerError` when none of
        the tokens is its."""
        if greeting.nonce is None or hello.nonce is None:
            return None
        handshake = Handshake(self._name, greeting.seed, hello.nonce, greeting.nonce, "register")
        theirs = self._tokens.proven(greeting.proof or "", "listener", handshake)
        if not theirs:
            raise PeerError(f"the seed at {address} asks for another register token than is in --register-token")
        return HelloParams(PROTOCOL_VERSION, "user", self._name, proof=theirs.prove("dialler", handshake))


def _nonce(entropy: Entropy) -> str:
    return b64(entropy(NONCE_BYTES))
