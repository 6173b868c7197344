"""The lines of the seed protocol: what is taken, what is refused and with which words."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET, Raw, Struct

from meshproto import wire
from meshproto.errors import BadParams, PeerError, SlowDown

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)

GOSSIP = {"digest": {"seedX": [1, 2, 3, 0]}, "delta": [["seedX", 1, 0, 2, 2, 0, [["u", 2, None]]]]}


def request(**fields: Any) -> bytes:
    """A ping with id 1, with other or more fields; `...` leaves one out."""
    given = {"jsonrpc": "2.0", "id": 1, "method": "ping"} | fields
    return json.dumps({key: value for key, value in given.items() if value is not ...}).encode()


def lookup(name: Any) -> bytes:
    return request(method="lookup", params={"name": name})


def refused(line: bytes) -> tuple[Any, int, str]:
    """Id, code and detail of the error answer to a line."""
    with pytest.raises(wire.LineError) as raised:
        wire.decode_request(line)
    return raised.value.request_id, raised.value.error.code, raised.value.error.detail


# -- requests that are taken --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "kind"),
    [
        ("hello", {"version": 1, "role": "seed", "name": "seedX", "proof": "QQ"}, wire.Hello),
        ("register", {"record": "{}", "sig": "QQ"}, wire.Register),
        ("unregister", {"record": "{}", "sig": "QQ"}, wire.Unregister),
        ("lookup", {"name": "UserX"}, wire.Lookup),
        ("watch", {"names": ["UserX"]}, wire.Watch),
        ("unwatch", {"names": []}, wire.Unwatch),
        ("names", {"prefix": "a", "after": "ab", "limit": 5}, wire.Names),
        ("seeds", {}, wire.Seeds),
        ("ping", {}, wire.Ping),
        ("status", {}, wire.Status),
        ("gossip", GOSSIP, wire.Gossip),
    ],
)
def test_every_method_of_the_protocol_is_read(method: str, params: Any, kind: type[Struct]) -> None:
    """A line becomes the request of its method, with the parameters it gave."""
    read = wire.decode_request(request(method=method, params=params))
    assert type(read) is kind
    assert msgspec.json.decode(msgspec.json.encode(read))["params"].items() >= params.items()


def test_the_methods_are_those_that_can_be_decoded() -> None:
    """METHODS, which decides between 400 and -32601, names the requests of the union and no other."""
    assert {kind.__struct_config__.tag for kind in wire.Request.__subclasses__()} == wire.METHODS


@pytest.mark.parametrize("method", ["names", "seeds", "ping", "status"])
def test_parameters_that_may_be_left_out(method: str) -> None:
    """`nc` users need not type an empty object."""
    assert wire.decode_request(request(method=method)).id == 1


@settings(max_examples=50)
@given(st.dictionaries(st.text(max_size=5), json_values, max_size=3))
def test_unknown_fields_are_ignored(extra: dict[str, Any]) -> None:
    """A later version may say more, beside the parameters and in them."""
    line = request(method="lookup", params={"name": "UserX", "later": extra}, **{f"x{key}": extra for key in extra})
    assert wire.decode_request(line) == wire.Lookup(jsonrpc="2.0", id=1, params=wire.NameParams("UserX"))


@given(st.integers(-(2**53), 2**53) | st.text(max_size=wire.ID_CHARS_MAX))
def test_an_id_comes_back_as_it_was(request_id: int | str) -> None:
    """Integers to 2**53 and strings to ID_CHARS_MAX are ids; answers and errors carry them unchanged."""
    line = wire.encode_request("ping", wire.Nothing(), request_id)
    assert wire.decode_request(line).id == request_id
    assert wire.decode_answer(wire.encode_result(request_id, wire.Nothing())).id == request_id
    assert wire.decode_answer(wire.encode_error(request_id, SlowDown())).id == request_id


def test_without_id_it_is_a_notification() -> None:
    """A request without `id` is told from one with any id."""
    assert wire.decode_request(request(id=...)).id is UNSET
    assert wire.decode_request(wire.encode_request("ping", wire.Nothing())).id is UNSET


def test_a_line_may_end_in_a_carriage_return() -> None:
    """telnet and Windows send one."""
    assert wire.decode_request(request() + b"\r").id == 1


# -- lines that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"{",
        b'{"jsonrpc":"2.0"',
        request() + b" x",
        request()[:-1] + b",}",
        b'\xef\xbb\xbf{"id":1}',
        b"\xff",
    ],
)
def test_broken_json_is_a_parse_error(line: bytes) -> None:
    """What is not JSON is answered with -32700 and a null id."""
    request_id, code, detail = refused(line)
    assert (request_id, code) == (None, -32700)
    assert detail.startswith("not JSON in UTF-8: ")


def test_broken_json_behind_a_wrong_value_is_a_parse_error() -> None:
    """A line is wrong as JSON first, and as a request second."""
    assert refused(b'{"jsonrpc":"2.0","id":1,"method":"lookup","params":{"name":5},')[1] == -32700


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80"])
def test_invalid_utf8_is_a_parse_error(bad: bytes) -> None:
    """Bytes that are no UTF-8 are answered with -32700."""
    line = lookup("NAME").replace(b"NAME", b"a" + bad + b"a")
    assert refused(line)[:2] == (None, -32700)
    assert refused(request(method="METHOD").replace(b"METHOD", b"pi" + bad + b"ng"))[1] == -32700


@pytest.mark.parametrize("field", ["later", "params", "id"])
def test_deep_nesting_is_a_parse_error(field: str) -> None:
    """A line of brackets does not fell the reader, wherever they stand."""
    line = request(**{field: "DEEP"}).replace(b'"DEEP"', b"[" * 20_000 + b"]" * 20_000)
    assert len(line) < wire.LINE_BYTES_MAX
    assert refused(line)[:2] == (None, -32700)
    assert refused(b'{"a":' * 10_000)[:2] == (None, -32700)


@pytest.mark.parametrize("line", [b"[]", b" [1]", b"[" + request() + b"]", b"[" * 60_000])
def test_arrays_are_refused(line: bytes) -> None:
    """A JSON-RPC batch is answered with -32600 and a hint at pipelining."""
    request_id, code, detail = refused(line)
    assert (request_id, code) == (None, -32600)
    assert "arrays are not taken" in detail


@pytest.mark.parametrize("line", [b"1", b'"ping"', b"null", b"true"])
def test_other_json_is_no_request(line: bytes) -> None:
    """A request is an object."""
    assert refused(line)[:2] == (None, -32600)


@pytest.mark.parametrize("request_id", [None, True, 1.5, 1.0, [1], {}, "x" * 129, 2**53 + 1, -(2**53) - 1, 10**30])
def test_other_ids_are_refused(request_id: Any) -> None:
    """Null, booleans, floats, containers, long strings and huge integers are no ids; they are not sent back."""
    answered, code, detail = refused(request(id=request_id))
    assert (answered, code) == (None, -32600)
    assert detail.startswith("id must be")


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (request(jsonrpc=...), '"jsonrpc":"2.0" is missing'),
        (request(jsonrpc="1.0"), '"jsonrpc":"2.0" is missing'),
        (request(jsonrpc=2.0), '"jsonrpc":"2.0" is missing'),
        (request(method=...), '"method" must be a string'),
        (request(method=5), '"method" must be a string'),
        (request(method=None), '"method" must be a string'),
    ],
)
def test_what_json_rpc_asks_for(line: bytes, detail: str) -> None:
    """A request without its version or method is answered with -32600, to its id."""
    assert refused(line) == (1, -32600, detail)


@pytest.mark.parametrize("method", ["nope", "", "PING", "rpc.discover", "x" * 1000])
def test_an_unknown_method_is_answered(method: str) -> None:
    """-32601 to the request's id; the detail names the methods there are, and not all of a long name."""
    request_id, code, detail = refused(request(id="a", method=method))
    assert (request_id, code) == ("a", -32601)
    assert "gossip, hello, lookup" in detail
    assert len(detail) < 250


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (request(method="lookup"), "Object missing required field `params`"),
        (request(method="lookup", params={}), "Object missing required field `name` - at `$.params`"),
        (request(method="lookup", params=["UserX"]), "Expected `object`, got `array` - at `$.params`"),
        (request(params=None), "Expected `object`, got `null` - at `$.params`"),
        (lookup(5), "Expected `str`, got `int` - at `$.params.name`"),
        (lookup("a b"), "a name has 1 to 64 of A-Z a-z 0-9 . _ - - at `$.params.name`"),
        (request(method="names", params={"limit": 501}), "Expected `int` <= 500 - at `$.params.limit`"),
        (request(method="hello", params={"version": 1, "role": "x"}), "Invalid enum value 'x' - at `$.params.role`"),
        (
            request(method="gossip", params={"digest": {"s": [-1, 0, 0]}}),
            "Expected `int` >= 0 - at `$.params.digest[...][0]`",
        ),
    ],
)
def test_bad_params_say_what_and_where(line: bytes, detail: str) -> None:
    """400 to the request's id, with msgspec's sentence: what was expected, what came, and where."""
    assert refused(line) == (1, 400, detail)


@pytest.mark.parametrize("char", ["\x7f", "\x01", "'", "\\", "x", "\N{SNOWMAN}"])
def test_an_error_answer_does_not_grow_with_the_line(char: str) -> None:
    """What is quoted of a wrong value is cut: the answer fits in a line, whatever the value was."""
    value = char * (60_000 // len(json.dumps(char, ensure_ascii=False).encode()))
    line = msgspec.json.encode(
        {"jsonrpc": "2.0", "id": "i" * 128, "method": "hello", "params": {"version": 1, "role": value}}
    )
    with pytest.raises(wire.LineError) as raised:
        wire.decode_request(line)
    assert raised.value.error.code == 400
    assert len(raised.value.error.detail) == wire.REASON_CHARS_MAX
    assert len(wire.encode_error(raised.value.request_id, raised.value.error)) < wire.LINE_BYTES_MAX


@settings(max_examples=300)
@given(
    json_values | st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "method": st.sampled_from(sorted(wire.METHODS))})
)
def test_any_json_is_a_request_or_a_line_error(value: Any) -> None:
    """No JSON makes the decoder raise anything else."""
    check_decodes(msgspec.json.encode(value))


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 70))
def test_any_bytes_are_a_request_or_a_line_error(noise: bytes, at: int) -> None:
    """No bytes, alone or inside of a good line, make the decoder raise anything else."""
    line = lookup("UserX")
    check_decodes(noise)
    check_decodes(line[:at] + noise + line[at:])


def check_decodes(line: bytes) -> None:
    try:
        wire.decode_request(line)
    except wire.LineError as wrong:
        assert wire.decode_answer(wire.encode_error(wrong.request_id, wrong.error)).id == wrong.request_id


# -- limits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "params", "too_much"),
    [
        ("lookup", {"name": "n" * wire.NAME_CHARS_MAX}, {"name": "n" * (wire.NAME_CHARS_MAX + 1)}),
        ("watch", {"names": ["n" * 64] * wire.WATCH_NAMES_MAX}, {"names": ["n"] * (wire.WATCH_NAMES_MAX + 1)}),
        ("names", {"limit": wire.NAMES_PAGE_MAX}, {"limit": wire.NAMES_PAGE_MAX + 1}),
        ("names", {"prefix": "p" * wire.NAME_CHARS_MAX}, {"prefix": "p" * (wire.NAME_CHARS_MAX + 1)}),
        (
            "register",
            {"record": '"' * wire.RECORD_CHARS_MAX, "sig": "s" * 128},
            {"record": "r" * (wire.RECORD_CHARS_MAX + 1), "sig": "s"},
        ),
        ("register", {"record": "", "sig": "s" * 128}, {"record": "", "sig": "s" * 129}),
        (
            "gossip",
            {"digest": {f"s{number}": [10**13 - 1, 10**10 - 1, 10**10 - 1, 10**10 - 1] for number in range(1000)}},
            {"digest": {f"s{number}": [1, 1, 1] for number in range(wire.GOSSIP_SEEDS_MAX + 1)}},
        ),
    ],
)
def test_a_list_or_text_has_its_limit(method: str, params: Any, too_much: Any) -> None:
    """Each limit is reached by a request that fits in a line; one more is answered with 400."""
    line = msgspec.json.encode({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
    assert len(line) < wire.LINE_BYTES_MAX
    assert wire.decode_request(line).id == 1
    assert refused(request(method=method, params=too_much))[:2] == (1, 400)


@pytest.mark.parametrize("name", ["a", "A.b_c-9", "0", "-", "n" * 64])
def test_names(name: str) -> None:
    """Letters, digits, dot, underscore and hyphen make a name."""
    assert wire.decode_request(lookup(name)).params == wire.NameParams(name)


@pytest.mark.parametrize("name", ["", "n" * 65, "a b", "a\n", "\na", "ä", "a~b", "a@b", "a/b", "\N{KELVIN SIGN}"])
def test_other_names_are_refused(name: str) -> None:
    """Nothing else does: no newline at the end, no letter that only folds to ASCII."""
    assert wire.NAME_RULE in refused(lookup(name))[2]


def test_names_are_compared_without_case() -> None:
    """`fold` is the form in which names are compared."""
    assert wire.fold("UserX") == wire.fold("uSERx") != wire.fold("UserY")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("localhost:5001", ("localhost", 5001)),
        ("[::1]:1", ("::1", 1)),
        ("192.0.2.7:65535", ("192.0.2.7", 65535)),
        ("tls:seed.example:5001", ("seed.example", 5001)),
        ("tls:[::1]:1", ("::1", 1)),
    ],
)
def test_an_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    """Host and port stand apart; an IPv6 address needs its brackets; `tls:` may stand before all."""
    assert wire.split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "localhost",
        ":5001",
        "h:",
        "h:0",
        "h:65536",
        "h:-1",
        "h:+1",
        "h: 1",
        "tls:5001",
        "tls:tls:h:1",
        "TLS:h:1",
        "h:x",
        "::1:80",
        "[]:80",
        "h:٣",
        "h:" + "9" * 5000,
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    """Anything else raises BadParams that quotes it, but not at full length."""
    with pytest.raises(BadParams) as raised:
        wire.split_address(address)
    assert len(raised.value.detail) < 130


# -- answers ------------------------------------------------------------------------------------------------------


def test_an_answer_is_one_line() -> None:
    """Whatever text is in it, the only newline is the last byte."""
    entry = wire.LookupResult("a\nb\u2028", "QQ", 1, "seed\n", True, 2)
    for line in (wire.encode_result("i\nd", entry), wire.encode_error(1, SlowDown("a\nb"))):
        assert line.index(b"\n") == len(line) - 1
    assert entry.signed == wire.SignedRecord("a\nb\u2028", "QQ")


def test_a_result_comes_through() -> None:
    """What one side encodes the other decodes."""
    status = wire.StatusResult("seedX", "1", 1.5, 1, 2, 3, 4, 5, 6, 7)
    answer = wire.decode_answer(wire.encode_result(7, status))
    assert isinstance(answer.result, Raw)
    assert wire.decode_value(answer.result, wire.StatusResult) == status


@pytest.mark.parametrize("moment", [-1, 2**53 + 1, 10**30])
def test_a_moment_that_is_none_is_the_peers_fault(moment: int) -> None:
    """No page and no program of the owner is shown a number that is no time."""
    entry = wire.encode_value(wire.LookupResult("{}", "QQ", 1, "seedX", True, 777))
    seed = wire.encode_value(wire.SeedInfo("seedX", "127.0.0.1:1", True, 1, 777))
    for text, kind in ((entry, wire.LookupResult), (seed, wire.SeedInfo)):
        assert wire.decode_value(Raw(text), kind)
        with pytest.raises(PeerError):
            wire.decode_value(Raw(text.replace(b"777", b"%d" % moment)), kind)


def test_a_result_of_another_shape_is_the_peers_fault() -> None:
    """The error names what was expected."""
    with pytest.raises(PeerError, match=r"unexpected NamesResult: .*`names`"):
        wire.decode_value(b"{}", wire.NamesResult)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b"\xff", b'{"jsonrpc":"2.0","id":1.5}', b"[" * 50_000, b'{"a":' * 9000]
)
def test_a_line_that_is_no_answer_is_the_peers_fault(line: bytes) -> None:
    """A seed that does not talk JSON-RPC raises PeerError, nothing else."""
    with pytest.raises(PeerError):
        wire.decode_answer(line)
