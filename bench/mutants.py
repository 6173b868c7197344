"""A copy of the code that is broken in one way: whoever watches over that has to notice."""

import shutil
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
PARTS: Final = ("meshproto", "twisted", "tests", "bench", "docs")
FILES: Final = ("pyproject.toml", "README.md", "Makefile", "setup.py", "CHANGELOG.md")


class Mutant(NamedTuple):
    """`was` must stand in the file, of the package, exactly once."""

    name: str
    file: str
    was: str
    becomes: str

    @property
    def fits(self) -> bool:
        """Whether it does."""
        return (ROOT / "meshproto" / self.file).read_text(encoding="utf-8").count(self.was) == 1


def broken(mutant: Mutant, directory: str) -> bool:
    """Make a copy of the code with the mutant in it; False: it does not fit the code."""
    if not mutant.fits:
        return False
    for part in PARTS:
        shutil.copytree(ROOT / part, Path(directory) / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, directory)
    file = Path(directory) / "meshproto" / mutant.file
    file.write_text(file.read_text(encoding="utf-8").replace(mutant.was, mutant.becomes), encoding="utf-8")
    return True
