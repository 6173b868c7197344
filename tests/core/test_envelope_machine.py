"""Sealed batches between users who change their mail keys, and who get each other's mail, also changed, also twice."""

import random
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, rule
from msgspec import Raw, structs
from nacl.public import PrivateKey

from meshproto.core.envelope import Letter, Opened, Pending, Sealed, open_batch, open_receipt, seal, seal_receipt
from meshproto.core.identity import MAIL_KEYS_KEPT, RECORD_DOMAIN, Identity, Record, b64, unb64, verify
from meshproto.errors import BadSignature, Forbidden, MeshError, Misdirected, PeerError
from meshproto.wire import SignedRecord, decode_value, encode_value

NAMES = ["Anna", "Bert", "Cleo"]
names = st.sampled_from(NAMES)


class Sent(NamedTuple):
    sender: str
    recipient: str
    generation: int  # of the recipient's mail key
    texts: list[str]
    pending: Pending


class Answered(NamedTuple):
    sent: Sent
    by: str
    body: bytes


class EnvelopeMachine(RuleBasedStateMachine):
    """Who opens what, and which receipt stands for which batch, against a model that knows."""

    sent: Bundle[Sent] = Bundle("sent")
    answered: Bundle[Answered] = Bundle("answered")

    def __init__(self) -> None:
        super().__init__()
        self.entropy = random.Random(1).randbytes
        self.now_ms = 1
        self.users = {name: Identity.create(self.entropy, 1) for name in NAMES}
        self.generation = dict.fromkeys(NAMES, 0)
        self.records: dict[str, list[SignedRecord]] = {name: [self._signed(name)] for name in NAMES}

    def _signed(self, name: str) -> SignedRecord:
        return self.users[name].sign(name, ["http://192.0.2.7:3000"], self.now_ms)

    def _record(self, name: str, generation: int) -> Record:
        return verify(self.records[name][generation])

    @rule(name=names)
    def change_the_mail_key(self, name: str) -> None:
        old = self.users[name]
        self.now_ms += 1
        mail = (PrivateKey(self.entropy(32)), *old.mail_keys)[:MAIL_KEYS_KEPT]
        self.users[name] = Identity(old.signing, mail, (self.now_ms, *old.made_at_ms)[:MAIL_KEYS_KEPT])
        self.generation[name] += 1
        self.records[name].append(self._signed(name))

    @rule(target=sent, sender=names, recipient=names, age=st.integers(0, 5), texts=st.lists(st.text(), min_size=1))
    def write(self, sender: str, recipient: str, age: int, texts: list[str]) -> Sent:
        """To a key that the recipient had so many changes ago."""
        generation = max(0, self.generation[recipient] - age)
        letters = [Letter(f"{number}", Raw(encode_value(text)), 1) for number, text in enumerate(texts)]
        own = self.records[sender][-1]
        pending = seal(letters, self.users[sender], own, self._record(recipient, generation), self.entropy)
        return Sent(sender, recipient, generation, texts, pending)

    def _open(self, sent: Sent, at: str) -> Opened:
        return open_batch(sent.pending.body, self.users[at])

    @rule(target=answered, sent=sent)
    def arrive(self, sent: Sent) -> Answered:
        """Any number of times: opened by the key in use and the two before, told to look up again by others."""
        name = sent.recipient
        if self.generation[name] - sent.generation >= MAIL_KEYS_KEPT:
            with pytest.raises(Misdirected):
                self._open(sent, name)
            return Answered(sent, name, b"{}")
        opened = self._open(sent, name)
        assert opened.sender.name == sent.sender
        assert [decode_value(letter.message, str) for letter in opened.batch.letters] == sent.texts
        ids = [letter.id for letter in opened.batch.letters]
        return Answered(sent, name, seal_receipt(opened, ids, {}, self.entropy))

    @rule(sent=sent, at=names)
    def go_astray(self, sent: Sent, at: str) -> None:
        if at != sent.recipient:
            with pytest.raises(Misdirected):
                self._open(sent, at)

    @rule(sent=sent, by=names)
    def be_passed_off(self, sent: Sent, by: str) -> None:
        """With another's record beside it, as if they had written it."""
        sealed = decode_value(sent.pending.body, Sealed)
        body = encode_value(structs.replace(sealed, sender=self.records[by][-1]))
        if by != sent.sender:
            with pytest.raises((Forbidden, Misdirected)):
                open_batch(body, self.users[sent.recipient])

    @rule(sent=sent, by=names, at=names, to=st.booleans())
    def be_passed_off_with_a_borrowed_mail_key(self, sent: Sent, by: str, at: str, to: bool) -> None:
        """Anybody may put anybody's mail key into their record: it opens the box and makes nobody the writer."""
        sealed = decode_value(sent.pending.body, Sealed)
        borrowed = verify(sealed.sender).mail if not to else sealed.to
        record = structs.replace(verify(self.records[by][-1]), mail=borrowed)
        text = encode_value(record)
        sig = b64(self.users[by].signing.sign(RECORD_DOMAIN + text).signature)
        mail = sealed.to if not to else verify(sealed.sender).mail
        body = encode_value(structs.replace(sealed, sender=SignedRecord(text.decode(), sig), to=mail))
        if (by, at) != (sent.sender, sent.recipient):
            with pytest.raises((Forbidden, Misdirected)):
                open_batch(body, self.users[at])

    @rule(sent=sent, at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def be_changed(self, sent: Sent, at: int, bit: int) -> None:
        """One bit of the box."""
        sealed = decode_value(sent.pending.body, Sealed)
        box = bytearray(unb64(sealed.box))
        box[at % len(box)] ^= 1 << bit
        with pytest.raises((Forbidden, Misdirected)):
            open_batch(encode_value(structs.replace(sealed, box=b64(bytes(box)))), self.users[sent.recipient])

    @rule(sent=sent, at=st.integers(0, 10**6))
    def have_its_record_changed(self, sent: Sent, at: int) -> None:
        sealed = decode_value(sent.pending.body, Sealed)
        text = sealed.sender.record
        at %= len(text)
        other = SignedRecord(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :], sealed.sender.sig)
        with pytest.raises(MeshError) as refused:
            open_batch(encode_value(structs.replace(sealed, sender=other)), self.users[sent.recipient])
        assert isinstance(refused.value, BadSignature) or refused.value.code == 400

    @rule(answered=answered, other=sent)
    def be_acknowledged(self, answered: Answered, other: Sent) -> None:
        """A receipt stands for the batch it answers, and for no other."""
        sent = answered.sent
        if answered.body != b"{}":
            receipt = open_receipt(answered.body, sent.pending)
            assert receipt.ids == [f"{number}" for number in range(len(sent.texts))]
        if other is not sent:
            with pytest.raises(PeerError):
                open_receipt(answered.body, other.pending)


TestEnvelopeMachine = EnvelopeMachine.TestCase
TestEnvelopeMachine.settings = settings(deadline=None, stateful_step_count=30)
