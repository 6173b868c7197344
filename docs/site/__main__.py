"""Makes a site of the documents that are there: `python -m docs.site`, or `make docs`.

The documents are plain Markdown, to be read wherever the repository is. What only a site has is made here, in a copy:
the contents, and the reference from the docstrings. Whatever Sphinx warns of, such as a link that leads nowhere, is an
error.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

from sphinx.cmd.build import build_main

from docs.site.pages import contents, reference

ROOT: Final = Path(__file__).parents[2]
OUT: Final = ROOT / "build" / "site"
COPIED: Final = ("README.md", "CHANGELOG.md", "LICENSE")
LINKED_TO: Final = ("meshproto", "tests", "bench", "deploy", "Makefile", "setup.py")
"""What documents lead to besides each other: a reader of the site can download it."""


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m docs.site", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--to", type=Path, default=OUT, metavar="DIR", help="where it is written (build/site)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    to = parser().parse_args(arguments).to
    shutil.rmtree(to, ignore_errors=True)
    prepare(to / "source")
    options = ["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent), "-d", str(to / "doctrees")]
    failed = build_main([*options, str(to / "source"), str(to / "html")])
    if not failed:
        print(f"{to / 'html' / 'index.html'}")
    return int(failed)


def prepare(source: Path) -> None:
    """What Sphinx reads: the documents as they are, and beside them what only a site has."""
    ignored = shutil.ignore_patterns("site", "__pycache__")
    shutil.copytree(ROOT / "docs", source / "docs", ignore=ignored)
    for name in COPIED:
        text = (ROOT / name).read_text(encoding="utf-8")
        (source / name).write_text(text.replace("](docs/index.md", "](index.md"), encoding="utf-8")
    for name in LINKED_TO:
        if (ROOT / name).exists():
            (source / name).symlink_to(ROOT / name)
    (source / "index.md").write_text(contents(source), encoding="utf-8")
    (source / "reference").mkdir()
    for name, text in reference().items():
        (source / "reference" / f"{name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
