"""Whose keys are known, as `mesh` shows it and is told."""

import io
import json
from typing import Any

import click
import pytest

from meshproto.cli import contacts, qr
from meshproto.cli.exits import Exit
from meshproto.cli.render import Screen
from meshproto.client.node import Node
from tests.cli.conftest import Mesh
from tests.cli.stub import Stub
from tests.qr_reader import read_blocks

AT_MS = 1_795_343_300_000


def key(name: str, print_: str) -> dict[str, str]:
    groups = "-".join(print_[at : at + 4] for at in range(0, 16, 4))
    return {"key": "k", "fingerprint": print_, "groups": groups, "address": f"{name}~{print_}"}


USERX = {
    "name": "UserX",
    **key("UserX", "kzdvvj2umnduyauf"),
    "first_seen": AT_MS,
    "verified_at": AT_MS,
    "offered": None,
}
CHANGED = {**USERX, "verified_at": None, "offered": {**key("UserX", "abcdefghijklmnop"), "seen_at": AT_MS}}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_contacts(stub: Stub, run: Mesh) -> None:
    """Each with its address, and the fingerprint in groups."""
    stub.answers({"contacts": [USERX]})
    result = run("contacts")
    assert result.exit_code == Exit.DONE
    assert "UserX~kzdvvj2umnduyauf" in result.stdout and "kzdv-vj2u-mndu-yauf" in result.stdout
    assert "CHANGED" not in result.stdout
    stub.answers({"contacts": []})
    assert run("contacts").stdout == "No message was exchanged with anybody yet.\n"


def test_a_changed_key_is_loud(stub: Stub, run: Mesh) -> None:
    """Both fingerprints, and what to do."""
    stub.answers({"contacts": [CHANGED]})
    shown = run("contacts").stdout
    assert "THE KEY OF UserX HAS CHANGED" in shown and "mesh trust UserX" in shown
    assert "kzdv-vj2u-mndu-yauf" in shown and "abcd-efgh-ijkl-mnop" in shown


def test_trust_with_a_fingerprint(stub: Stub, run: Mesh) -> None:
    """The node is told what was typed; what it refuses is refused here."""
    stub.answers(USERX)
    result = run("trust", "UserX", "KZDV-vj2u-mndu-yauf")
    assert (result.exit_code, result.stdout) == (Exit.DONE, "UserX has the key kzdv-vj2u-mndu-yauf: verified.\n")
    (request,) = stub.requests
    assert (request.method, request.path) == ("PUT", "/contacts/UserX")
    assert json.loads(request.body) == {"fingerprint": "KZDV-vj2u-mndu-yauf"}
    stub.refuses(409, "key changed", "UserX is known with the key ...")
    result = run("trust", "UserX", "a" * 16)
    assert result.exit_code == Exit.REFUSED
    assert "mesh trust NAME FINGERPRINT" in result.stderr


def test_nobody_is_asked_without_a_terminal(stub: Stub, run: Mesh) -> None:
    """A script has to give the fingerprint, and nothing is trusted that it did not name."""
    result = run("trust", "UserX", stdin="y\n")
    assert result.exit_code == Exit.USAGE
    assert "mesh trust NAME FINGERPRINT" in result.stderr
    assert stub.requests == []


@pytest.mark.parametrize(("contact", "latest"), [(USERX, "kzdvvj2umnduyauf"), (CHANGED, "abcdefghijklmnop")])
def test_the_owner_is_asked(
    stub: Stub, contact: Any, latest: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every key is shown; yes means the latest, anything else nothing."""
    for said in ("y\n", "\n", "n\n"):
        stub.answers(contact)
        monkeypatch.setattr("sys.stdin", Terminal(said))
        if said == "y\n":
            assert contacts.choose(Screen(False), Node(stub.url), "UserX") == latest
        else:
            with pytest.raises(click.Abort):
                contacts.choose(Screen(False), Node(stub.url), "UserX")
        shown = capsys.readouterr().out
        assert "kzdv-vj2u-mndu-yauf" in shown
        assert ("abcd-efgh-ijkl-mnop" in shown) is (contact is CHANGED)


def test_forget(stub: Stub, run: Mesh) -> None:
    """The node is told, and says whom."""
    stub.answers(USERX)
    result = run("forget", "UserX")
    assert (result.exit_code, stub.requests[0].method, stub.requests[0].path) == (0, "DELETE", "/contacts/UserX")
    assert "UserX is forgotten" in result.stdout


def test_fingerprints(stub: Stub, run: Mesh) -> None:
    """The node's own, a contact's, and of a name that is no contact what the seeds say: in groups, as a QR code."""
    stub.answers(USERX)
    own = run("fingerprint").stdout
    stub.answers(USERX)
    assert run("fingerprint", "UserX").stdout == own
    stub.refuses(404, "Not Found", "no contact")
    stub.answers(USERX)
    assert run("fingerprint", "UserX").stdout == own
    assert [request.path for request in stub.requests] == ["/status", *["/contacts/UserX"] * 2, "/lookup/UserX"]
    assert "kzdv-vj2u-mndu-yauf" in own
    assert "\n".join(qr.rows("UserX~kzdvvj2umnduyauf")) in own


def test_a_name_nobody_has(stub: Stub, run: Mesh) -> None:
    """Other problems than that it is no contact end the command."""
    stub.refuses(400, "bad params", "no name")
    assert run("fingerprint", "!").exit_code == Exit.USAGE


@pytest.mark.parametrize("name", ["a", "UserX", "X" * 64])
def test_a_scanner_reads_the_code(name: str, stub: Stub, run: Mesh) -> None:
    """What `mesh fingerprint` shows is the full address, whatever the length of the name."""
    stub.answers({**USERX, "name": name, "address": f"{name}~kzdvvj2umnduyauf"})
    shown = run("fingerprint").stdout.splitlines()
    code = [line for line in shown if line.startswith("  ") and not line.strip(" \u2580\u2584\u2588")]
    assert read_blocks(code) == f"{name}~kzdvvj2umnduyauf"


def test_dark_is_drawn_on_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the terminal's own colours are: every line of the code is black on white."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="utf-8", write_through=True))
    contacts.identify(Screen(True), USERX)
    rows = qr.rows("UserX~kzdvvj2umnduyauf")
    assert [f"\x1b[30;107m{row}\x1b[0m" for row in rows] == raw.getvalue().decode().splitlines()[-len(rows) :]


def test_a_qr_code_is_square() -> None:
    """Two modules in a character: as many columns as twice the lines, with a border all around."""
    rows = qr.rows("UserX~kzdvvj2umnduyauf")
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == (len(rows[0]) + 1) // 2
    assert not rows[0].strip() and {row[:2] for row in rows} == {"  "}


def test_without_blocks_there_is_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal that has no such characters the fingerprint alone is shown."""
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    contacts.identify(Screen(False), USERX)
    assert raw.getvalue().decode("ascii").splitlines()[-1] == "key      kzdv-vj2u-mndu-yauf"
