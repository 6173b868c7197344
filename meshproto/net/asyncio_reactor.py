"""The reactor that a shared directory needs: its client is made for asyncio."""

import importlib.util
import sys
from typing import Final

from meshproto.errors import BadParams

EXTRA: Final = "pip install 'meshproto[redis]'"


def run_on_asyncio() -> None:
    """Install Twisted's asyncio reactor, unless one is installed: for whoever reads the options, before twistd takes
    the default one. Raises :class:`BadParams` when it is another, or the client is missing."""
    if importlib.util.find_spec("redis") is None:
        raise BadParams(f"a shared directory needs redis-py: {EXTRA}")
    from twisted.internet.asyncioreactor import AsyncioSelectorReactor, install  # noqa: PLC0415 - not on epoll

    if "twisted.internet.reactor" not in sys.modules:
        install()
    from twisted.internet import reactor  # noqa: PLC0415 - there is one now

    if not isinstance(reactor, AsyncioSelectorReactor):
        raise BadParams(
            f"a shared directory needs the asyncio reactor, and this is {type(reactor).__name__}: leave twistd's "
            "--reactor out, and it is chosen, or give --reactor=asyncio"
        )
