"""Fixtures of the clients' tests."""

from collections.abc import Iterator

import pytest

from tests.cli.stub import Stub


@pytest.fixture
def stub() -> Iterator[Stub]:
    """A listening stub node."""
    with Stub() as stub:
        yield stub
