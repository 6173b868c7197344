"""The examples of /openapi.json: there for everything, of the shape they are given for, and true of a running node."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from nacl.public import PrivateKey
from nacl.signing import SigningKey
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from meshproto.cli.processes import Children, until
from meshproto.client import Client
from meshproto.core.identity import Identity
from meshproto.net.contract import OPERATIONS, Operation, document
from meshproto.net.contract_examples import EXAMPLES, LINES, Example, curl
from tests.net.raw_http import RawHTTP
from tests.world import World

DOCUMENT = document(public=True)
BY_ID = {operation.id: operation for operation in OPERATIONS}
ASKED = [(BY_ID[key], one) for key, examples in EXAMPLES.items() for one in examples if one.asked]
named = pytest.mark.parametrize(
    ("operation", "example"), ASKED, ids=[f"{operation.id} {one.name}" for operation, one in ASKED]
)


def told(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][operation.path][operation.method]
    return found


def fits(schema: Any, value: Any) -> list[str]:
    """What is wrong with a value."""
    whole = {**schema, "components": DOCUMENT["components"]}
    return [error.message for error in jsonschema_rs.Draft202012Validator(whole).iter_errors(value)]


def identity(signing: range, mail: range) -> Identity:
    """Of docs/protocol.md's test vectors."""
    return Identity(SigningKey(bytes(signing)), (PrivateKey(bytes(mail)),), (0,))


# -- the document -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("public", [True, False])
def test_it_is_openapi(public: bool) -> None:
    """By the schema of OpenAPI 3.1, with nothing that is told twice."""
    made = document(public=public)
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(made)] == []
    ids = [one["operationId"] for path in made["paths"].values() for one in path.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.id)
def test_there_is_an_example_for_everything(operation: Operation) -> None:
    """Of every body and every answer, by the media types they have, and of the right shape; and words for all of it."""
    this = told(operation)
    assert this["description"]
    assert this["tags"][0] in {tag["name"] for tag in DOCUMENT["tags"]}
    for parameter in this["parameters"]:
        assert parameter["description"]
        for example in parameter.get("examples", {}).values():
            assert fits(parameter["schema"], example["value"]) == []
    for place in [*this["responses"].values(), *([this["requestBody"]] if "requestBody" in this else [])]:
        for kind, content in place["content"].items():
            assert content["examples"], kind
    for code, answer in this["responses"].items():
        for content in answer["content"].values():
            for name, example in content["examples"].items():
                assert fits(content["schema"], example["value"]) == [], (code, name)
    for path_parameter in (one for one in this["parameters"] if one["in"] == "path"):
        assert path_parameter["examples"]


@named
def test_what_is_asked_has_its_shape(operation: Operation, example: Example) -> None:
    if example.body is not None:
        content = told(operation)["requestBody"]["content"][example.sends]
        assert content["examples"][example.name]["value"] == example.body
        assert fits(content["schema"], example.body) == []


# -- the node -----------------------------------------------------------------------------------------------------


KEYS = {
    "UserX": identity(range(32), range(32, 64)),
    "Bobby": identity(range(64, 96), range(96, 128)),
}


class VectorWorld(World):
    """Whose users have the keys of the test vectors."""

    def _start_user(self, name: str) -> None:
        self.identities[name] = KEYS.get(name, self.identities[name])
        super()._start_user(name)


@pytest.fixture
def world() -> Iterator[World]:
    """UserX's node, with a message from Bobby, one that waits for Carl, and one to both."""
    world = VectorWorld(seed=3)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby", "Carl"):
        world.add_user(name, ["seedX"])
    world.run(1)
    world.send("Bobby", "UserX", "lunch?", id="m1")
    world.stop("Carl")
    world.post("UserX", "/send", {"to": ["Bobby", "Carl"], "message": "lunch", "id": "lunch-1", "wait": 1})
    world.send("UserX", "Carl", "Call me", id="note-7", wait=0)
    world.run(1)
    yield world
    world.close()


def headers_of(example: Example) -> dict[str, str]:
    headers = {"Content-Type": example.sends} if example.body is not None else {}
    return headers | ({"Accept": example.brings} if example.brings else {})


@named
def test_a_node_answers_so(world: World, operation: Operation, example: Example) -> None:
    """With the code that is told, the media type, and the shape; and where nothing is left to chance, the same."""
    if operation.path == "/inbox/stream":
        pytest.skip("it does not end: see the next test")
    client = RawHTTP(world, "UserX")
    content = (example.content() or "").encode()
    fields = {"Host": "127.0.0.1", "Content-Length": str(len(content)), "Connection": "close", **headers_of(example)}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    client.say(f"{operation.method.upper()} {example.target(operation.path)} HTTP/1.1\r\n{head}\r\n".encode() + content)
    world.run_until(lambda: client.closed)
    code, fields, body = client.answers[0]
    assert (code, fields["content-type"]) == (example.code, example.media_type), body
    schema = told(operation)["responses"][str(code)]["content"][example.media_type]["schema"]
    is_json = example.media_type.endswith("json") and example.media_type != LINES
    assert fits(schema, json.loads(body) if is_json else body.decode()) == []
    if example.code >= 400:
        problem = json.loads(body)
        assert {**problem, "detail": ""} == {**example.answer, "detail": ""}
    if is_json and isinstance(example.answer, dict) and set(example.answer) == {"id", "to", "status"}:
        assert {**json.loads(body), "id": "", "reason": None} == {**example.answer, "id": "", "reason": None}


@pytest.mark.parametrize("example", EXAMPLES["get /inbox/stream"], ids=lambda one: one.name)
def test_the_streams_that_are_told(world: World, example: Example) -> None:
    """What comes first, in both ways to tell it."""
    client = RawHTTP(world, "UserX")
    target = example.target("/inbox/stream")
    client.say(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {example.brings}\r\n\r\n".encode())
    assert f"Content-Type: {example.brings}".lower() in client.heard.decode().lower()
    kinds = [line for line in example.answer.splitlines() if line.startswith(("event: ", '{"event"'))]
    for kind in kinds:
        assert kind.split(",")[0] in client.heard.decode()
    client.hang_up()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_lines_to_copy(tmp_path: Path) -> None:
    """Each curl line, run by a shell, asks what its example says: the node answers with its code."""
    with Children(tmp_path) as children:
        seed = children.start("meshseed", "seedX")
        urls = {name: children.start("meshuser", name, "--seed", seed) for name in ("UserX", "Bobby", "Carl")}
        for url in urls.values():
            until(lambda url=url: Client(url).status().registered or None, "registered")  # type: ignore[misc]
        Client(urls["Bobby"]).send("UserX", "lunch?", id="m1")
        children.stop("Carl")
        client = Client(urls["UserX"])
        client.send(["Bobby", "Carl"], "lunch", id="lunch-1", wait_s=1)
        client.send("Carl", "Call me", id="note-7", wait_s=0)
        wrong = []
        for operation, example in ASKED:
            if (operation.id, example.name) in (("post /deliver", "batch"), ("put /contacts/{name}", "trusted")):
                continue  # sealed for, and the fingerprint of, other keys than these
            client.send("Bobby", "so that they are a contact again")
            line = curl(operation.method, operation.path, example, urls["UserX"])
            seconds = "-m 1 " if operation.path == "/inbox/stream" else ""
            line = f"{line} -s -o {tmp_path / 'answer'} {seconds}-w '%{{http_code}} %{{content_type}}'"
            done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, check=False)
            if done.stdout != f"{example.code} {example.media_type}":
                wrong.append(f"{line}\n{done.stdout} {done.stderr}")
        assert wrong == []
