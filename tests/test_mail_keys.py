"""Mail keys that change while messages are on their way."""

import pytest

from meshproto.core.identity import MAIL_KEYS_KEPT, verify
from meshproto.net.keys import LOOK_S, ROTATE_S
from meshproto.net.retention import IDS_KEPT_S, Keep
from meshproto.net.retention import LOOK_S as RETENTION_LOOK_S
from meshproto.net.seeds import RENEW_AGAIN_S
from tests.world import World


@pytest.fixture
def world() -> World:
    world = World(41)
    world.add_seed("seedX")
    for name in ("UserX", "Bobby"):
        world.add_user(name, seeds=["seedX"])
    world.run_until(world.registered)
    assert world.send("Bobby", "UserX", "first").code == 200
    return world


def a_day_goes_by(world: World) -> None:
    """For the clocks on the wall; nobody has to count all its seconds."""
    for host in world.hosts.values():
        host.ahead_s += ROTATE_S
    world.run(LOOK_S)


def mail_key(world: World, name: str) -> str:
    """As the seed knows it."""
    found = world.lookup("seedX", name)
    assert found is not None
    return verify(found.signed).mail


def attempts(world: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What becomes of the batches for UserX from now on."""
    receiving = world.users["UserX"].receiving
    codes: list[str] = []
    deliver = receiving.deliver

    async def watched(body: bytes, network: str) -> bytes:
        try:
            receipt = await deliver(body, network)
        except Exception as error:
            codes.append(type(error).__name__)
            raise
        codes.append("taken")
        return receipt

    monkeypatch.setattr(receiving, "deliver", watched)
    return codes


def test_the_seed_has_the_new_key_at_once(world: World) -> None:
    """Every day another one, told over the connection that is there, in a record with a higher sequence."""
    connections = world.connections
    keys, seqs = [mail_key(world, "UserX")], [verify(world.users["UserX"].seeds.own_record()).seq]
    for _ in range(3):
        a_day_goes_by(world)
        keys.append(mail_key(world, "UserX"))
        seqs.append(verify(world.users["UserX"].seeds.own_record()).seq)
    assert len(set(keys)) == 4
    assert seqs == sorted(set(seqs))
    assert world.connections == connections
    assert world.send("Bobby", "UserX", "second").code == 200
    assert world.inbox("UserX") == ["first", "second"]


@pytest.mark.parametrize("rotations", range(1, MAIL_KEYS_KEPT + 2))
def test_late_mail(world: World, rotations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail that was sealed for one of the two keys before opens. Mail for an older one is answered 421; the sender
    looks up again, and it arrives."""
    for _ in range(rotations):
        world.rotate("UserX")  # and Bobby, who has looked UserX up just now, does not know
    codes = attempts(world, monkeypatch)
    assert world.send("Bobby", "UserX", "late").code == 200
    assert world.inbox("UserX") == ["first", "late"]
    assert codes == (["taken"] if rotations < MAIL_KEYS_KEPT else ["Misdirected", "taken"])


@pytest.mark.parametrize(("days", "answers"), [(2, ["taken"]), (3, ["Misdirected", "taken"])])
def test_days_go_by_while_mail_waits(
    world: World, days: int, answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No seed can be asked for days, so the last known record counts: for two days its key still opens. After three
    the sender is told, waits until a seed answers, and delivers."""
    world.cut("Bobby", "seedX")
    for _ in range(days):
        a_day_goes_by(world)
    codes = attempts(world, monkeypatch)
    sent = world.send("Bobby", "UserX", "waited", wait=15)
    if days == 3:
        assert sent.code == 202
        assert "sealed for a mail key that this node does not hold" in sent.json["reason"]
    world.heal()
    world.run_until(lambda: world.inbox("UserX") == ["first", "waited"], 1200)
    assert list(dict.fromkeys(codes)) == answers


def test_a_batch_is_sealed_with_the_key_of_its_record(world: World) -> None:
    """Also between the moment when there is a new key and the one when its record is signed."""
    world.troubles["UserX"].refuses = 1.0
    assert world.send("Bobby", "UserX", "second", wait=1).code == 202
    world.troubles["UserX"].mend()
    world.troubles["Bobby"].slow_s = 1000.0  # to write down the next sequence
    world.rotate("Bobby")
    node = world.users["Bobby"]
    node.sending.wake("UserX")
    world.run_until(lambda: world.inbox("UserX") == ["first", "second"], 30)
    assert node.seeds.own().identity.mail != node.keys.current.mail
    world.run_until(lambda: node.seeds.own().identity.mail == node.keys.current.mail, 1000)


@pytest.mark.parametrize("steps", range(30))
def test_a_key_that_changes_while_the_node_registers(world: World, steps: int) -> None:
    """At whatever step: the seed ends up with the new one."""
    world.stop("seedX")
    world.run(10)
    world.restart("seedX")
    dialled = world.connections
    while world.connections == dialled:
        world.clock.advance(0.01)
        world.step()
    for _ in range(steps):
        world.step()
    world.rotate("UserX")
    world.run_until(world.registered)
    world.run(1)
    found = world.lookup("seedX", "UserX")
    assert found is not None
    assert verify(found.signed).mail_bytes == bytes(world.users["UserX"].keys.current.mail.public_key)


def test_keys_change_while_there_is_no_home(world: World) -> None:
    """Whoever is written to has the new record from the batch, and the seed when there is one again."""
    world.stop("seedX")
    a_day_goes_by(world)
    own = verify(world.users["Bobby"].seeds.own_record())
    assert bytes(world.users["Bobby"].keys.current.mail.public_key) == own.mail_bytes
    assert world.send("Bobby", "UserX", "second", wait=30).code == 200
    world.restart("seedX")
    world.run_until(world.registered, 600)
    assert mail_key(world, "Bobby") == verify(world.users["Bobby"].seeds.own_record()).mail


def test_a_seed_that_does_not_answer_is_told_again(world: World) -> None:
    """A new key that could not be told, since the disk did not take the new sequence, is told when it does."""
    before = mail_key(world, "UserX")
    world.rotate("UserX")
    world.troubles["UserX"].refuses = 1.0
    world.run(RENEW_AGAIN_S / 2)
    assert mail_key(world, "UserX") == before
    world.troubles["UserX"].mend()
    world.run(2 * RENEW_AGAIN_S)
    assert mail_key(world, "UserX") != before


def test_a_batch_sent_again_after_a_month_of_sleep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that keeps no messages sleeps for longer than ids are remembered otherwise, and the key that opens a batch
    from before with it. Who has recorded the batch and sends it again then brings nothing into the inbox; and two keys
    later it is not opened any more."""
    world.add_user("Zed", seeds=["seedX"], keep=Keep(messages=0))
    world.run_until(world.registered)
    recorded: list[bytes] = []
    deliver = world.users["Zed"].receiving.deliver

    async def watched(body: bytes, network: str) -> bytes:
        recorded.append(body)
        return await deliver(body, network)

    monkeypatch.setattr(world.users["Zed"].receiving, "deliver", watched)
    assert world.send("Bobby", "Zed", "once").code == 200
    world.run(RETENTION_LOOK_S)
    assert world.inbox("Zed") == []
    world.stop("Zed")
    for host in world.hosts.values():
        host.ahead_s += IDS_KEPT_S + ROTATE_S
    world.restart("Zed")
    world.run_until(world.registered)
    world.run(RETENTION_LOOK_S)
    assert world.post("Zed", "/deliver", recorded[0]).code == 200  # as for any batch that is there already
    assert world.inbox("Zed") == []
    for _ in range(MAIL_KEYS_KEPT - 1):
        a_day_goes_by(world)
    assert world.post("Zed", "/deliver", recorded[0]).code == 421
    world.run(RETENTION_LOOK_S)
    assert world.on_disk("Zed", "SELECT count(*) FROM seen") == 0
