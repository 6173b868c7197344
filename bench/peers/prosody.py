"""Prosody: XMPP between two accounts of one server, with stream management, so that it acknowledges."""

import base64
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from typing import Final

from bench.figures import Sample
from bench.peers.contest import MESSAGES, Load, Peer, Setting
from bench.peers.exchange import NUMBER_DIGITS, Exchange, InOrder, connect, message, read_until
from bench.peers.machine import Unavailable, free_port
from bench.peers.packages import debian_version

HOST: Final = "localhost"
PASSWORD: Final = "secret"
SENDERS_MAX: Final = max(load.connections for load in MESSAGES)
"""Each has an account of its own."""
SENDER, RECIPIENT = "bobby", "userx"
_OPEN: Final = (
    f"<stream:stream to='{HOST}' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>"
)
_ASK: Final = b"<r xmlns='urn:xmpp:sm:3'/>"
_SO_FAR: Final = re.compile(rb"<a [^>]*h='(\d+)'[^>]*/>")
_TEXT: Final = re.compile(rb"<body>(\d{%d})" % NUMBER_DIGITS)
TAIL_BYTES: Final = 200
"""Kept of what was read: longer than an acknowledgement, and than what comes before a message's number."""
CONFIGURATION: Final = """\
run_as_root = true
pidfile = "{place}/prosody.pid"
data_path = "{place}/data"
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
s2s_ports = {{ }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
authentication = "internal_plain"
modules_enabled = {{ "saslauth", "roster", "offline", "smacks", "disco" }}
modules_disabled = {{ "s2s", "tls", "limits" }}
log = {{ warn = "*console" }}
VirtualHost "{host}"
"""


def dial(port: int, user: str) -> socket.socket:
    connection = connect(port)
    login = base64.b64encode(f"\0{user}\0{PASSWORD}".encode()).decode()
    steps = (
        (_OPEN, b"</stream:features>"),
        (f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{login}</auth>", b"<success"),
        (_OPEN, b"</stream:features>"),
        (
            "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>",
            b"</iq>",
        ),
    )
    for said, answer in steps:
        connection.sendall(said.encode())
        read_until(connection, answer)
    return connection


class Sender:
    """Asks after each write how many the server has taken: what comes in answer is a count."""

    def __init__(self) -> None:
        self._rest = b""
        self._order = InOrder()
        self._so_far = 0

    def send(self, numbers: Sequence[int]) -> bytes:
        self._order.sent(numbers)
        return b"".join(map(self._one, numbers)) + _ASK

    @staticmethod
    def _one(number: int) -> bytes:
        to = f"{RECIPIENT}@{HOST}/r".encode()
        return b"<message to='%b' type='chat' id='%d'><body>%b</body></message>" % (to, number, message(number))

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        data = self._rest + data
        before, end = self._so_far, 0
        for found in _SO_FAR.finditer(data):
            self._so_far, end = int(found[1]), found.end()
        self._rest = data[max(end, len(data) - TAIL_BYTES) :]
        return self._order.first(self._so_far - before), b""


class Reader:
    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> tuple[Iterable[int], bytes]:
        data = self._rest + data
        numbers, end = [], 0
        for found in _TEXT.finditer(data):
            numbers.append(int(found[1]))
            end = found.end()
        self._rest = data[max(end, len(data) - TAIL_BYTES) :]
        return numbers, b""


class Prosody(Peer):
    key = "prosody"
    title = "Prosody, account to account, XEP-0198"
    acknowledged = "handed on in memory; nothing on disk"
    work = "message"
    loads = MESSAGES
    packages = ("prosody",)

    def start(self, setting: Setting) -> None:
        binary = shutil.which("prosody")
        if binary is None:
            raise Unavailable("prosody is not installed")
        self.version = debian_version("prosody")
        self._port = free_port()
        place = setting.servers.place("prosody")
        (place / "prosody.cfg.lua").write_text(
            CONFIGURATION.format(place=place, port=self._port, host=HOST), encoding="ascii"
        )
        accounts = place / "data" / HOST / "accounts"
        accounts.mkdir(parents=True)
        for user in (RECIPIENT, *(f"{SENDER}{number}" for number in range(SENDERS_MAX))):
            (accounts / f"{user}.dat").write_text(f'return {{ ["password"] = "{PASSWORD}"; }};\n', encoding="ascii")
        words = ("--config", place / "prosody.cfg.lua", "-F")
        child = setting.servers.serve("prosody", self._port, binary, *words)
        self._roots = (child.process.pid,)

    def measure(self, load: Load, seconds: float) -> Sample:
        reading = dial(self._port, RECIPIENT)
        reading.sendall(b"<presence/>")
        senders = [(self._sending(number), Sender()) for number in range(load.connections)]
        return Exchange(senders, (reading, Reader())).run(load.in_flight, seconds, self.usage)

    def _sending(self, number: int) -> socket.socket:
        connection = dial(self._port, f"{SENDER}{number}")
        connection.sendall(b"<enable xmlns='urn:xmpp:sm:3'/>")
        read_until(connection, b"<enabled")
        return connection
