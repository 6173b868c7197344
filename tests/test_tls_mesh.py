"""TLS between processes: seeds that gossip, users who deliver, and whoever has mistaken how to dial."""

import http.client
import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme

from meshproto.cli.processes import Children, until
from meshproto.wire import split_address
from tests.net.tls_rig import endpoint, write
from tests.test_plugin import TIMEOUT_S, twistd

NAMES = ("127.0.0.1", "localhost")


class Mesh:
    """Two seeds, and UserX and Bobby at one each, all of them on TLS alone."""

    def __init__(self, children: Children, path: Path) -> None:
        self.children = children
        ca = trustme.CA()
        self.path = path
        self.ca = path / "ca.pem"
        ca.cert_pem.write_to_path(self.ca)
        self.certificate = write(ca.issue_cert(*NAMES), path / "cert.pem")
        yesterday = datetime.now(UTC) - timedelta(days=1)
        old = ca.issue_cert(*NAMES, not_before=yesterday - timedelta(days=1), not_after=yesterday)
        self.expired = write(old, path / "expired.pem")
        self.context = ssl.create_default_context(cafile=self.ca)
        self.seed_x = self.tls("meshseed", "seedX")
        self.seed_y = self.tls("meshseed", "seedY", "--peer", self.seed_x)
        self.urls = {
            "UserX": self.tls("meshuser", "UserX", "--seed", self.seed_x),
            "Bobby": self.tls("meshuser", "Bobby", "--seed", self.seed_y),
        }
        for name in self.urls:
            until(lambda name=name: self.get(name, "/status")["registered"] or None, f"{name} is registered")  # type: ignore[misc]

    def tls(self, service: str, name: str, *options: str, certificate: Path | None = None) -> str:
        listen = endpoint(certificate or self.certificate)
        return self.children.start(service, name, "--listen", listen, "--ca", str(self.ca), *options)

    def ask(self, name: str, method: str, path: str, body: Any = None) -> Any:
        where = urlsplit(self.urls[name])
        with closing(self._connection(where.scheme, where.netloc)) as connection:
            connection.request(method, path, None if body is None else json.dumps(body))
            return json.loads(connection.getresponse().read())

    def _connection(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme == "http":
            return http.client.HTTPConnection(netloc, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(netloc, timeout=TIMEOUT_S, context=self.context)

    def get(self, name: str, path: str) -> Any:
        return self.ask(name, "GET", path)

    def plain(self, name: str, *options: str) -> None:
        """A user without TLS, of whom nothing is known about authorities either."""
        self.urls[name] = self.children.start("meshuser", name, *options)

    def problem(self, name: str) -> str:
        """Why the user is not registered."""
        return str(until(lambda: self.get(name, "/status")["problem"], f"{name} has a problem"))


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with Children(tmp_path) as children:
        yield Mesh(children, tmp_path)
        for child in children.all.values():
            log = child.log.read_text()
            assert "Traceback" not in log and "Unhandled" not in log, f"{child.name}:\n{log}"


def test_a_mesh_on_tls(mesh: Mesh) -> None:
    """Seeds gossip by TLS and users deliver by https, without anybody who speaks plain text: addresses keep their
    `tls:`, a message is delivered, a long poll and a stream are answered."""
    assert mesh.seed_x.startswith("tls:") and mesh.urls["UserX"].startswith("https://")

    def known() -> bool | None:
        seeds = mesh.get("Bobby", "/seeds")["seeds"]
        return {seed["address"] for seed in seeds if seed["alive"]} == {mesh.seed_x, mesh.seed_y} or None

    until(known, "Bobby knows both seeds by their TLS addresses")
    # the gossip has carried UserX's registration from seedX to seedY
    sent = until(
        lambda: answer if (answer := mesh.ask("Bobby", "POST", "/send", HELLO)).get("status") else None, "it is sent"
    )
    assert sent["status"] == "delivered"
    (message,) = mesh.get("UserX", "/inbox")["messages"]
    assert message["message"] == HELLO["message"]
    assert mesh.get("UserX", "/inbox?wait=0.1&after=1")["messages"] == []


HELLO = {"to": "UserX", "message": "hello over TLS"}


def test_a_stream_over_https(mesh: Mesh) -> None:
    """Lines both ways at once: each result comes while the request is still being written."""
    where = urlsplit(mesh.urls["UserX"])
    connection = http.client.HTTPSConnection(where.netloc, timeout=TIMEOUT_S, context=mesh.context)
    with closing(connection):
        connection.putrequest("POST", "/send")
        connection.putheader("Content-Type", "application/x-ndjson")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        answers = None
        for number in range(3):
            line = json.dumps({"to": "UserX", "message": number}).encode() + b"\n"
            connection.send(b"%x\r\n%b\r\n" % (len(line), line))
            answers = answers or connection.getresponse()
            assert json.loads(answers.readline())["status"] == "delivered"
        connection.send(b"0\r\n\r\n")


def test_who_has_mistaken_how_to_dial_a_seed(mesh: Mesh) -> None:
    """Plain text at a TLS seed, an authority that is not trusted, an expired certificate, a name that is not in it:
    the status says each in a sentence of its own."""
    plain = mesh.seed_x.removeprefix("tls:")
    mesh.plain("Plain", "--seed", plain)
    assert f"seed {plain}: TLS needed: this port speaks TLS: write tls:HOST:PORT" in mesh.problem("Plain")
    mesh.plain("Blind", "--seed", mesh.seed_x)
    assert "is from nobody who is trusted here: give --ca" in mesh.problem("Blind")
    expired = mesh.tls("meshseed", "seedOld", certificate=mesh.expired)
    mesh.plain("Late", "--seed", expired, "--ca", str(mesh.ca))
    assert "has expired" in mesh.problem("Late")
    other = mesh.seed_x.replace("127.0.0.1", "127.1")
    mesh.plain("Lost", "--seed", other, "--ca", str(mesh.ca))
    assert "is not for 127.1" in mesh.problem("Lost")


def test_why_a_delivery_fails(mesh: Mesh) -> None:
    """A recipient whose certificate has expired, and one who is not trusted: the outbox says why."""
    mesh.urls["Old"] = mesh.tls("meshuser", "Old", "--seed", mesh.seed_y, certificate=mesh.expired)
    where = mesh.urls["Old"].removeprefix("https://")

    def reason() -> str | None:
        answer = mesh.ask("Bobby", "POST", "/send", {"to": "Old", "message": "?", "wait": 1})
        return answer["reason"] if "certificate" in str(answer.get("reason")) else None

    assert until(reason, "the reason is there").startswith(f"https://{where}: the certificate at {where} has expired")


def test_plain_text_at_a_tls_port(mesh: Mesh) -> None:
    """nc and curl get a line they can read."""
    with socket.create_connection(split_address(mesh.seed_x), timeout=TIMEOUT_S) as connection:
        connection.sendall(b'{"jsonrpc":"2.0","id":1,"method":"status"}\n')
        with connection.makefile("rb") as answers:
            assert "TLS needed" in json.loads(answers.read())["error"]["message"]
    where = urlsplit(mesh.urls["UserX"]).netloc
    with closing(http.client.HTTPConnection(where, timeout=TIMEOUT_S)) as connection:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        assert answer.status == 400
        assert "https://HOST:PORT" in json.loads(answer.read())["detail"]


def test_a_certificate_that_is_there_no_more(tmp_path: Path) -> None:
    """A file that was found from where the program was started, but is not from where it runs, has its line too."""
    trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    listen = "ssl:0:interface=127.0.0.1:privateKey=own.pem"
    state = ["--state", str(tmp_path / "state")]
    ended = twistd("--rundir", str(elsewhere), "meshseed", "--listen", listen, *state, cwd=tmp_path)
    assert ended.returncode == 1
    assert "meshseed: " in ended.stderr
    assert "own.pem: No such file or directory" in ended.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--listen", "ssl:0:privateKey=none.pem"], "--listen (or MESH_LISTEN): {here}/none.pem: No such file"),
        (["--ca", "none.pem"], "none.pem cannot be read: No such file or directory"),
    ],
)
@pytest.mark.parametrize("service", ["meshseed", "meshuser"])
def test_files_that_are_missing(service: str, options: list[str], says: str, tmp_path: Path) -> None:
    """A certificate or an authority that is not there ends the start with one line that names it."""
    ended = twistd(service, "--name", "Bobby", "--port", "0", *options, cwd=tmp_path)
    assert ended.returncode == 1
    assert says.format(here=tmp_path) in (ended.stdout + ended.stderr).strip().splitlines()[-1]
