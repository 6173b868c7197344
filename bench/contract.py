"""Does a node do what its /openapi.json says? `python -m bench.contract` starts one and lets schemathesis ask it, in
every way that the document allows and in many that it does not. All checks are on but those in `contract.toml`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from meshproto.cli.processes import Children, until
from meshproto.client.node import Node

HERE: Final = Path(__file__).parent
EXAMPLES: Final = 500
USER: Final = "UserX"
OTHER: Final = "Bobby"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.contract", description=__doc__)
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="for each operation (%(default)d)")
    parser.add_argument("--seed", type=int, default=1, help="what they are drawn from (%(default)d)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="mesh-contract-") as directory, Children(Path(directory)) as children:
        seed = children.start("meshseed", "seedX")
        urls = {name: children.start("meshuser", name, "--seed", seed) for name in (USER, OTHER)}
        for url in urls.values():
            node = Node(url)
            until(lambda node=node: node.status().document["registered"] or None, "it is registered")  # type: ignore[misc]
        Node(urls[OTHER]).send(USER, "something to read")
        Node(urls[USER]).send(OTHER, "something to look up", message_id="0")
        command = [sys.executable, "-m", "schemathesis.cli", f"--config-file={HERE / 'contract.toml'}", "run"]
        command += [f"{urls[USER]}/openapi.json", f"--seed={options.seed}", "--no-color"]
        command += [f"--max-examples={options.examples}", "--continue-on-failure", "--generation-database=none"]
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "bench.contract_hooks", "PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(command, cwd=directory, env=environment, check=False)
        log = children.all[USER].log.read_text(encoding="utf-8")
    bugs = log.count("Traceback") + log.count("a bug")
    print(f"{bugs} errors in the node's log")
    return done.returncode or bool(bugs)


if __name__ == "__main__":
    sys.exit(main())
