"""The pages that only the site has: the front page with the contents, and the reference from the docstrings."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Final

CONTENTS: Final = {
    "Begin": ("docs/tutorial", "docs/page", "The README <README>"),
    "How to": ("docs/howto/*",),
    "Look up": ("docs/command", "docs/http", "docs/operating", "docs/cluster", "docs/clients"),
    "Understand": ("docs/security", "docs/protocol", "docs/architecture", "docs/benchmarks", "CHANGELOG"),
    "From the code": ("reference/*",),
}
"""The order of the pages. What is not there yet is left out; what is in no part is an error of Sphinx."""

MODULES: Final = {
    "client": "The clients",
    "wire": "The line protocol",
    "errors": "Errors",
    "core": "The core",
}
"""The parts of meshproto that others build on, or carry on."""


def contents(source: Path) -> str:
    """docs/index.md as the front page, with a table of contents for each part."""
    front = (source / "docs" / "index.md").read_text(encoding="utf-8")
    (source / "docs" / "index.md").unlink()
    front = re.sub(r"\]\((?!\w+:|#|\.\./)", "](docs/", front).replace("](../", "](")
    there = {str(path.relative_to(source).with_suffix("")) for path in source.glob("*.md")}
    there |= {str(path.relative_to(source).with_suffix("")) for path in (source / "docs").rglob("*.md")}
    trees = [
        _tree(caption, [page for page in pages if "*" in page or page.rpartition("<")[2].rstrip(">") in there])
        for caption, pages in CONTENTS.items()
    ]
    return "\n".join([front, *trees])


def _tree(caption: str, pages: list[str]) -> str:
    listed = "\n".join(pages)
    return f"```{{toctree}}\n:hidden:\n:glob:\n:caption: {caption}\n\n{listed}\n```\n"


def reference() -> dict[str, str]:
    """A page for each part that is there: its name, and the text."""
    pages = {name: _part(f"meshproto.{name}", title) for name, title in MODULES.items()}
    return {name: page for name, page in pages.items() if page}


def _part(name: str, title: str) -> str:
    try:
        part = import_module(name)
    except ModuleNotFoundError:
        return ""
    inner = [f"{name}.{module.name}" for module in pkgutil.iter_modules(getattr(part, "__path__", ()))]
    return "\n".join([f"# {title}\n", *map(_module, [name, *inner])])


def _module(name: str) -> str:
    options = "   :members:\n   :member-order: bysource\n   :show-inheritance:\n"
    return f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n{options}```\n"
