"""Direct messages between programs and people, addressed by name, on machines they run themselves."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("meshproto")
except PackageNotFoundError:  # run from a source tree that was never installed
    __version__ = "0+unknown"
