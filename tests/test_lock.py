"""requirements.lock: what `make` installs is what setup.py asks for."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent


def asked(monkeypatch: pytest.MonkeyPatch) -> list[Requirement]:
    """What a node needs, and who works on it."""
    told: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: told.update(arguments))
    runpy.run_path(str(ROOT / "setup.py"))
    return [Requirement(line) for line in (*told["install_requires"], *told["extras_require"]["dev"])]


def test_all_that_is_asked_for_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a version that setup.py takes; on the same machines."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines = re.findall(r"^([a-z0-9-]+==.+?) *\\$", text, re.MULTILINE)
    locked = {canonicalize_name(one.name): one for one in map(Requirement, lines)}
    for wanted in asked(monkeypatch):
        one = locked.get(canonicalize_name(wanted.name))
        assert one is not None, f"{wanted.name} is not in requirements.lock: make lock"
        (pinned,) = one.specifier
        assert wanted.specifier.contains(pinned.version), f"requirements.lock has {one}: make lock"
        assert str(one.marker) == str(wanted.marker)
