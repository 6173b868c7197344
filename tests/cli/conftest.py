"""Fixtures of the command's tests."""

from collections.abc import Callable, Iterator

import pytest
from click.testing import CliRunner, Result

from meshproto.cli.main import mesh
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
