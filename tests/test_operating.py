"""What docs/operating.md shows beside commands that print something: commands for a whole machine, which run with
another root; configurations of proxies, with the real proxies; and what a reload takes up."""

import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node
from meshproto.core.envelope import SEALED_BYTES_MAX
from meshproto.net.public_front import PUBLIC_PATHS
from meshproto.seed_tap import Options as SeedOptions
from meshproto.user_tap import Options as UserOptions
from tests.docs_support import DOCUMENTS, ROOT, fences
from tests.test_container import free_port

OPERATING = ROOT / "docs" / "operating.md"
TIMEOUT_S = 60.0
STUBS = ("systemctl", "systemd-sysusers", "podman")
"""What changes a machine, or needs one: these only write down what they were asked for."""
MANY_BYTES = 3_000_000


def blocks(language: str) -> list[str]:
    return ["\n".join(block) for document in DOCUMENTS for _, found, block in fences(document) if found == language]


# -- commands for a whole machine ---------------------------------------------------------------------------------


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root with the programs that are installed, and stubs."""
    programs = tmp_path / "stubs"
    programs.mkdir()
    for name in STUBS:
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {tmp_path}/asked\n')
    (tmp_path / "opt/meshproto/bin").mkdir(parents=True)
    (tmp_path / "opt/meshproto/bin/pip").write_text(f'#!/bin/sh\necho "pip $*" >> {tmp_path}/asked\n')
    for name in ("mesh", "twistd"):
        (tmp_path / f"opt/meshproto/bin/{name}").symlink_to(Path(sys.executable).parent / name)
    for program in (*programs.iterdir(), tmp_path / "opt/meshproto/bin/pip"):
        program.chmod(0o755)
    (tmp_path / "asked").touch()
    (tmp_path / "var" / "backups").mkdir(parents=True)
    return tmp_path


def run(machine: Path, commands: str) -> list[str]:
    """What the stubs were asked for."""
    (machine / "asked").write_text("")
    here = re.sub(r"(?<![\w.}])/(etc|usr/lib|var|opt)/", f"{machine}/\\1/", commands)
    environment = {**os.environ, "PATH": f"{machine}/stubs:{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", "-e", "-c", here],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}{done.stderr}"
    return (machine / "asked").read_text().splitlines()


def test_commands_for_a_whole_machine(machine: Path) -> None:
    """They run in the order of the page; units that are enabled are there, as are the configurations that they name;
    images are built of files that are there, with variables that exist."""
    states = machine / "var/lib/meshproto"
    states.mkdir(parents=True)
    with Children(states) as children:
        children.start("meshuser", "user-UserX", "--seed", "localhost:1")
        asked = [line for block in blocks("sh") for line in run(machine, block)]
    units = machine / "etc/systemd/system"
    named = {word for line in asked if line.startswith("systemctl") for word in line.split() if "." in word}
    assert named == {"meshseed.service", "meshuser@UserX.service"}
    for name in named:
        unit = units / re.sub(r"@\w+", "@", name)
        assert stat.S_IMODE(unit.stat().st_mode) == 0o644
        configured = re.findall(r"MESH_CONFIG=(\S+)", unit.read_text().replace("%i", "UserX"))
        assert all((machine / path[1:]).is_file() for path in configured)
        (user,) = re.findall(r"^User=(\w+)$", unit.read_text(), re.MULTILINE)
        assert re.search(rf"^u {user} ", (machine / "usr/lib/sysusers.d/meshproto.conf").read_text(), re.MULTILINE)
    assert len(list(units.iterdir())) == len(list((ROOT / "deploy/systemd").glob("*.s[eo]*[et]")))
    assert {"user.db", "keys.json"} <= {file.name for file in (machine / "var/backups/user-UserX").iterdir()}
    pods = [line for line in asked if line.startswith("podman")]
    twins = {*SeedOptions.twins.values(), *UserOptions.twins.values(), "HEALTH"}
    for line in pods:
        assert set(re.findall(r" -e (\w+)=", line)) <= twins
        assert all((ROOT / path).is_file() for path in re.findall(r" -f (\S+)", line))
    assert [line.split()[1] for line in pods] == ["build", "run", "run", "compose"]


# -- reverse proxies ----------------------------------------------------------------------------------------------


class Behind:
    """UserX's node on loopback, the owner's part on a unix socket, and a proxy on a port of its own; Bobby writes."""

    def __init__(self, directory: Path, children: Children) -> None:
        self.directory = directory
        self.port = free_port()
        self.authority = trustme.CA()
        issued = self.authority.issue_cert("localhost", "127.0.0.1")
        issued.private_key_pem.write_to_path(directory / "key.pem")
        with (directory / "cert.pem").open("wb") as file:
            file.write(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        self.authority.cert_pem.write_to_path(directory / "ca.pem")
        seed = children.start("meshseed", "seedX")
        self.node_port = free_port()
        (show,) = re.findall(r"^    twistd .*meshuser (--name UserX .*--api .*)$", OPERATING.read_text(), re.MULTILINE)
        api = directory / "mesh.sock"
        options = show.replace("mesh.sock", str(api)).replace("https://userx.example", f"https://localhost:{self.port}")
        options = re.sub(r"--name UserX --port 3000 ", "", options)
        self.owner = children.start("meshuser", "UserX", "--seed", seed, *options.split(), port=self.node_port)
        self.bobby = children.start("meshuser", "Bobby", "--seed", seed, "--ca", str(directory / "ca.pem"))

    def check(self, proxy: subprocess.Popen[bytes]) -> None:
        """Messages come through, one of the largest batches too; health is shown, the owner's part is not."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        url = f"https://localhost:{self.port}"

        def answers() -> bool | None:
            assert proxy.poll() is None, (self.directory / "proxy.log").read_text()
            try:
                with urllib.request.urlopen(f"{url}/healthz", context=context, timeout=TIMEOUT_S) as answer:
                    return bool(answer.status == 200)
            except OSError:
                return None

        until(answers, "the proxy serves", TIMEOUT_S)
        for path in ("/", "/status", "/send", "/inbox", "/x/deliver", "/deliver/x"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(url + path, context=context, timeout=TIMEOUT_S)
            assert refused.value.code == 404
            refused.value.close()
        bobby, owner = Node(self.bobby, timeout_s=TIMEOUT_S), Node(self.owner, timeout_s=TIMEOUT_S)
        until(lambda: owner.status().document["registered"] or None, "UserX is registered", TIMEOUT_S)
        until(lambda: bobby.status().document["registered"] or None, "Bobby is registered", TIMEOUT_S)
        assert bobby.send("UserX", "through the proxy", wait_s=10).document["status"] == "delivered"
        large = "x" * (SEALED_BYTES_MAX // 64)
        for _ in range(MANY_BYTES // len(large)):
            bobby.send("UserX", large, wait_s=0)
        until(lambda: not bobby.status().document["outbox"]["waiting"] or None, "all is delivered", TIMEOUT_S)


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Behind]:
    with Children(tmp_path) as children:
        yield Behind(tmp_path, children)


@contextmanager
def proxy(behind: Behind, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(behind.directory)}
    with (behind.directory / "proxy.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=behind.directory, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on this machine")
def test_behind_nginx(behind: Behind) -> None:
    """The configuration that stands there, with other ports and files."""
    (shown,) = blocks("nginx")
    shown = shown.replace("listen 443 ssl", f"listen 127.0.0.1:{behind.port} ssl").replace("userx.example", "localhost")
    shown = shown.replace("127.0.0.1:3000", f"127.0.0.1:{behind.node_port}")
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    kept = [f"{kind}_temp_path {behind.directory}/{kind};" for kind in kinds]
    user = ["user root;"] if os.geteuid() == 0 else []  # else a nobody, who may not write there
    head = ["daemon off;", "pid nginx.pid;", "error_log stderr;", *user, "events {}", "http {", "access_log off;"]
    file = behind.directory / "nginx.conf"
    file.write_text("\n".join([*head, *kept, shown, "}", ""]))
    with proxy(behind, "nginx", "-p", str(behind.directory), "-e", "stderr", "-c", str(file)) as process:
        behind.check(process)


@pytest.mark.skipif(shutil.which("caddy") is None, reason="no caddy on this machine")
def test_behind_caddy(behind: Behind) -> None:
    """The configuration that stands there, with other ports, and a certificate of ours."""
    (shown,) = blocks("caddy")
    ours = f"https://localhost:{behind.port} {{\n    tls cert.pem key.pem"
    shown = shown.replace("userx.example {", ours).replace("127.0.0.1:3000", f"127.0.0.1:{behind.node_port}")
    file = behind.directory / "Caddyfile"
    file.write_text(f"{{\n    admin off\n    auto_https disable_redirects\n}}\n{shown}\n")
    with proxy(behind, "caddy", "run", "--config", str(file), "--adapter", "caddyfile") as process:
        behind.check(process)


@pytest.mark.parametrize("language", ["nginx", "caddy"])
def test_they_pass_on_what_is_for_others(language: str) -> None:
    """All public routes, and no other."""
    (shown,) = blocks(language)
    paths = re.search(r"\^/\((.*)\)\$", shown) if language == "nginx" else re.search(r"@peers path (.*)", shown)
    assert paths is not None
    found = paths[1].replace("\\", "").split("|" if language == "nginx" else " ")
    assert {path.strip("/") for path in found} == {path.strip("/") for path in PUBLIC_PATHS}


# -- reload -------------------------------------------------------------------------------------------------------


def test_what_a_reload_takes_up() -> None:
    """The table has every option that counts without a restart, and those whose files are read anew."""
    table = OPERATING.read_text().partition("\n## Reload\n")[2].partition("\nEverything else")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    listed = {option for row in rows for option in re.findall(r"`([a-z-]+)`", row)}
    assert listed - {"listen", "api", "http", "mesh-key", "register"} == SeedOptions.reloads | UserOptions.reloads
