"""/openapi.json says what a node does, no more and no less."""

import importlib.util
import re
from typing import Any, get_args

import pytest

from bench import contract as run
from meshproto.core import http1
from meshproto.core.identity import ADDRESS_PATTERN
from meshproto.core.queue import Status
from meshproto.errors import MeshError
from meshproto.net import contract, contract_shapes, http_channel, http_limits, http_request
from meshproto.net.contract import document
from meshproto.net.door import Door
from meshproto.net.exposition import CONTENT_TYPE
from meshproto.net.face import Face, site
from meshproto.net.front import Front
from meshproto.net.history_front import HistoryFront
from meshproto.net.http import LOOPBACK_HOSTS
from meshproto.net.public_front import PUBLIC_PATHS, PublicFront
from tests.world import USER_PORT, World

EXAMPLES = 5
"""About five seconds; `make contract` takes more of them."""


def operations() -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, told in document(public=True)["paths"].items() for method in told}


def routes() -> set[tuple[str, str]]:
    """What the code answers: HEAD comes with each GET."""
    found = set()
    for rule in (rule for front in (Front, HistoryFront, PublicFront) for rule in front.app.url_map.iter_rules()):
        path = rule.rule.replace("<id:message_id>", "{id}").replace("<", "{").replace(">", "}")
        found |= {(method, path) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    return found


def test_every_route_is_told_and_no_other() -> None:
    assert operations() == routes()


def test_it_is_served(client_world: World) -> None:
    """As it is made, to the owner."""
    answer = client_world.get("UserX", "/openapi.json")
    assert answer.code == 200
    assert answer.json == document(public=True)


def test_the_owners_own_listener_tells_of_no_public_route(client_world: World) -> None:
    """What is not served beside the document is not in it; what is, is."""
    host, node = client_world.hosts["UserX"], client_world.users["UserX"]
    host.tcpServers.clear()
    host.listenTCP(USER_PORT, site(Face(None, node.front, Door(None, LOOPBACK_HOSTS)), host))
    told = client_world.get("UserX", "/openapi.json").json
    assert told == document(public=False)
    assert document(public=True)["paths"].keys() - told["paths"].keys() == PUBLIC_PATHS
    assert {"Sealed", "WellKnown"} & told["components"]["schemas"].keys() == set()


@pytest.mark.parametrize("operation", contract.OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_what_the_listener_itself_refuses_is_told_of_every_route(operation: contract.Operation) -> None:
    """All errors that the channel and its limits know, whatever is asked, and our own."""
    answers = document(public=True)["paths"][operation.path][operation.method]["responses"]
    files = (http1, http_channel, http_limits, http_request)
    named = {value for file in files for value in vars(file).values() if isinstance(value, type)}
    refused = {error.code for error in named if issubclass(error, MeshError)}
    assert {408, 413, 414, 429, 431, 503} < refused
    assert {str(code) for code in refused} <= answers.keys()


@pytest.mark.parametrize("public", [True, False])
def test_every_reference_leads_somewhere(public: bool) -> None:
    told = document(public=public)
    schemas = told["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(inner) for inner in value.values()))
        return set().union(*(references(inner) for inner in value)) if isinstance(value, list) else set()

    wanted = {reference.removeprefix("#/components/schemas/") for reference in references(told)}
    assert wanted == schemas.keys()


def test_the_states_of_a_message_are_those_there_are() -> None:
    assert set(get_args(contract_shapes.Result.__annotations__["status"])) == {*Status, "failed"}


@pytest.mark.parametrize("operation", contract.OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_errors_are_problem_documents(operation: contract.Operation) -> None:
    """And good answers are not."""
    answers = document(public=True)["paths"][operation.path][operation.method]["responses"]
    others = {
        "/qr": ["image/svg+xml"],
        "/contacts/{name}/qr": ["image/svg+xml"],
        "/metrics": [CONTENT_TYPE.decode()],
        "/inbox/stream": ["text/event-stream", "application/x-ndjson"],
    }
    for code, answer in answers.items():
        good = others.get(operation.path, ["application/json"])
        if operation.streams and code == "200":
            good = ["application/json", "application/x-ndjson"]
        assert list(answer["content"]) == (good if int(code) < 300 else ["application/problem+json"])


def test_an_address_in_it_is_what_a_node_takes_for_one() -> None:
    """One pattern, wherever an address is told or asked for."""
    told = document(public=True)
    schemas = told["components"]["schemas"]
    assert schemas["Found"]["properties"]["address"]["pattern"] == ADDRESS_PATTERN
    assert schemas["SendBody"]["properties"]["to"]["anyOf"][0]["pattern"] == ADDRESS_PATTERN
    assert told["paths"]["/lookup/{name}"]["get"]["parameters"][0]["schema"]["pattern"] == ADDRESS_PATTERN


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_a_node_keeps_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever schemathesis asks: nothing that the document does not say is answered, nothing taken that it does not
    allow, nothing refused that it does, and no error of ours."""
    assert run.main(["--examples", str(EXAMPLES)]) == 0, capfd.readouterr().out
    said = capfd.readouterr().out
    tested = re.search(r"Selected: (\d+)/(\d+)\n +Tested: \1\n", said)
    assert tested is not None
    left_out = int(tested[2]) - int(tested[1])
    assert left_out == 1  # the stream, which does not end
    assert int(tested[1]) >= len(contract.OPERATIONS) - left_out - 1  # it leaves out the document itself
    assert "0 errors in the node's log" in said


@pytest.fixture
def client_world() -> World:
    world = World(seed=1)
    world.add_seed("seedX")
    world.add_user("UserX", ["seedX"])
    world.run(1)
    return world
