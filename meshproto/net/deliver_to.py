"""`--deliver-to`: each message is posted to a URL."""

from typing import Final

from twisted.internet.defer import CancelledError, Deferred, TimeoutError, ensureDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from meshproto.core.handover import Answer, Verdict
from meshproto.core.identity import check_uri
from meshproto.core.inbox import Received
from meshproto.errors import BadParams
from meshproto.net.courier import REASON_CHARS_MAX
from meshproto.net.program import STOPPED, WORDS_BYTES_MAX, text_of
from meshproto.net.receiving import shown
from meshproto.net.treq_client import Poster, words_of
from meshproto.wire import encode_value

ANSWER_TIMEOUT_S: Final = 30.0
"""What a program that is posted to may take for one message; a longer job belongs behind its answer."""
ANSWER_BYTES_MAX: Final = 64 * 1024
"""An answer is read up to here, so that its connection can be used again; one that goes on is cut off."""


def check_url(url: str) -> str:
    """Raises :class:`BadParams` unless messages may be posted to the URL."""
    path, _, query = url.partition("?")
    check_uri(path)
    if any(not "!" <= letter <= "~" or letter == "#" for letter in query):
        raise BadParams(f"bad uri {url[:100]!r}: printable ASCII without spaces and without a fragment")
    return url


class _Words(TwistedProtocol):
    """Reads an answer's body as far as it is of use. `done` fires with its beginning, whatever becomes of the rest: how
    the message was taken stands in the answer's head."""

    def __init__(self) -> None:
        self._start = b""
        self._bytes = 0
        self.done: Deferred[str] = Deferred(lambda _: self._enough())

    def dataReceived(self, data: bytes) -> None:
        self._start = (self._start + data)[:WORDS_BYTES_MAX]
        self._bytes += len(data)
        if self._bytes > ANSWER_BYTES_MAX:
            self._enough()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._tell()

    def _enough(self) -> None:
        self._tell()
        if self.transport is not None:
            self.transport.loseConnection()

    def _tell(self) -> None:
        if not self.done.called:
            self.done.callback(text_of(self._start)[:REASON_CHARS_MAX])


class DeliverTo:
    """Posts each message, as `GET /inbox` shows it. 2xx: taken; 410 (Gone): never; anything else: later."""

    kind = "deliver-to"

    def __init__(self, url: str, client: Poster, clock: IReactorTime) -> None:
        self.target = url
        self._client = client
        self._clock = clock
        self._work: Deferred[Answer] = succeed(Answer(Verdict.LATER, ""))

    def give(self, message: Received) -> "Deferred[Answer]":
        self._work = ensureDeferred(self._post(message))
        return self._work

    def cut(self) -> None:
        self._work.cancel()

    async def _post(self, message: Received) -> Answer:
        deadline = self._clock.seconds() + ANSWER_TIMEOUT_S
        try:
            posted = self._client.post(
                self.target,
                data=encode_value(shown(message)),
                headers={"Content-Type": "application/json", "Idempotency-Key": str(message.cursor)},
                allow_redirects=False,
                unbuffered=True,
                reactor=self._clock,
            )
            response = await posted.addTimeout(ANSWER_TIMEOUT_S, self._clock)
        except TimeoutError:
            return Answer(Verdict.LATER, f"no answer within {ANSWER_TIMEOUT_S:g} s")
        except CancelledError:
            return Answer(Verdict.LATER, STOPPED)
        except Exception as reason:
            # Connecting and HTTP fail in as many ways as they have layers; each is a reason to try again.
            return Answer(Verdict.LATER, words_of(reason))
        words = _Words()
        response.deliverBody(words)
        text = await words.done.addTimeout(max(0.0, deadline - self._clock.seconds()), self._clock)
        return Answer(_verdict_of_status(response.code), f"answered {response.code}", text)


def _verdict_of_status(code: int) -> Verdict:
    if 200 <= code < 300:
        return Verdict.TAKEN
    return Verdict.NEVER if code == 410 else Verdict.LATER
