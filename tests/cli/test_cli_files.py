"""`mesh export`, `mesh import` and `mesh backup` as they are typed; and what shells and manuals make of the command."""

import json
import os
import shutil
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from meshproto.cli import files
from meshproto.cli.exits import Exit
from meshproto.cli.main import mesh
from meshproto.cli.man import escaped
from meshproto.cli.progress import Bar
from meshproto.cli.render import Screen
from meshproto.net import user_store
from meshproto.net.backup import read_database
from meshproto.net.database_file import connect
from meshproto.net.state import StateDir
from tests.cli.conftest import Mesh
from tests.cli.stub import Stub, json_reply, problem_reply


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    for variable in ("USER_NAME", "MESH_STATE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A node's, with a message."""
    directory = StateDir(tmp_path / "state")
    directory.identity(os.urandom, 1)
    with closing(connect(directory.database("user.db"), user_store.SCHEMA, user_store.SCHEMA_VERSION)) as connection:
        connection.execute("INSERT INTO inbox VALUES (1,'b','B','k','1','',X'226869220A',1,1)")
    directory.close()
    return directory.path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_there_and_back(run: Mesh, state: Path, tmp_path: Path) -> None:
    """With the identity it is the same user; nobody else can read the file; and the warning is loud."""
    file, other = tmp_path / "x.ndjson", tmp_path / "other"
    result = run("export", str(file), "--state", str(state), "--identity")
    assert (result.exit_code, result.stdout) == (Exit.DONE, "")
    assert "PRIVATE KEYS" in result.stderr
    assert mode(file) == 0o600
    result = run("import", str(file), "--state", str(other))
    assert result.stdout == f"0 contacts, 0 messages sent, 1 received: now in {other}.\n"
    assert files.fingerprint(other) == files.fingerprint(state)
    assert sorted(path.name for path in other.iterdir()) == ["keys.json", "lock", "user.db"]
    assert (mode(other), mode(other / "user.db"), mode(other / "keys.json")) == (0o700, 0o600, 0o600)
    again = run("export", "--state", str(other), "--identity")
    assert again.stdout_bytes == file.read_bytes()


def test_without_the_identity(run: Mesh, state: Path, tmp_path: Path) -> None:
    """It is said that this is not all."""
    result = run("export", "--state", str(state))
    assert '"kind":"identity"' not in result.stdout
    assert "Your private keys are not in it" in result.stderr
    given = result.stdout_bytes
    result = run("import", "-", "--state", str(tmp_path / "other"), "--json", stdin=given)
    assert json.loads(result.stdout)["received"] == 1
    result = run("import", "-", "--state", str(tmp_path / "third"), stdin=given)
    assert "no private keys" in result.stderr


def test_only_an_empty_directory_is_filled(run: Mesh, state: Path, tmp_path: Path) -> None:
    """What a node has used is left alone, and what others may enter too."""
    file = tmp_path / "x.ndjson"
    run("export", str(file), "--state", str(state))
    before = (state / "user.db").read_bytes()
    result = run("import", str(file), "--state", str(state))
    assert (result.exit_code, (state / "user.db").read_bytes()) == (Exit.USAGE, before)
    assert "has been used by a node" in result.stderr
    held = StateDir(tmp_path / "held")
    assert "in use by another process" in run("import", str(file), "--state", str(held.path)).stderr
    held.close()


def test_nothing_is_imported_of_a_file_with_a_bad_line(run: Mesh, state: Path, tmp_path: Path) -> None:
    """Each is named by its number; the directory stays empty, and can be used then."""
    good = run("export", "--state", str(state)).stdout_bytes
    bad = good.replace(b'{"kind":"in"', b'{"kind":"im"')
    result = run("import", "-", "--state", str(tmp_path / "other"), stdin=bad)
    assert result.exit_code == Exit.WRONG
    assert "nothing was imported: line 2: " in result.stderr
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["lock"]
    assert run("import", "-", "--state", str(tmp_path / "other"), stdin=good).exit_code == Exit.DONE


def test_an_export_overwrites_nothing(run: Mesh, state: Path, tmp_path: Path) -> None:
    """Nor does it leave a part of one."""
    file = tmp_path / "x.ndjson"
    file.write_text("mine")
    result = run("export", str(file), "--state", str(state))
    assert (result.exit_code, file.read_text()) == (Exit.USAGE, "mine")
    assert "is there already" in result.stderr
    assert "cannot be written" in run("export", str(tmp_path / "no" / "x"), "--state", str(state)).stderr
    (state / "keys.json").chmod(0o644)
    result = run("export", str(tmp_path / "y"), "--state", str(state), "--identity")
    assert "chmod 600" in result.stderr
    assert not (tmp_path / "y").exists()


def test_a_full_disk(state: Path) -> None:
    """Is said, in a sentence."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here: nothing else is as full")
    command = [str(Path(sys.executable).parent / "mesh"), "export", "--state", str(state)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == Exit.USAGE
    assert b"cannot be written (No space left on device): " in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["export"], ["backup", "copy"]])
def test_which_state_directory(stub: Stub, run: Mesh, command: list[str], tmp_path: Path) -> None:
    """That of the node that answers, unless it is named."""
    stub.routes["GET /status"] = lambda _: json_reply({"name": "UserX"})
    assert f"{tmp_path}/xdg/meshproto/user-userx" in run(*command).stderr
    stub.routes["GET /status"] = lambda _: json_reply({"name": "../.."})
    assert "give its state directory" in run(*command).stderr
    stub.routes["GET /status"] = lambda _: problem_reply(401, "Unauthorized")
    assert run(*command).exit_code == Exit.REFUSED


def test_where_to_is_not_guessed(run: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node that answers has a state directory already; but USER_NAME says a name."""
    (tmp_path / "x").write_text("")
    assert "Where to?" in run("import", str(tmp_path / "x")).stderr
    monkeypatch.setenv("USER_NAME", "UserX")
    assert "the end is missing" in run("import", str(tmp_path / "x")).stderr
    assert "cannot be read" in run("import", str(tmp_path / "nowhere")).stderr


def test_a_backup_is_a_state_directory(run: Mesh, state: Path, tmp_path: Path) -> None:
    """Of the same user, with the same messages."""
    result = run("backup", str(tmp_path / "copy"), "--state", str(state))
    assert result.stdout == f"{tmp_path}/copy has user.db, keys.json: whole and checked.\n"
    assert "PRIVATE KEYS" in result.stderr
    assert files.fingerprint(tmp_path / "copy") == files.fingerprint(state)
    with closing(read_database(tmp_path / "copy" / "user.db")) as connection:
        assert connection.execute("SELECT count(*) FROM inbox").fetchone() == (1,)
    result = run("backup", str(tmp_path / "copy"), "--state", str(state))
    assert (result.exit_code, "is there already" in result.stderr) == (Exit.USAGE, True)
    result = run("backup", str(tmp_path / "second"), "--state", str(state), "--json")
    assert json.loads(result.stdout)["files"] == ["user.db", "keys.json"]


# -- the terminal, the shell and the manual -----------------------------------------------------------------------


def test_no_bar_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written at all."""
    with Bar("work") as bar:
        bar(1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is gone when the work is done."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Bar("work") as bar:
        for done in range(3):
            bar(done, 2)
    assert capsys.readouterr().out == ""


def test_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """NO_COLOR is heeded on a terminal; without it there are colours."""
    for value, coloured in (("1", False), (None, True)):
        if value is None:
            monkeypatch.delenv("NO_COLOR", raising=False)
        else:
            monkeypatch.setenv("NO_COLOR", value)
        monkeypatch.setenv("TERM", "xterm")
        Screen(terminal=True).line("text", "green")
        assert ("\x1b[32m" in capsys.readouterr().out) is coloured


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(stub: Stub, shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell asks the command when a name is begun."""
    stub.routes["GET /contacts"] = lambda _: json_reply({"contacts": [{"name": "UserX"}, {"name": "Bobby"}]})
    shown = CliRunner().invoke(mesh, ["completion", shell]).stdout
    assert "_MESH_COMPLETE" in shown
    words = {"COMP_WORDS": "mesh chat u", "COMP_CWORD": "u" if shell == "fish" else "2"}
    asked = {**words, "_MESH_COMPLETE": f"{shell}_complete", "MESH_NODE": stub.url}
    done = CliRunner().invoke(mesh, [], env=asked, prog_name="mesh")
    assert "UserX" in done.stdout
    assert "Bobby" not in done.stdout
    stub.routes["GET /contacts"] = lambda _: problem_reply(401, "Unauthorized")
    assert "UserX" not in CliRunner().invoke(mesh, [], env=asked, prog_name="mesh").stdout


def test_completion_in_a_real_shell(stub: Stub) -> None:
    """What `eval "$(mesh completion bash)"` makes of a name that is begun."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    stub.routes["GET /contacts"] = lambda _: json_reply({"contacts": [{"name": "UserX"}, {"name": "Bobby"}]})
    script = (
        'eval "$(mesh completion bash)"; COMP_WORDS=(mesh chat B); COMP_CWORD=2; '
        '_mesh_completion mesh; echo "${COMPREPLY[@]}"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MESH_NODE": stub.url}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "Bobby\n"


def test_the_manual_has_all_of_the_help(run: Mesh) -> None:
    """Every command, every option, every exit code; made of the same text."""
    shown = run("man").stdout
    plain = shown.replace(r"\-", "-").replace(r"\&", "")
    for name, command in mesh.commands.items():
        assert f".SS mesh {name}" in plain
        for option in command.params:
            assert option.param_type_name == "argument" or option.opts[0] in plain
    for code in Exit:
        assert f"\n  {code.value}  " in plain or f"\n{code.value}  " in plain
    for variable in ("MESH_NODE", "MESH_STATE", "NO_COLOR"):
        assert f"\\fB{variable.replace('-', '')}" in plain


def test_the_manual_is_one() -> None:
    """`man` finds nothing to complain of."""
    if shutil.which("man") is None or not Path("/usr/bin/groff").exists():
        pytest.skip("man or groff is not installed: nobody reads manuals here")
    text = CliRunner().invoke(mesh, ["man"]).stdout
    done = subprocess.run(["man", "--warnings", "-l", "-"], input=text, capture_output=True, text=True, check=True)
    assert "warning" not in done.stderr
    assert "MESH(1)" in done.stdout


def test_what_roff_would_obey_is_text() -> None:
    """Dots and quotes at the beginning, backslashes and dashes anywhere."""
    assert escaped(".not a macro") == r"\&.not a macro"
    assert escaped("'nor this") == r"\&'nor this"
    assert escaped(r"a\b --c") == r"a\eb \-\-c"
