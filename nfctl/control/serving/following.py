"""The file that a watch follows: when it is looked at, and when it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.control.serving.pending import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable

    from nfctl.control.serving.keeping import Read


class Following:
    """A file that is looked at every ``look`` seconds, and read when two looks agree.

    ``first`` is what it was when it was read first, ``read`` reads it anew, ``stamp`` returns
    something that differs when the file does. Times are in seconds, of a clock that does not jump.
    """

    def __init__(
        self, first: Read, look: float, read: Callable[[], Read], stamp: Callable[[], object]
    ) -> None:
        self._look, self._read, self._stamp = look, read, stamp
        self._seen = first.stamp
        self._changed = False  # at the last look
        self._look_at = 0.0
        self._again_at: float | None = None
        self._backoff = Backoff()

    def next_at(self) -> float:
        """Return when there is something to do."""
        return self._look_at if self._again_at is None else min(self._look_at, self._again_at)

    def look_later(self, now: float) -> None:
        """Take it for looked at."""
        self._look_at = now + self._look

    def look(self, now: float) -> bool:
        """Look at it, if it is time; return whether it is to be read."""
        if self._look_at > now:
            return False
        self.look_later(now)
        stamp = self._stamp()
        if stamp == self._seen:
            return self._changed
        self._seen, self._changed = stamp, True  # whoever writes it may not be done
        return False

    def read(self) -> Read:
        """Read it; what it raises has been said of this state of the file."""
        self._changed, self._again_at = False, None
        self._seen = self._stamp()
        return self._read()

    def is_again(self, now: float) -> bool:
        """Whether what failed is to be tried again."""
        return self._again_at is not None and self._again_at <= now

    def again(self, now: float) -> float:
        """Have it read again after a while, as it could not be applied; return the seconds."""
        pause = self._backoff.longer()
        self._again_at = now + pause
        return pause

    def settled(self) -> None:
        """Forget what failed: it was applied, or is another file now."""
        self._backoff.forget()
