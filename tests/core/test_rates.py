"""What one network may ask of a seed, and who may register there."""

import random

import pytest
from msgspec import UNSET

from meshproto.core.meshkey import Applicant, Gate, Handshake, Keyring
from meshproto.core.policy import Names
from meshproto.core.rates import (
    COSTS,
    NEW_NAMES,
    REGISTRATIONS,
    REQUESTS,
    REQUESTS_AT_ONCE,
    WATCHED_PER_NETWORK_MAX,
    Rates,
)
from meshproto.core.seed import Settings
from meshproto.core.sessions import Session, Sessions
from meshproto.errors import PeerError, SlowDown
from meshproto.wire import (
    GossipParams,
    HelloParams,
    HelloResult,
    LineError,
    NameParams,
    NamesParams,
    Nothing,
    RegisterResult,
    Seeds,
    SeedsResult,
    decode_request,
    encode_request,
)
from tests.core.seed_mesh import Client, SeedMesh
from tests.core.users import forged, signed, user

TOKEN, OTHER_TOKEN = "the token of this seed", "the token of another one"


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("", True), ("10.0.0.1", False)],
)
def test_who_is_on_this_machine(host: str, local: bool) -> None:
    """Also who comes to a socket of both families, which shows IPv4 addresses as IPv6, or through a unix socket."""
    assert Session(host).local == local


def test_a_unix_socket_has_a_name() -> None:
    """It has no address that could be told."""
    rates = Rates()
    with pytest.raises(SlowDown, match="too many new names from a unix socket"):
        for _ in range(int(NEW_NAMES.burst) + 1):
            rates.new_name("", 0)


class TestRequests:
    def test_what_costs_much_is_counted_as_much(self) -> None:
        """One network gets the burst in `seeds`, at `COSTS` lookups each; then 429 with the time to wait, until that is
        over. Another network does not notice."""
        mesh = SeedMesh("seedA")
        clients = [Client(mesh, "seedA", trusted=False) for _ in range(10)]
        got = int(REQUESTS.burst - 10 * REQUESTS_AT_ONCE) // COSTS[Seeds]
        for number in range(got):
            clients[number % 10].call("seeds", Nothing(), SeedsResult)
        clients[0].refused("seeds", Nothing())
        error = clients[0].refused("seeds", Nothing())
        assert (error.code, error.message) == (429, "slow down")
        assert error.data.retry_after is not None
        Client(mesh, "seedA").call("seeds", Nothing(), SeedsResult)
        mesh.advance(error.data.retry_after + 0.001)
        clients[0].call("seeds", Nothing(), SeedsResult)


class TestRegistrations:
    def test_the_burst_and_no_more(self) -> None:
        """Registrations and farewells of one network, also those that are refused: a signature costs its check."""
        mesh = SeedMesh("seedA")
        client = Client(mesh, "seedA")
        for _ in range(int(REGISTRATIONS.burst)):
            assert client.refused("register", forged(signed("UserX", 1))).code == 403
        assert client.refused("register", signed("UserX", 1)).code == 429
        assert client.refused("unregister", signed("UserX", 2, gone=True)).code == 429
        assert Client(mesh, "seedA", trusted=False).call("register", signed("UserX", 1), RegisterResult)

    def test_new_names(self) -> None:
        """A network may add so many names that nobody had, and waits for more."""
        rates = Rates()
        for _ in range(int(NEW_NAMES.burst)):
            rates.new_name("8.8.8.8", 0)
        with pytest.raises(SlowDown) as refused:
            rates.new_name("8.8.8.8", 0)
        assert refused.value.retry_after_s == pytest.approx(1 / NEW_NAMES.per_s)
        rates.new_name("8.8.4.4", 0)

    def test_a_known_name_is_not_new(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The seed counts only names that it has never heard of, and none of its own machine."""
        mesh = SeedMesh("seedA")
        counted: list[str] = []
        monkeypatch.setattr(Rates, "new_name", lambda _, network, now: counted.append(network))
        for seq in (1, 2):
            Client(mesh, "seedA", trusted=False).call("register", signed("UserX", seq), RegisterResult)
        for number, host in enumerate(("127.0.0.1", "::1", "")):
            mesh["seedA"].seed.opened(1000 + number, host)
            mesh["seedA"].lines[1000 + number] = []
            line = encode_request("register", signed(f"Here{number}", 1), 1)
            mesh.receive("seedA", 1000 + number, line)
            assert mesh["seedA"].lines[1000 + number][-1].error is UNSET
        assert counted == ["8.8.8.8"]


def test_watched_names_of_a_network() -> None:
    """Over however many links WATCHED_PER_NETWORK_MAX; who goes or unwatches gives them back."""
    sessions, step = Sessions(30.0), 10_000
    for link in range(WATCHED_PER_NETWORK_MAX // step + 1):
        sessions.opened(link, "10.0.0.1")
    sessions.opened(100, "10.0.0.2")
    for link in range(WATCHED_PER_NETWORK_MAX // step):
        sessions.watch(link, {f"{link}-{number}" for number in range(step)})
    last = WATCHED_PER_NETWORK_MAX // step
    with pytest.raises(SlowDown, match=r"10\.0\.0\.1"):
        sessions.watch(last, {"one"})
    sessions.watch(100, {"one"})
    sessions.unwatch(0, sessions[0], {"0-1", "no such"})
    sessions.watch(last, {"one"})
    sessions.closed(1)
    sessions.watch(last, {str(number) for number in range(step - 1)})
    for link in (*range(2, last + 1), 0, 100):
        sessions.closed(link)
    assert not sessions._watched


class TestRegisterToken:
    def seed(self) -> Client:
        return Client(SeedMesh("seedA", settings=Settings(register_tokens=Keyring(TOKEN))), "seedA")

    def prove(self, to: Client, *tokens: str, name: str = "UserX") -> None:
        applicant = Applicant(name, Keyring(*tokens), random.Random(1).randbytes)
        hello = applicant.hello()
        answer = applicant.answer("seedA:5001", hello, to.call("hello", hello, HelloResult))
        if answer is not None:
            to.call("hello", answer, HelloResult)

    @pytest.mark.parametrize("tokens", [[TOKEN], [OTHER_TOKEN, TOKEN]])
    def test_who_proves_it_registers(self, tokens: list[str]) -> None:
        """With it alone, or among those of other seeds; neither side has said it."""
        client = self.seed()
        self.prove(client, *tokens)
        client.call("register", signed("UserX", 1), RegisterResult)

    def test_who_does_not_is_told_which_option_to_give(self) -> None:
        """Registering is 401; looking up stays open."""
        client = self.seed()
        self.prove(client)
        error = client.refused("register", signed("UserX", 1))
        assert (error.code, "--register-token" in error.data.detail) == (401, True)
        assert client.refused("lookup", NameParams("UserX")).code == 404

    def test_another_token(self) -> None:
        """The node notices that the seed has another one, and proves nothing."""
        with pytest.raises(PeerError, match="another register token"):
            self.prove(self.seed(), OTHER_TOKEN)

    def test_a_proof_is_good_for_one_connection_and_one_domain(self) -> None:
        """What was heard on the wire registers nobody, nor does a proof of the mesh key, nor one of nothing."""
        settings = Settings(register_tokens=Keyring(TOKEN), mesh_keys=Keyring(OTHER_TOKEN))
        mesh = SeedMesh("seedA", settings=settings)
        client, nonce = Client(mesh, "seedA"), "A" * 43
        told = client.call("hello", HelloParams(1, "user", "UserX", nonce=nonce), HelloResult)
        made = Handshake("UserX", "seedA", nonce, told.nonce or "", "register")
        proof = Keyring(TOKEN).prove("dialler", made)
        replayed = Client(mesh, "seedA")
        assert replayed.refused("hello", HelloParams(1, "user", "UserX", proof=proof)).code == 401
        replayed.call("hello", HelloParams(1, "user", "UserX", nonce=nonce), HelloResult)
        assert replayed.refused("hello", HelloParams(1, "user", "UserX", proof=proof)).code == 401
        gate = Gate("seedB", Keyring(OTHER_TOKEN), random.Random(1).randbytes)
        first = gate.hello()
        answer = gate.answer("seedA:5001", first, replayed.call("hello", first, HelloResult))
        assert answer is not None and answer.proof is not None
        crossed = HelloParams(1, "user", "seedB", proof=answer.proof)
        assert replayed.refused("hello", crossed).code == 401
        assert replayed.refused("register", signed("UserX", 1)).code == 401
        client.call("hello", HelloParams(1, "user", "UserX", proof=proof), HelloResult)
        client.call("register", signed("UserX", 1), RegisterResult)
        assert client.refused("gossip", GossipParams({})).code == 401


def test_a_list_of_those_who_may_register() -> None:
    """Whoever is not on it, or has another key than stands there, is refused; lookups stay open."""
    names = Names.parse(f"UserX\nBobby~{user(1).fingerprint}\n")
    client = Client(SeedMesh("seedA", settings=Settings(may_register=names.allow)), "seedA")
    client.call("register", signed("UserX", 1, owner=2), RegisterResult)
    client.call("register", signed("Bobby", 1, owner=1), RegisterResult)
    assert client.refused("register", signed("Eve", 1)).code == 403
    assert client.refused("register", signed("Bobby", 2, owner=2)).code == 403
    assert client.refused("lookup", NameParams("Eve")).code == 404


def test_names_that_are_not_listed() -> None:
    """`--names no`: neither a page nor a prefix tells who is there."""
    client = Client(SeedMesh("seedA", settings=Settings(list_names=False)), "seedA")
    client.call("register", signed("UserX", 1), RegisterResult)
    for params in (NamesParams(), NamesParams(prefix="u"), NamesParams(after="a", limit=1)):
        error = client.refused("names", params)
        assert (error.code, "UserX" in error.data.detail) == (403, False)


@pytest.mark.parametrize("number", [b"1e999", b"9" * 5000, b"-" + b"9" * 60_000, b"0." + b"1" * 60_000])
def test_numbers_that_are_none(number: bytes) -> None:
    """A number that does not fit is an error where one is meant, and nothing where nobody looks."""

    for line in (
        b'{"jsonrpc":"2.0","id":%b,"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":"names","params":{"limit":%b}}',
    ):
        with pytest.raises(LineError) as wrong:
            decode_request(line % number)
        assert wrong.value.error.code in (400, -32600, -32700)
    decode_request(b'{"jsonrpc":"2.0","id":1,"method":"ping","else":%b}' % number)
