"""`python -m tests.docs_help`: writes the help that docs/command.md shows anew, as it is now."""

import re
from pathlib import Path

from click.testing import CliRunner

from meshproto.cli.main import mesh
from meshproto.client.settings import DEFAULT_NODE

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "command.md"
_HELP = re.compile(r"^\$ mesh (?:([a-z]+) )?--help\n.*?(?=^```$)", re.MULTILINE | re.DOTALL)


def written_anew(text: str) -> str:
    """The document with each help as it is; the default node's port is another one where the documents are tested."""

    def help_of(found: re.Match[str]) -> str:
        name = [found[1]] if found[1] else []
        shown = CliRunner().invoke(mesh, [*name, "--help"], prog_name="mesh", terminal_width=78).stdout
        return f"$ {' '.join(['mesh', *name])} --help\n{shown.replace(DEFAULT_NODE, '...')}"

    return _HELP.sub(help_of, text)


if __name__ == "__main__":
    DOCUMENT.write_text(written_anew(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
