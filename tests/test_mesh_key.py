"""Seeds with a mesh key: who gossips with whom in the fake world, and what the option takes in a real process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import implementer

from meshproto.cli.processes import Children, until
from meshproto.core.meshkey import Keyring
from meshproto.core.seed import Settings
from tests.test_plugin import ask_seed, twistd
from tests.world import World

OLD, NEW = "the key we had until now", "the key we shall have then"
NO_KEY = Settings()


def keyed(*keys: str) -> Settings:
    return Settings(mesh_keys=Keyring(*keys))


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the nodes log."""
    lines: list[str] = []

    @implementer(ILogObserver)
    def note(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    globalLogPublisher.addObserver(note)
    yield lines
    globalLogPublisher.removeObserver(note)


def two_seeds(settings_x: Settings, settings_y: Settings) -> World:
    """seedX, and seedY, which dials it; UserX at the one and Bobby at the other."""
    world = World(seed=1)
    world.add_seed("seedX", settings=settings_x)
    world.add_seed("seedY", peers=["seedX"], settings=settings_y)
    world.add_user("UserX", seeds=["seedX"])
    world.add_user("Bobby", seeds=["seedY"])
    world.run_until(world.registered)
    world.run(20)
    return world


def know(world: World) -> set[str]:
    """Which seeds know which seeds and users of others."""
    return {
        f"{seed} knows {name}"
        for seed, core in world.cores.items()
        for name in [*core.peering.addresses, *(user for user in world.users if world.lookup(seed, user))]
        if name not in (seed, {"seedX": "UserX", "seedY": "Bobby"}[seed])
    }


def live(world: World, seed: str) -> int:
    """How many others the seed finds alive."""
    return sum(view.alive for view in world.cores[seed].picture(world.clock.seconds())) - 1


def change(world: World, seed: str, settings: Settings) -> None:
    """The operator restarts the seed with another keyring."""
    world.stop(seed)
    world.restart(seed, settings)


def test_seeds_with_one_key_gossip(said: list[str]) -> None:
    """They learn of each other and of each other's users, and no log has the key."""
    world = two_seeds(keyed(OLD), keyed(OLD))
    assert know(world) == {"seedX knows seedY", "seedX knows Bobby", "seedY knows seedX", "seedY knows UserX"}
    assert world.send("Bobby", "UserX", "Hello").code == 200
    assert not [line for line in said if OLD in line]


@pytest.mark.parametrize(
    ("listener", "dialler", "reason"),
    [
        (keyed(OLD), NO_KEY, "asks for a mesh key"),
        (keyed(OLD), keyed(NEW), "does not prove the mesh key"),
        (NO_KEY, keyed(NEW), "does not prove the mesh key"),
        (keyed(OLD, NEW), keyed(NEW), "does not prove the mesh key"),
        (keyed(OLD), keyed(NEW, OLD), "this is no proof of the mesh key"),
    ],
    ids=["no key", "wrong key", "no key there", "second key there", "second key"],
)
def test_seeds_without_a_key_in_common(said: list[str], listener: Settings, dialler: Settings, reason: str) -> None:
    """Neither learns anything from the other, whoever dials; the one that dials says why, once, without the keys."""
    world = two_seeds(listener, dialler)
    assert know(world) == set()
    assert all(core.gossip.digest().keys() == {seed} for seed, core in world.cores.items())
    told = [line for line in said if "does not answer" in line]
    assert len(told) == 1 and reason in told[0], told
    assert not [line for line in said if OLD in line or NEW in line]


@pytest.mark.parametrize("settings", [NO_KEY, keyed(NEW)], ids=["no key", "wrong key"])
def test_a_seed_that_has_lost_the_key(said: list[str], settings: Settings) -> None:
    """A seed that was known and comes back without the key is dead to the others. They try it about every five
    seconds, as any dead seed, and it is found again when it has the key."""
    world = two_seeds(keyed(OLD), keyed(OLD))
    change(world, "seedY", settings)
    world.run(30)
    assert (live(world, "seedX"), live(world, "seedY")) == (0, 0)
    before = world.connections
    world.run(60)
    assert 10 <= world.connections - before <= 50
    assert len([line for line in said if "mesh key" in line]) <= 4
    change(world, "seedY", keyed(OLD))
    world.run_until(lambda: live(world, "seedX") == live(world, "seedY") == 1, 20)


def test_a_key_is_changed_without_a_break() -> None:
    """Every seed is restarted with old and new, then with new and old, then with new alone: after each restart all
    seeds find each other alive, and a message arrives."""
    world = two_seeds(keyed(OLD), keyed(OLD))
    world.add_seed("seedZ", peers=["seedX", "seedY"], settings=keyed(OLD))
    seeds = list(world.seeds)
    for ring in (keyed(OLD, NEW), keyed(NEW, OLD), keyed(NEW)):
        for seed in seeds:
            change(world, seed, ring)
            world.run_until(lambda: all(live(world, each) == 2 for each in seeds) and world.registered(), 15)
            assert world.send("Bobby", "UserX", "still here?").code == 200
    assert len(world.inbox("UserX")) == 9


# -- the option ---------------------------------------------------------------------------------------------------


def key_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "mesh.key"
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        (OLD, 0o644, "others can read {path}: chmod 600 {path}"),
        (OLD, 0o640, "others can read {path}: chmod 600 {path}"),
        ("", 0o600, "{path}: there is no mesh key in it: write one with openssl rand -base64 32"),
        ("# ours\n\nshort-secret\n", 0o600, "{path}: line 3: a mesh key has at least 16 characters, not 12"),
        (None, 0o600, "{path} cannot be used: No such file or directory"),
    ],
    ids=["all can read it", "a group can read it", "empty", "short", "missing"],
)
def test_a_key_file_that_cannot_be_used(text: str | None, mode: int, says: str, tmp_path: Path) -> None:
    """The process ends with one clear line that does not tell the key, and exit code 1."""
    path = tmp_path / "mesh.key"
    if text is not None:
        key_file(tmp_path, text, mode)
    state = str(tmp_path / "state")
    ended = twistd("meshseed", "--port", "0", "--state", state, cwd=tmp_path, MESH_KEY_FILE=str(path))
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines() == ["meshseed: " + says.format(path=path)]
    assert "Traceback" not in ended.stdout
    assert not text or text.splitlines()[-1] not in ended.stdout


@pytest.mark.parametrize("node", ["meshuser", "meshseed"])
def test_a_file_of_tokens_that_cannot_be_used(node: str, tmp_path: Path) -> None:
    """The user who was given it, or the seed that has made it, says that it is one of register tokens."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    path = (state if node == "meshseed" else tmp_path) / "register-token"
    path.write_text("short-secret\n")
    path.chmod(0o600)
    option = ("--register", "token") if node == "meshseed" else ("--register-token", str(path))
    ended = twistd(node, "--name", "UserX", "--port", "0", "--state", str(state), *option, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.strip() == f"{node}: {path}: line 1: a register token has at least 16 characters, not 12"


def test_processes_with_a_key(tmp_path: Path) -> None:
    """Two seeds with a key file find each other; one without is told what is missing, and left out."""
    path = str(key_file(tmp_path, f"# ours\n{OLD}\n"))

    def seeds(address: str) -> list[str]:
        answer = ask_seed(address, b'{"jsonrpc":"2.0","id":1,"method":"seeds"}\n')
        return sorted(seed["name"] for seed in answer["result"]["seeds"])

    with Children(tmp_path) as children:
        seed_x = children.start("meshseed", "seedX", "--mesh-key", path)
        seed_y = children.start("meshseed", "seedY", "--mesh-key", path, "--peer", seed_x)
        children.start("meshseed", "seedZ", "--peer", seed_x)
        until(lambda: seeds(seed_x) == seeds(seed_y) == ["seedX", "seedY"] or None, "the two have met")
        until(lambda: "asks for a mesh key" in children.all["seedZ"].log.read_text() or None, "the third says why")
        assert seeds(seed_x) == ["seedX", "seedY"]
        assert not [child.name for child in children.all.values() if OLD in child.log.read_text()]
