"""The apply that is due: what for, when, and how long it is put off as it fails."""

from __future__ import annotations

from typing import Final

#: What fails is tried again after 1, 2, 4 and so on up to so many seconds.
LONGEST_RETRY: Final = 60.0


class Backoff:
    """How long to wait after the next failure, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __bool__(self) -> bool:
        """Whether the last try failed."""
        return bool(self.seconds)

    def longer(self) -> float:
        """Reckon with a failure; return how long to wait now."""
        self.seconds = min(2 * self.seconds or 1.0, LONGEST_RETRY)
        return self.seconds

    def forget(self) -> None:
        """Reckon with a success."""
        self.seconds = 0.0


class Pending:
    """What an apply is due for; ``at`` is when, None if it is not. Times are in seconds."""

    def __init__(self) -> None:
        self.at: float | None = None
        self.why: dict[str, None] = {}
        self._backoff = Backoff()

    def is_due(self, now: float) -> bool:
        """Whether it is time."""
        return self.at is not None and self.at <= now

    def due(self, why: str, at: float) -> None:
        """Apply for this, too, at that time or sooner; while it is retried not sooner than that."""
        self.why[why] = None
        if self.at is None or (at < self.at and not self._backoff):
            self.at = at

    def hurry(self, why: str, at: float) -> None:
        """Apply for this at that time, whatever failed before."""
        self.why[why] = None
        self.at = at
        self._backoff.forget()

    def drop(self, why: str) -> None:
        """Apply for this no more."""
        self.why.pop(why, None)
        if not self.why:
            self.at = None

    def back_out(self, why: str, now: float) -> None:
        """Apply for this no more, as it failed; what else is due is so now."""
        self.drop(why)
        if self.at is not None:
            self.at = now

    def done(self) -> list[str]:
        """Reckon with an apply; return what it was for."""
        why = list(self.why)
        self.why, self.at = {}, None
        self._backoff.forget()
        return why

    def failed(self, now: float, most: float = LONGEST_RETRY) -> float:
        """Put it off, by ``most`` seconds at most; return by how many."""
        pause = min(self._backoff.longer(), most)
        self.at = now + pause
        return pause
