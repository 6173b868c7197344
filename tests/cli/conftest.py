"""Fixtures of the command's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from meshproto.cli.main import mesh
from meshproto.cli.processes import Children
from tests.cli.stub import Stub

Mesh = Callable[..., Result]


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A listening stub node."""
    with Stub() as stub:
        yield stub


@pytest.fixture
def run(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> Mesh:
    """`mesh ARGUMENTS` against the stub, in this process."""
    monkeypatch.delenv("MESH_TOKEN_FILE", raising=False)
    monkeypatch.setenv("MESH_NODE", stub.url)

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(mesh, arguments, input=stdin)

    return invoke


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Children]:
    """A seed, and two users at it."""
    with Children(tmp_path) as children:
        seed = children.start("meshseed", "seedX")
        for name in ("UserX", "Bobby"):
            children.start("meshuser", name, "--seed", seed)
        yield children
