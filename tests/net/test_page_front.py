"""The page's files, as a node serves them."""

import json
from collections.abc import Iterator

import pytest

from meshproto.core.limits import Rate
from meshproto.net import http_limits
from meshproto.net.door import Door
from meshproto.net.face import Face, site
from meshproto.net.http import LOOPBACK_HOSTS
from meshproto.net.web_files import HEADERS, WebFiles
from tests.net.raw_http import RawHTTP
from tests.world import USER_PORT, World


@pytest.fixture
def world() -> Iterator[World]:
    world = World(seed=2)
    world.add_seed("seedX")
    world.add_user("UserX", seeds=["seedX"])
    world.run(1)
    yield world
    world.close()


def ask(world: World, path: str, method: str = "GET", **fields: str) -> tuple[int, dict[str, str], bytes]:
    client = RawHTTP(world, "UserX")
    lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": "127.0.0.1", **fields}.items())
    client.say(f"{method} {path} HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
    return client.answers[0]


class TestPage:
    def test_it_is_there(self, world: World) -> None:
        """Each file, with its type, and with what keeps a browser from doing more with it than it must."""
        code, fields, body = ask(world, "/")
        assert (code, fields["content-type"], body[:15]) == (200, "text/html; charset=utf-8", b"<!doctype html>")
        for name in WebFiles("user").names:
            code, fields, _ = ask(world, f"/page/{name}")
            assert (code, fields.keys() >= {field.decode() for field in HEADERS}) == (200, True)
        assert "script-src 'self'" in fields["content-security-policy"]
        assert "unsafe" not in fields["content-security-policy"]

    def test_without_the_token(self, world: World) -> None:
        """It is what asks for it; and its files are nobody's secret."""
        world.users["UserX"].face.door = Door("secret", LOOPBACK_HOSTS)
        assert ask(world, "/")[0] == 200
        assert ask(world, "/status")[0] == 401

    def test_where_the_owners_part_is_not(self, world: World) -> None:
        """A listener for peers has no page."""
        world.users["UserX"].face.door = None
        assert [ask(world, path)[0] for path in ("/", "/page/index.html")] == [404, 404]

    def test_where_the_owners_part_is_alone(self, world: World) -> None:
        host = world.hosts["UserX"]
        host.tcpServers.clear()
        host.listenTCP(USER_PORT, site(Face(None, world.users["UserX"].front, Door("secret", LOOPBACK_HOSTS)), host))
        assert ask(world, "/")[0] == 200

    @pytest.mark.parametrize("path", ["/page/", "/page/none.js", "/page/..%2f..%2fsetup.py", "/page/%2e%2e/seed/a.js"])
    def test_no_other_files(self, world: World, path: str) -> None:
        code, fields, body = ask(world, path)
        assert (code, fields["content-type"], json.loads(body)["status"]) == (404, "application/problem+json", 404)

    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    def test_it_is_only_read(self, world: World, method: str) -> None:
        assert ask(world, "/", method)[0] == 405

    def test_it_is_counted(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """As all is that anybody may ask for."""
        monkeypatch.setattr(http_limits, "REQUESTS", Rate(per_s=0.01, burst=2.0))
        world.stop("UserX")
        world.restart("UserX")
        world.run(1)
        assert [ask(world, "/")[0] for _ in range(3)] == [200, 200, 429]
