"""The image and the composition: what can be seen without a registry. Each instruction is looked at, the build runs as
it stands in a directory of its own, and what comes of it is started, asked for its health, and stopped as a container
is: as process 1."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from meshproto.cli.processes import until
from meshproto.client.node import Node
from meshproto.seed_tap import Options as SeedOptions
from meshproto.user_tap import Options as UserOptions

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
HOME = "/opt/meshproto"
TIMEOUT_S = 60.0
KNOWN = {
    "FROM",
    "WORKDIR",
    "COPY",
    "RUN",
    "ENV",
    "USER",
    "VOLUME",
    "EXPOSE",
    "STOPSIGNAL",
    "HEALTHCHECK",
    "ENTRYPOINT",
    "CMD",
}
OWN = {"PATH", "HEALTH", "MESH_NODE"}
"""Variables that are for others than the two programs: the shell, the check below, the command `mesh`."""


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Containerfile").read_text())
    found: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest))
    return found


BUILD, FINAL = stages()


def of(stage: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == word]


def variables() -> dict[str, str]:
    (line,) = of(FINAL, "ENV")
    return dict(word.split("=", 1) for word in line.split())


def health() -> list[str]:
    (line,) = of(FINAL, "HEALTHCHECK")
    command: list[str] = json.loads(line.partition("CMD ")[2])
    return command


def test_the_instructions() -> None:
    """What is copied is there; nothing runs through a shell that would keep signals to itself; the user is not root,
    and owns the volume; what is set are options of the programs; ports are their defaults."""
    assert {word for stage in (BUILD, FINAL) for word, _ in stage} <= KNOWN
    assert of(BUILD, "FROM")[0].split()[0] == of(FINAL, "FROM")[0]  # the virtual environment names its Python
    for line in of(BUILD, "COPY"):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert of(FINAL, "COPY") == [f"--from=build {HOME} {HOME}"]
    assert json.loads(of(FINAL, "ENTRYPOINT")[0])[0] == "twistd"
    assert json.loads(of(FINAL, "CMD")[0]) == ["meshuser"]
    assert of(FINAL, "STOPSIGNAL") == ["SIGTERM"]
    (user,) = of(FINAL, "USER")
    made, state = of(FINAL, "RUN")
    assert made.startswith("useradd ") and made.endswith(f" {user}")
    assert state == f"install -d -m 0700 -o {user} -g {user} {variables()['MESH_STATE']}"
    assert of(FINAL, "VOLUME") == [variables()["MESH_STATE"]]
    twins = set(SeedOptions.twins.values()) & set(UserOptions.twins.values())
    assert variables().keys() <= twins | OWN
    ports = {UserOptions.fallbacks["port"], SeedOptions.fallbacks["port"]}
    assert {int(port) for port in of(FINAL, "EXPOSE")[0].split()} == ports
    assert variables()["HEALTH"] == f"http://127.0.0.1:{UserOptions.fallbacks['port']}/healthz"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build leaves behind. The packages are lent by this environment: no network."""
    root = tmp_path_factory.mktemp("image")
    source, home = root / "src", root / "opt" / "meshproto"
    source.mkdir()
    for line in of(BUILD, "COPY"):
        *names, target = line.split()
        for name in names:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / target)
            else:
                shutil.copy(ROOT / name, source / target)
    environment = {
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "HOME": str(root),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    for command in of(BUILD, "RUN"):
        here = command.replace(HOME, str(home))
        done = subprocess.run(
            ["sh", "-c", here], cwd=source, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
        if packages.exists():
            lend = f"import sys; sys.path.insert(0, {sysconfig.get_path('purelib')!r})\n"
            (packages / "lent.pth").write_text(lend)
    program = home / "bin" / "twistd"  # which would come with Twisted
    program.write_text(f"#!{home}/bin/python3\nfrom twisted.scripts.twistd import run\n\nrun()\n")
    program.chmod(0o755)
    return root


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def container(
    image: Path, state: Path, command: list[str], environ: dict[str, str], around: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with nothing but the image's environment, and what is given."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = variables() | {"MESH_STATE": str(state)} | environ
    environment["PATH"] = environment["PATH"].replace(HOME, str(image / HOME[1:]))
    entry = json.loads(of(FINAL, "ENTRYPOINT")[0])
    program = shutil.which(entry[0], path=environment["PATH"])
    assert program is not None
    with (state.parent / f"{state.name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*around, program, *entry[1:], *command], cwd=state, env=environment, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def is_healthy(image: Path, url: str) -> bool:
    environment = {"PATH": f"{image}{HOME}/bin:{os.environ['PATH']}", "HEALTH": url}
    return (
        subprocess.run(health(), env=environment, capture_output=True, timeout=TIMEOUT_S, check=False).returncode == 0
    )


def test_it_runs(image: Path, tmp_path: Path) -> None:
    """The built image's own entry point and variables: healthy while it serves, and not before or after."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/healthz"
    assert not is_healthy(image, url)
    settings = {"MESH_LISTEN": f"tcp:{port}", "USER_NAME": "UserX", "MESH_ADVERTISE": f"http://127.0.0.1:{port}"}
    with container(image, tmp_path / "state", json.loads(of(FINAL, "CMD")[0]), settings) as process:
        until(lambda: (tmp_path / "state" / "address").exists() or None, "it listens", TIMEOUT_S)
        assert is_healthy(image, url)
        process.terminate()
        process.wait(TIMEOUT_S)
    assert not is_healthy(image, url)
    assert not (tmp_path / "state" / "address").exists()


UNSHARE = ("unshare", "--user", "--map-root-user", "--pid", "--fork")


def can_unshare() -> bool:
    return (
        shutil.which("unshare") is not None
        and subprocess.run([*UNSHARE, "true"], check=False, stderr=subprocess.DEVNULL).returncode == 0
    )


@pytest.mark.skipif(not can_unshare(), reason="no process may be the first of its own here")
def test_as_process_1(image: Path, tmp_path: Path) -> None:
    """Where the kernel gives a signal no default meaning: SIGTERM ends it in good order, with exit code 0."""
    settings = {"MESH_LISTEN": "tcp:0", "MESH_ADVERTISE": "127.0.0.1:1"}
    with container(image, tmp_path / "state", ["meshseed"], settings, UNSHARE) as process:
        until(lambda: (tmp_path / "state" / "address").exists() or None, "it listens", TIMEOUT_S)
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
    assert "Server Shut Down." in (tmp_path / "state.log").read_text()


# -- the composition ----------------------------------------------------------------------------------------------


def services() -> dict[str, Any]:
    composed = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert (DEPLOY / composed["x-node"]["build"]["context"]).resolve() == ROOT
    assert ROOT / composed["x-node"]["build"]["dockerfile"] == DEPLOY / "Containerfile"
    assert {volume.partition(":")[0] for one in composed["services"].values() for volume in one["volumes"]} == set(
        composed["volumes"]
    )
    found: dict[str, Any] = composed["services"]
    return found


def test_the_composition_runs(image: Path, tmp_path: Path) -> None:
    """Two seeds and two users, with the variables that stand there; for the names of the containers stand ports of this
    machine. One writes to the other, as the file says, and every one is healthy by its own word."""
    composed = services()
    ports: dict[tuple[str, str], int] = {}

    def here(name: str, text: str) -> str:
        """Names and ports of containers -> of this machine."""

        def port(host: str, number: str) -> int:
            return ports.setdefault((host, number), free_port())

        text = re.sub(r"\b(seed1|seed2|userx|bobby):(\d+)", lambda at: f"127.0.0.1:{port(at[1], at[2])}", text)
        text = re.sub(r"127\.0\.0\.1:(5080|3000)\b", lambda at: f"127.0.0.1:{port(name, at[1])}", text)
        text = re.sub(r"^tcp:(\d+)", lambda at: f"tcp:{port(name, at[1])}", text)
        return text.replace("/state/", f"{tmp_path}/{name}/")

    running = []
    for name, service in composed.items():
        options = {"meshseed": SeedOptions, "meshuser": UserOptions}[service["command"][0]]
        assert service["environment"].keys() <= set(options.twins.values()) | OWN
        assert service["volumes"] == [f"{name}:{variables()['MESH_STATE']}"]
        settings = {key: here(name, value) for key, value in (variables() | service["environment"]).items()}
        settings.update(PATH=variables()["PATH"], MESH_STATE=str(tmp_path / name))
        running.append((name, service, settings))
    with contextlib.ExitStack() as stack:
        for name, service, settings in running:
            stack.enter_context(container(image, tmp_path / name, service["command"], settings))
        for name, _, settings in running:
            until(lambda name=name: (tmp_path / name / "address").exists() or None, f"{name} listens", TIMEOUT_S)  # type: ignore[misc]
            assert is_healthy(image, settings["HEALTH"]), name
        nodes = {name: Node(f"unix:{tmp_path}/{name}/mesh.sock", timeout_s=TIMEOUT_S) for name in ("userx", "bobby")}
        for name, node in nodes.items():
            until(lambda node=node: node.status().document["registered"] or None, f"{name} is there", TIMEOUT_S)  # type: ignore[misc]
        (told,) = re.findall(r"exec bobby (mesh send .*)$", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE)
        mesh = str(image / HOME[1:] / "bin" / "mesh")
        sent = subprocess.run(
            [mesh, *shlex.split(told)[1:]],
            env={"MESH_NODE": f"unix:{tmp_path}/bobby/mesh.sock", "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert sent.stdout.startswith("delivered"), sent.stdout + sent.stderr
        assert [one["message"] for one in nodes["userx"].inbox().document["messages"]] == ["Hello UserX"]
