"""The keys of this node, of which the mail key is a new one every day.

Whoever gets hold of the keys can read what was sealed for the mail keys among them, and no older mail. The two keys
before the latest still open what was late on its way. A new key is on disk before anybody hears of it: mail that is
sealed for it can be opened after whatever happens.
"""

from collections.abc import Callable
from typing import Final

from twisted.application.service import Service
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from meshproto.core.identity import Entropy, Identity
from meshproto.errors import BadState
from meshproto.net.clocks import Alarm, NowMs

ROTATE_S: Final = 86400.0
"""With the two keys before it that are kept, mail may be late by two days; and a record is signed and told once a
day."""
LOOK_S: Final = 600.0
"""How often it is looked whether the key is due: the wall clock goes on while a machine sleeps and may be set, and a
disk that was full may have room again."""


class Keys(Service):
    """`save` writes the keys to disk or raises :class:`BadState`. `rotated` is called when there is a new mail key."""

    log = Logger()

    def __init__(
        self,
        identity: Identity,
        save: Callable[[Identity], None],
        clock: IReactorTime,
        now_ms: NowMs,
        entropy: Entropy,
        rotated: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._save = save
        self._clock = clock
        self._now_ms = now_ms
        self._entropy = entropy
        self._rotated = rotated
        self._since = clock.seconds()
        self._problem: str | None = None
        self._next_look = Alarm(clock, self._look)

    @property
    def current(self) -> Identity:
        return self._identity

    def startService(self) -> None:
        super().startService()
        self._look()

    def stopService(self) -> None:
        super().stopService()
        self._next_look.stop()

    def rotate_if_due(self, now_ms: int) -> bool:
        """Whether there is a new mail key now. A key that was made later than it is now, since the clock was wrong
        then or is now, is a day old when it has been used so long."""
        age_s = (now_ms - self._identity.made_at_ms[0]) / 1000
        if age_s < 0:
            age_s = self._clock.seconds() - self._since
        return age_s >= ROTATE_S and self.rotate(now_ms)

    def rotate(self, now_ms: int) -> bool:
        """A new mail key, unless the disk does not take it."""
        identity = self._identity.rotated(self._entropy, now_ms)
        try:
            self._save(identity)
        except BadState as error:
            if self._problem != error.detail:
                self.log.error("the mail key stays as it is: {reason}", reason=error.detail)
            self._problem = error.detail
            return False
        self._problem = None
        self._identity = identity
        self._since = self._clock.seconds()
        self.log.info("there is a new mail key")
        self._rotated()
        return True

    def _look(self) -> None:
        self.rotate_if_due(self._now_ms())
        self._next_look.at(self._clock.seconds() + LOOK_S)
