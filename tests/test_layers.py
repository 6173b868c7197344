"""Imports point one way: errors <- wire <- core <- net <- taps, and errors <- client <- cli."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import meshproto

PACKAGE = Path(meshproto.__file__).parent
ABOVE = {
    "errors": set[str](),
    "wire": {"errors"},
    "core": {"errors", "wire"},
    "net": {"errors", "wire", "core"},
    "tap": {"errors", "wire", "core", "net"},
    "seed_tap": {"errors", "wire", "core", "net", "tap"},
    "user_tap": {"errors", "wire", "core", "net", "tap"},
    "client": {"errors"},
    "cli": {"client"},
}
"""What a module of each part may import besides its own part. A client asks a node over HTTP, and shares no code with
it, but for :data:`ON_TWISTED`; the command is a client of its own, but for :data:`ON_FILES`."""
ON_TWISTED = {"meshproto.client.twisted_node": {"errors", "net"}}
"""What dials on Twisted dials as a node does."""
ON_FILES = "meshproto.cli.files"
"""The one module of the command that imports what knows a node's files: there is no node to ask about those."""
SHELLS = {"twisted", "klein", "treq", "sqlite3", "asyncio", "meshproto.net"}
IMPURE = {"twisted", "klein", "treq", "sqlite3", "socket", "ssl", "select", "threading", "time", "os"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
PURE = [name for name in MODULES if name.startswith(("meshproto.core", "meshproto.wire", "meshproto.errors"))]


def part_of(module: str) -> str:
    """`meshproto.core.seed` -> `core`."""
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> Iterator[str]:
    """Every module that the file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            assert node.module is not None
            if node.module == "meshproto":
                yield from (f"meshproto.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_every_part_of_the_package_has_its_place() -> None:
    """A new part of meshproto must be given a place in the order."""
    assert {part_of(name) for name in MODULES} - {""} == set(ABOVE)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    """No module imports one that stands above it, or beside it."""
    own = part_of(module)
    for imported in imports(MODULES[module]):
        part = part_of(imported)
        if module == ON_FILES:
            assert part not in ("tap", "seed_tap", "user_tap"), f"{module} imports {imported}"
        elif imported.startswith("meshproto.") and part != own and imported != "meshproto.__version__":
            assert part in ON_TWISTED.get(module, ABOVE[own]), f"{module} imports {imported}"


@pytest.mark.parametrize("module", PURE)
def test_the_core_names_nothing_impure(module: str) -> None:
    """No import statement of the core, the wire or the errors names a clock, a socket, a thread or a shell."""
    assert not {name.split(".")[0] for name in imports(MODULES[module])} & IMPURE


def brought_along(modules: list[str], unwanted: set[str]) -> None:
    """Each of the modules, imported in a fresh interpreter, leaves sys.modules without the unwanted ones."""
    check = (
        "import importlib, sys\n"
        "for name in sys.argv[2:]:\n"
        "    importlib.import_module(name)\n"
        "    unwanted = [s for s in sys.argv[1].split(',') if s in sys.modules]\n"
        "    assert not unwanted, (name, unwanted)\n"
        "print(len(sys.argv[2:]))\n"
    )
    command = [sys.executable, "-c", check, ",".join(sorted(unwanted)), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(modules))), done.stderr


def test_the_core_brings_no_twisted_along() -> None:
    brought_along(PURE, SHELLS)


def test_the_blocking_client_brings_the_standard_library_along_and_nothing_else() -> None:
    """Twisted, the core, and every package that is installed besides Python stay out."""
    foreign = {"twisted", "zope", "msgspec", "nacl", "httptools", "treq", "klein", "meshproto.core", "meshproto.net"}
    brought_along(["meshproto.client", "meshproto.client.blocking"], foreign)


def test_the_command_imports_what_knows_files_late() -> None:
    """Only within a function: what is typed most starts without the node's code."""
    for module, path in MODULES.items():
        if module.startswith("meshproto.cli."):
            early = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ImportFrom)]
            names = {f"{node.module}.{alias.name}" for node in early for alias in node.names}
            assert not {name for name in names if name.startswith(ON_FILES)}, module
