"""/openapi.json says what a node does, no more and no less."""

import importlib.util
import re
from typing import Any, get_args

import pytest

from bench import contract as run
from meshproto.core.queue import Status
from meshproto.net import contract
from meshproto.net.contract import document
from meshproto.net.front import Front
from meshproto.net.public_front import PublicFront
from tests.world import World

EXAMPLES = 5
"""About five seconds; `make contract` takes more of them."""


def operations() -> set[tuple[str, str]]:
    return {(method.upper(), path) for path, told in document()["paths"].items() for method in told}


def routes() -> set[tuple[str, str]]:
    """What the code answers: HEAD comes with each GET."""
    found = set()
    for rule in (*Front.app.url_map.iter_rules(), *PublicFront.app.url_map.iter_rules()):
        path = rule.rule.replace("<id:message_id>", "{id}").replace("<", "{").replace(">", "}")
        found |= {(method, path) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}}
    return found


def test_every_route_is_told_and_no_other() -> None:
    assert operations() == routes()


def test_it_is_served(client_world: World) -> None:
    """As it is made, to the owner."""
    answer = client_world.get("UserX", "/openapi.json")
    assert answer.code == 200
    assert answer.json == document()


def test_every_reference_leads_somewhere() -> None:
    told = document()
    schemas = told["components"]["schemas"]

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(inner) for inner in value.values()))
        return set().union(*(references(inner) for inner in value)) if isinstance(value, list) else set()

    wanted = {reference.removeprefix("#/components/schemas/") for reference in references(told)}
    assert wanted == schemas.keys()


def test_the_states_of_a_message_are_those_there_are() -> None:
    assert set(get_args(contract.Result.__annotations__["status"])) == {*Status, "failed"}


@pytest.mark.parametrize("operation", contract.OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_errors_are_problem_documents(operation: contract.Operation) -> None:
    """And good answers are not."""
    answers = document()["paths"][operation.path][operation.method]["responses"]
    for code, answer in answers.items():
        good = "image/svg+xml" if operation.path.endswith("/qr") else "application/json"
        kind = good if int(code) < 300 else "application/problem+json"
        assert list(answer["content"]) == [kind]


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_a_node_keeps_to_it(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever schemathesis asks: nothing that the document does not say is answered, nothing taken that it does not
    allow, nothing refused that it does, and no error of ours."""
    assert run.main(["--examples", str(EXAMPLES)]) == 0, capfd.readouterr().out
    said = capfd.readouterr().out
    tested = re.search(r"Selected: (\d+)/\1\n +Tested: \1\n", said)
    assert tested is not None
    assert int(tested[1]) >= len(contract.OPERATIONS) - 1  # it leaves out the document itself
    assert "0 errors in the node's log" in said


@pytest.fixture
def client_world() -> World:
    world = World(seed=1)
    world.add_seed("seedX")
    world.add_user("UserX", ["seedX"])
    world.run(1)
    return world
