"""Where a directory is that seeds share: the address that `--directory` gives."""

from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote

from meshproto.errors import BadParams, BadState
from meshproto.net.listening import join_address
from meshproto.net.state import read_secret
from meshproto.wire import split_address

SCHEMES: Final = ("redis", "rediss")
FORM: Final = "redis://HOST:PORT[,HOST:PORT...], or rediss:// with TLS"
ADDRESSES_MAX: Final = 100
"""More than any cluster needs for one of its nodes to answer; the others are learned from it."""


class RedisAddress(NamedTuple):
    """`hosts`: some nodes of a cluster, or the one server there is."""

    hosts: tuple[tuple[str, int], ...]
    tls: bool = False
    user: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        """Without what is secret."""
        return ",".join(join_address(*host) for host in self.hosts)

    @classmethod
    def parse(cls, text: str) -> "RedisAddress":
        """Raises :class:`BadParams`; what it says has no password in it."""
        scheme, _, rest = text.partition("://")
        if scheme not in SCHEMES or not rest:
            raise BadParams(f"this is no address of a directory: {FORM}")
        credentials, _, places = rest.rpartition("@")
        if set(places.rstrip("/")) & set("/?#"):
            raise BadParams(f"after the last port there is nothing: {FORM}")
        hosts = tuple(split_address(place) for place in places.rstrip("/").split(","))
        if len(hosts) > ADDRESSES_MAX:
            raise BadParams(f"{len(hosts)} addresses are more than {ADDRESSES_MAX}: some of the cluster's are enough")
        user, _, password = credentials.partition(":")
        return cls(hosts, scheme == "rediss", unquote(user) or None, unquote(password) or None)

    def with_password_of(self, path: Path | None) -> "RedisAddress":
        """The password in a file that its owner alone can read. Raises :class:`BadState`."""
        if path is None:
            return self
        if self.password is not None:
            raise BadState("the directory's password is given twice: leave it in the file, and out of the address")
        try:
            password = read_secret(path).decode("utf-8").strip()
        except UnicodeDecodeError:
            raise BadState(f"{path} is not text in UTF-8") from None
        if not password:
            raise BadState(f"there is no password in {path}")
        return self._replace(password=password)
