"""The clients of a run of :mod:`bench.faults`: what they ask, and what the model is told of the answers."""

from typing import Any, Final

from bench.faults_client import NOTHING, Said, Stream, Talk, Told
from bench.faults_model import Message
from bench.faults_scene import Scene

SHORT_TTLS_S: Final = (1.0, 4.0, 15.0)
TTL_S: Final = 7 * 86400.0
"""What /send takes when nothing is said."""
WAITS_S: Final = (0.0, 0.0, 0.5, 5.0, 5.0, 30.0)
MS_S: Final = 0.001
"""What nodes stamp with knows no less."""


class Asking:
    """Each method is something that a client does. `expires`: some messages have little time; `talks`: the connections
    that may still be open."""

    def __init__(self, scene: Scene) -> None:
        self._rng, self._world, self._model, self._tell = scene.rng, scene.world, scene.model, scene.tell
        self._users, self._clock_set = scene.users, scene.clock_set
        self.expires = False
        self.talks: list[Talk | Stream] = []
        self._numbers = 0
        self._begun_at: dict[str, float] = {}

    def send(self) -> None:
        """One message, or several without waiting, over a connection of their own or one that is there."""
        sender = self._rng.choice(self._users)
        talk = self._talk(sender)
        for _ in range(self._rng.choice((1, 1, 1, 2, 5))):
            others = [user for user in self._users if user != sender]
            listed = self._rng.random() < 0.15
            many = self._rng.randint(1, len(self._users))
            names = self._rng.sample(self._users, many) if listed else [self._rng.choice(others)]
            self._ask(talk, self._new_message(sender, names), listed=listed)

    def stream(self) -> None:
        """Some lines of a stream, and perhaps its end."""
        streams = [talk for talk in self.talks if isinstance(talk, Stream) and not talk.over and not talk.ended]
        stream = self._rng.choice(streams) if streams and self._rng.random() < 0.6 else None
        if stream is None:
            sender = self._rng.choice(self._users)
            self._own_address(sender)
            stream = Stream(self._world, sender)
            self.talks.append(stream)
            self._tell(f"a stream begins at {sender}")
        for _ in range(self._rng.choice((1, 2, 6))):
            message = self._some_message() if self._rng.random() < 0.1 else None
            if message is None or message.sender != stream.user:
                (message,) = self._new_message(stream.user, [self._rng.choice(self._users)])
            body, told = self._order(stream, [message], message.to)
            stream.say(body, told, self._rng.choice((0, 0, 0, 12)))
        if self._rng.random() < 0.4:
            self._tell(f"the stream at {stream.user} ends")
            stream.finish()

    def again(self) -> None:
        """The same once more: the client has no answer, or has forgotten it."""
        message = self._some_message()
        if message is not None:
            self._tell("again:")
            self._ask(self._talk(message.sender), [message], listed=False)

    def reuse(self) -> None:
        """An id that was used before, with another text."""
        message = self._some_message()
        if message is not None:
            self._numbers += 1
            text = f"{self._numbers} instead"
            self._tell("the same id for another text:")
            other = self._model.send(message.sender, message.to, message.id, text, TTL_S)
            self._ask(self._talk(message.sender), [other], listed=False)

    def peek(self) -> None:
        """How far has it come?"""
        message = self._some_message()
        if message is None:
            return
        begun = self._model.moment()

        def told(said: Said) -> None:
            if said.code == 404:
                self._model.unknown(message, begun)
            if said.code != 200:
                self._tell(f"GET /outbox/{message.id} of {message.sender}: {said.code or 'nothing'}")
                return
            for shown in said.json.get("results", [said.json]):
                if shown["to"] == message.to:
                    self._tell(f"{message} is shown as {shown['status']}")
                    self._check_expiry(message, shown["status"])
                    self._model.shown(message, begun, shown["status"])

        self._talk(message.sender).ask("GET", f"/outbox/{message.id}", told)

    def cancel(self) -> None:
        message = self._some_message()
        if message is None:
            return
        begun = self._model.moment()

        def told(said: Said) -> None:
            self._tell(f"the cancelling of {message} is answered {said.code} {_told(said)}")
            if said.code == 404:
                self._model.unknown(message, begun)
            elif said.code in (200, 202, 409):
                status = str(said.json.get("status")) if said.code != 409 else _end_in(said.json)
                self._check_expiry(message, status)
                self._model.shown(message, begun, status)

        self._tell(f"{message} is to be cancelled")
        self._talk(message.sender).ask("DELETE", f"/outbox/{message.id}?to={message.to}", told)

    def retry(self) -> None:
        user = self._rng.choice(self._users)
        name = self._rng.choice(["", *(f"?to={other}" for other in self._users)])
        self._tell(f"{user} is to try again {name}")

        def told(said: Said) -> None:
            assert said.code in (0, 200, 404 if name else 200), f"POST /outbox/retry{name} of {user}: {said}"

        self._talk(user).ask("POST", f"/outbox/retry{name}", told)

    def hang_up(self) -> None:
        talks = [talk for talk in self.talks if not talk.over]
        if talks:
            talk = self._rng.choice(talks)
            self._tell(f"a client of {talk.user} hangs up")
            if isinstance(talk, Talk) and self._rng.random() < 0.3:
                talk.ask_half("/send", {"to": self._rng.choice(self._users), "message": "never whole", "id": "half"})
            talk.hang_up(abort=self._rng.random() < 0.5)

    # -- inside --------------------------------------------------------------------------------------------------

    def _new_message(self, sender: str, names: list[str]) -> list[Message]:
        """One for each name, with the same id and text."""
        self._numbers += 1
        id_ = f"m{self._numbers}"
        text = f"{self._numbers} {'x' * self._rng.choice((0, 0, 0, 0, 0, 20_000))}"
        short = self.expires and self._rng.random() < 0.3
        ttl_s = self._rng.choice(SHORT_TTLS_S) if short else TTL_S
        self._begun_at[id_] = self._world.clock.seconds()
        return [self._model.send(sender, name, id_, text, ttl_s) for name in names]

    def _ask(self, talk: Talk, messages: list[Message], *, listed: bool) -> None:
        body, told = self._order(talk, messages, [message.to for message in messages] if listed else messages[0].to)
        talk.ask("POST", "/send", told, body)

    def _order(self, client: Talk | Stream, messages: list[Message], to: str | list[str]) -> tuple[Any, Told]:
        """The body, and what to do with the answer; who gets none within some time hangs up."""
        first = messages[0]
        wait_s = self._rng.choice(WAITS_S)
        body = {"to": to, "message": first.text, "id": first.id, "wait": wait_s}
        if first.ttl_s != TTL_S:
            body["ttl"] = first.ttl_s
        begun = self._model.moment()
        trouble = self._world.troubles[first.sender]
        doubted = trouble.doubted
        self._tell(f"{first.id} from {first.sender} to {to}, {first.text[:12]!r}, ttl {first.ttl_s:g} wait {wait_s:g}")

        def told(said: Said) -> None:
            if patience.active():
                patience.cancel()
            self._tell(f"{first.id} of {first.sender} is answered {said.code} {_told(said)}")
            doubt = trouble.doubted > doubted
            for message in messages:
                if said is NOTHING:
                    self._model.no_answer(message)
                elif said.code == 207 or isinstance(client, Stream):
                    results = said.json["results"] if said.code == 207 else [said.json]
                    result = next(result for result in results if result["to"] == message.to)
                    self._answered(message, begun, _code(result), result, doubt)
                else:
                    self._answered(message, begun, said.code, said.json, doubt)

        patience_s = wait_s + self._rng.choice((0.5, 5.0, 40.0, 100.0))
        patience = self._world.laptop.callLater(patience_s, lambda: client.hang_up(abort=True))
        return body, told

    def _answered(self, message: Message, begun: int, code: int, body: dict[str, Any], doubt: bool) -> None:
        self._check_expiry(message, _end_in(body))
        self._model.answered(message, begun, code, body, doubt=doubt)

    def _check_expiry(self, message: Message, status: str) -> None:
        lived_s = self._world.clock.seconds() - self._begun_at[message.id]
        # The id may have been used for another text, too: what is told is of the one that was accepted.
        same = (other for other in self._model.messages if (other.sender, other.id) == (message.sender, message.id))
        ttl_s = min(other.ttl_s for other in same)
        if status == "expired" and lived_s < ttl_s - MS_S and message.sender not in self._clock_set:
            self._model.expired_early(message)

    def _own_address(self, user: str) -> None:
        """A client knows its own node: it does not talk to another that has got the address meanwhile."""
        others = [other for other in self._world.users if other != user]
        if any(self._world.hosts[other].ip == self._world.hosts[user].ip for other in others):
            self._world.hosts[user].ip = "10.2.0.0"  # where nobody is

    def ask_now(self, user: str, path: str) -> Said:
        """When all is well: an answer is waited for."""
        heard: list[Said] = []
        talk = Talk(self._world, user)
        talk.ask("GET", path, heard.append)
        self._world.run_until(lambda: bool(heard))
        talk.hang_up(abort=False)
        assert heard[0].code == 200, f"GET {path} of {user}: {heard[0]}"
        return heard[0]

    def _talk(self, user: str) -> Talk:
        self.talks = [talk for talk in self.talks if not talk.over]
        open_ = [talk for talk in self.talks if talk.user == user and isinstance(talk, Talk)]
        if open_ and self._rng.random() < 0.5:
            return self._rng.choice(open_)
        self._own_address(user)
        talk = Talk(self._world, user)
        self.talks.append(talk)
        return talk

    def _some_message(self) -> Message | None:
        """One of the latest, rather one that has no answer."""
        late = self._model.messages[-12:]
        unanswered = [message for message in late if not message.kept]
        chosen = unanswered if unanswered and self._rng.random() < 0.5 else late
        return self._rng.choice(chosen) if chosen else None


def _end_in(body: dict[str, Any]) -> str:
    """The end that a problem document tells of, if it does."""
    before, _, status = str(body.get("title", "")).partition("message ")
    return "" if before else status


def _code(result: dict[str, Any]) -> int:
    """What one of several would have been answered alone."""
    status = result["status"]
    if status == "failed":
        return int(result["code"])
    if status in ("expired", "refused", "cancelled"):
        result["title"] = f"message {status}"
        return 409
    return 200 if status == "delivered" else 202


def _told(said: Said) -> str:
    if said.json is None:
        return ""
    if said.code == 207:
        return str([(result["to"], result["status"], result.get("code")) for result in said.json["results"]])
    return (
        str(said.json.get("status", "")) if said.code < 300 else f"{said.json.get('title')}: {said.json.get('detail')}"
    )
