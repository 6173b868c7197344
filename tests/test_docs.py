"""The documents tell the truth: their commands run, their lists are complete, their vectors fit."""

import base64
import hashlib
import hmac
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
from nacl.public import Box, PrivateKey, PublicKey
from nacl.signing import SigningKey, VerifyKey

from bench import backlog, chaos, effort, gossip, retention, store, wear
from bench.peers import __main__ as peers
from docs.site import __main__ as site
from meshproto import wire
from meshproto.cli.exits import Exit
from meshproto.cli.main import mesh
from meshproto.seed_tap import Options as SeedOptions
from meshproto.tap import NodeOptions
from meshproto.user_tap import Options as UserOptions
from tests.docs_support import DOCUMENTS, ON_TWO_MACHINES, ROOT, Session, fences, matches, setup_commands, steps

DOCS = ROOT / "docs"
LANGUAGES = {"console", "json", "python", "sh", "nginx", "caddy"}
"""The last three are tested in test_operating.py; the Python of clients.md in test_clients_doc.py, that of other
documents by running it where they say so."""
RESULTS: dict[str, Any] = {
    "hello": wire.HelloResult,
    "register": wire.RegisterResult,
    "unregister": wire.Nothing,
    "lookup": wire.LookupResult,
    "watch": wire.Nothing,
    "unwatch": wire.Nothing,
    "names": wire.NamesResult,
    "seeds": wire.SeedsResult,
    "ping": wire.Nothing,
    "status": wire.StatusResult,
    "gossip": wire.GossipResult,
}
NOTIFICATIONS: dict[str, Any] = {"changed": wire.ChangedParams}


def read(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """From a heading to the next one of the same level."""
    level = heading.split(" ", maxsplit=1)[0]
    return text.partition(f"\n{heading}\n")[2].partition(f"\n{level} ")[0]


def first_cells(table: str) -> list[str]:
    return [row.split("|")[1].strip() for row in table.splitlines() if row.startswith("| ")]


# -- commands -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document", [doc for doc in DOCUMENTS if steps(doc) and doc != ON_TWO_MACHINES], ids=lambda document: document.name
)
def test_commands_print_what_the_document_shows(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of the document, in order, prints what stands below it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("XDG_STATE_HOME", "MESH_TOKEN_FILE", *SeedOptions.twins.values(), *UserOptions.twins.values()):
        monkeypatch.delenv(variable, raising=False)
    with Session(tmp_path) as session:
        for step in steps(document):
            session.carry_out(step)
    if session.missing:
        pytest.skip(f"all ran but the commands that need {', '.join(sorted(session.missing))}: not on this machine")


def test_commands_that_set_up_are_those_of_this_repository() -> None:
    """What is not run, because it installs the thing under test, is made of what is there."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    variables = set(re.findall(r"\$\((\w+)\)", makefile))
    assert "VENV   := .venv" in makefile
    assert setup_commands()
    for step in setup_commands():
        program, *arguments = shlex.split(step.text)
        match program:
            case "make":
                given = {argument.partition("=")[0] for argument in arguments if "=" in argument}
                assert variables.issuperset(given), step.where
                assert targets.issuperset(argument for argument in arguments if "=" not in argument), step.where
            case ".":
                assert arguments == [".venv/bin/activate"], step.where
            case "python3":
                assert arguments[:2] == ["-m", "venv"], step.where
            case _:
                assert program.endswith("/bin/pip"), step.where
                assert arguments == ["install", "."], step.where


def test_what_cron_runs_was_tried_by_hand() -> None:
    """Each command of the crontab in howto/cron.md stands above in a block, but for its path and the text it sends."""
    text = (DOCS / "howto" / "cron.md").read_text(encoding="utf-8")
    lines = re.findall(r"^    \S+ \S+ \* \* \*  (.+)$", text, re.MULTILINE)
    shown = {step.text.replace("false", "/srv/backup.sh") for step in steps(DOCS / "howto" / "cron.md")}
    assert len(lines) == 2
    assert {line.replace("/opt/meshproto/bin/mesh", "mesh") for line in lines} <= shown


def test_wildcards() -> None:
    """`...` stands for a part of a line, alone for any lines, and for nothing else."""
    assert matches(('{"id":"..."}',), '{"id":"ab"}\n')
    assert matches(("head", "...", "tail"), "head\na\nb\ntail")
    assert matches(("a  b",), "a      b")
    assert not matches(('{"id":"..."}',), '{"id":"a\nb"}')
    assert not matches(("a",), "ab")
    assert not matches((), "something")


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    """No command hides in a block of another language."""
    for document in DOCUMENTS:
        for line, language, _ in fences(document):
            assert language in LANGUAGES, f"{document.name}:{line}: {language}"


# -- completeness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [("meshseed", SeedOptions()), ("meshuser", UserOptions())])
def test_options_are_complete(kind: str, options: NodeOptions) -> None:
    """The options of a plugin, their environment twins and their defaults are those that operating.md lists."""
    table = section(read("operating.md"), "## Options").partition(f" {kind} [options]`")[2].partition(" [options]`")[0]
    rows = [[cell.strip() for cell in row.split("|")[1:4]] for row in table.splitlines() if row.startswith("| `--")]
    documented = {re.findall(r"--([\w-]+)", option)[0]: (twin, default) for option, twin, default in rows}
    assert {name: twin for name, (twin, _) in documented.items()} == {
        name: f"`{variable}`" for name, variable in options.twins.items()
    }
    real = {flag.rstrip("=") for flag in options.longOpt} - {"help", "version", "check"}  # the last three end at once
    assert documented.keys() == real
    for name, fallback in options.fallbacks.items():
        assert documented[name][1] == (", ".join(fallback) if isinstance(fallback, list) else str(fallback)), name


INDENTED = [
    pytest.param(line.strip(), id=f"{document.name}:{number}")
    for document in DOCUMENTS
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1)
    if line.startswith("    twistd ")
]


@pytest.mark.parametrize("command", INDENTED)
def test_nodes_of_other_machines_take_their_options(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown without being run, since it has addresses and files of the reader's own machines."""
    monkeypatch.setattr("meshproto.seed_tap.run_on_asyncio", lambda: None)
    monkeypatch.setattr("meshproto.tap.check_endpoint", str)
    words = shlex.split(command)
    kind = next(word for word in words if word.startswith("mesh"))
    options = {"meshseed": SeedOptions, "meshuser": UserOptions}[kind]()
    options.parse(words[words.index(kind) + 1 :])


def test_options_that_are_named_exist() -> None:
    """No document names an option that no command has."""
    ours = {f"--{flag.rstrip('=')}" for options in (SeedOptions(), UserOptions()) for flag in options.longOpt}
    commands = [mesh, *mesh.commands.values()]
    ours |= {flag for command in commands for option in command.params for flag in option.opts}
    for benchmark in (backlog, chaos, effort, gossip, peers, retention, store, wear):
        ours |= set(re.findall(r"--[a-z][\w-]*", benchmark.parser().format_help()))
    foreign = {"--logfile", "--syslog", "--pidfile", "--data-binary", "--unix-socket"}  # twistd's and curl's
    foreign |= {"--init", "--stop-timeout", "--now", "--save", "--appendonly"}  # podman's, systemctl's, redis-server's
    ours |= set(re.findall(r"--[a-z][\w-]*", site.parser().format_help()))
    for document in DOCUMENTS:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", document.read_text(encoding="utf-8")))
        assert named <= ours | foreign, document.name


def test_routes_are_complete() -> None:
    """The routes of the node are those that http.md lists, and each has a section of its own."""
    from meshproto.net.front import Front  # klein must not come in before a reactor is chosen
    from meshproto.net.history_front import HistoryFront
    from meshproto.net.public_front import PublicFront

    text = read("http.md")
    real = {
        f"{method} {rule.rule.replace('id:', '')}"
        for app in (Front.app, HistoryFront.app, PublicFront.app)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    listed = {cell.strip("`") for cell in first_cells(text.partition("The examples go on")[0]) if cell.startswith("`")}
    assert listed == real
    headings = set(re.findall(r"^## ((?:GET|POST|PUT|DELETE) \S+)$", text, re.MULTILINE))
    assert headings == {re.sub(r"<(\w+)>", lambda name: name[1].upper(), route) for route in real}


def test_commands_and_exit_codes_are_complete() -> None:
    """command.md lists every command of `mesh` with its options, shows the help of each, and has every exit code in the
    words of the help, and every variable."""
    text = read("command.md")
    rows = {row.split()[2].strip("`"): row for row in text.splitlines() if row.startswith("| `mesh ")}
    assert rows.keys() == mesh.commands.keys()
    for name, command in mesh.commands.items():
        options = {option.opts[0] for option in command.params if isinstance(option, click.Option)} - {"--json"}
        assert options <= set(re.findall(r"--[a-z]+", rows[name])), name
    shown = set(re.findall(r"^\$ mesh (?:([a-z]+) )?--help$", text, re.MULTILINE))
    assert shown == {"", *mesh.commands}
    variables = {option.envvar for command in (mesh, *mesh.commands.values()) for option in command.params}
    assert set(re.findall(r"^\| `(MESH_\w+)` ", text, re.MULTILINE)) == variables - {None}
    codes = re.findall(r"^\| (\d) \| (.+) \|$", text, re.MULTILINE)
    assert codes == re.findall(r"^ *(\d)  (.+)$", Exit.__doc__ or "", re.MULTILINE)


def test_methods_are_complete() -> None:
    """Every method has a section in protocol.md, and no other thing has one there."""
    methods = re.findall(r"^### (\w+)$", section(read("protocol.md"), "## Methods"), re.MULTILINE)
    assert sorted(methods) == sorted(wire.METHODS)


@pytest.mark.parametrize("name", ["protocol.md", "http.md", "operating.md"])
def test_limits_are_those_of_the_code(name: str) -> None:
    """Every limit in a table has the value that the code has."""
    rows = re.findall(r"^\|.*\| ([\d.]+)[^|]*\| `([\w.]+)\.(\w+)` \|$", read(name), re.MULTILINE)
    assert rows
    for value, module, constant in rows:
        limit = getattr(importlib.import_module(f"meshproto.{module}"), constant)
        assert float(value) == getattr(limit, "burst", limit), constant


def test_links_lead_somewhere() -> None:
    """Every link to a file of this repository leads to one, and to a heading where it names one."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in path:
                continue
            file = document if not path else (document.parent / path).resolve()
            assert file.is_file(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(file), f"{document.name}: {target}"


def test_every_document_is_reached_from_the_front_page() -> None:
    """By links alone, as on a forge, and from the README likewise."""
    for front in (DOCS / "index.md", ROOT / "README.md"):
        seen, ahead = set[Path](), [front]
        while ahead:
            document = ahead.pop()
            seen.add(document)
            targets = re.findall(r"\]\(([^)#]+\.md)", document.read_text(encoding="utf-8"))
            ahead += {(document.parent / target).resolve() for target in targets if "://" not in target} - seen
        assert seen >= set(DOCUMENTS) - {DOCS / "index.md"}, front.name


def anchors(document: Path) -> set[str]:
    """As GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_picture_is_one() -> None:
    """message.svg is well-formed and has a title and a description for those who do not see it."""
    root = ElementTree.parse(DOCS / "message.svg").getroot()
    tags = {child.tag.rpartition("}")[2] for child in root}
    assert {"title", "desc"} <= tags


# -- examples and vectors -----------------------------------------------------------------------------------------


def json_lines() -> list[str]:
    blocks = [block for _, language, block in fences(DOCS / "protocol.md") if language == "json"]
    return [line for block in blocks for line in block]


def test_example_lines_are_of_the_protocol() -> None:
    """Every request in protocol.md decodes, every answer to it is of its kind, and every method has both."""
    methods: dict[Any, str] = {}
    shown: dict[str, set[str]] = {method: set() for method in wire.METHODS}
    answered = set()
    for line in json_lines():
        example = json.loads(line)
        if "result" in example:
            method = methods[example["id"]]
            wire.decode_value(json.dumps(example["result"]), RESULTS[method])
            fields, optional = RESULTS[method].__struct_fields__, len(RESULTS[method].__struct_defaults__)
            needed = set(fields[: len(fields) - optional])
            assert needed <= set(example["result"]) <= set(fields)
            shown[method] |= set(example["result"])
            answered.add(method)
        elif example.get("method") in NOTIFICATIONS:
            wire.decode_value(json.dumps(example["params"]), NOTIFICATIONS[example["method"]])
        elif "method" in example:
            wire.decode_request(line.encode())
            methods[example.get("id")] = example["method"]
    assert answered == wire.METHODS
    assert shown == {method: set(result.__struct_fields__) for method, result in RESULTS.items()}


def unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def vectors() -> dict[str, tuple[SigningKey, PrivateKey]]:
    """The keys of the table, read as protocol.md says, without our own code."""
    text = section(read("protocol.md"), "## Test vectors")
    keys: dict[str, list[Any]] = {}
    for name, secret, public, print_ in re.findall(
        r"^\| (\w+) \| `(\w+)` \| `([\w-]+)` \| `(\w+)` \|$", text, re.MULTILINE
    ):
        signing = SigningKey(bytes.fromhex(secret))
        key = bytes(signing.verify_key)
        assert b64(key) == public
        assert base64.b32encode(hashlib.sha256(key).digest()).decode().lower()[:16] == print_
        keys[name] = [signing]
    for name, secret, public in re.findall(r"^\| (\w+) \| `(\w+)` \| `([\w-]+)` \|$", text, re.MULTILINE):
        mail = PrivateKey(bytes.fromhex(secret))
        assert b64(bytes(mail.public_key)) == public
        keys[name].append(mail)
    return {name: (signing, mail) for name, (signing, mail) in keys.items()}


def signed_things(value: Any) -> list[dict[str, str]]:
    """Every object with a record and a signature, however deep."""
    if isinstance(value, list):
        return [found for item in value for found in signed_things(item)]
    if not isinstance(value, dict):
        return []
    own = [value] if {"record", "sig"} <= value.keys() else []
    return own + [found for item in value.values() for found in signed_things(item)]


def test_records_are_signed_as_described() -> None:
    """Every record in protocol.md is signed by the key in it, over the prefix and the text."""
    signed = [thing for line in json_lines() for thing in signed_things(json.loads(line))]
    assert len(signed) >= len(vectors())
    for thing in signed:
        record = json.loads(thing["record"])
        assert unb64(record["key"]) == bytes(vectors()[record["name"]][0].verify_key)
        text = b"meshproto record 1\n" + thing["record"].encode()
        VerifyKey(unb64(record["key"])).verify(text, unb64(thing["sig"]))


def test_the_mesh_key_is_proven_as_described() -> None:
    """Both proofs in protocol.md are made with the mesh key below it, from the nonces and names beside them."""
    text = read("protocol.md")
    ((key, chars),) = re.findall(r"^The mesh key is `(\S+)` \(these (\d+) characters\)", text, re.MULTILINE)
    assert len(key) == int(chars)
    lines = [json.loads(line) for line in section(text, "## The mesh key").splitlines() if line.startswith("{")]
    hello, greeting, answer = lines[0]["params"], lines[1]["result"], lines[2]["params"]
    fields = [hello["nonce"], greeting["nonce"], hello["name"], greeting["seed"]]
    framed = "".join(f"{len(field)}:{field}," for field in fields)
    for role, proof in (("listener", greeting["proof"]), ("dialler", answer["proof"])):
        proven = f"meshproto mesh 1 {role}\n{framed}"
        assert b64(hmac.new(key.encode(), proven.encode(), hashlib.sha256).digest()) == proof


def test_boxes_are_sealed_as_described() -> None:
    """The batch and the receipt in protocol.md open with the keys of the table, to the texts that stand below them."""
    lines = json_lines()
    batch, receipt = (json.loads(line) for line in lines if "box" in json.loads(line))
    bobby, userx = vectors()["Bobby"][1], vectors()["UserX"][1]
    assert batch["to"] == b64(bytes(userx.public_key))
    sender_mail = PublicKey(unb64(json.loads(batch["sender"]["record"])["mail"]))
    assert Box(userx, sender_mail).decrypt(unb64(batch["box"])).decode() in lines
    assert Box(bobby, PublicKey(unb64(batch["to"]))).decrypt(unb64(receipt["box"])).decode() in lines
