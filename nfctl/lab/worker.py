"""A process that stays inside a host and runs one function after the other.

``Host.run`` forks for every call, so each call finds a clean process. A worker is for many
short calls that load much first: libraries that are loaded and caches that are filled stay.
"""

from __future__ import annotations

import signal
from multiprocessing.connection import Pipe
from typing import TYPE_CHECKING, Any, TypeVar, cast

from nfctl.lab import fork

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

T = TypeVar("T")


class Worker:
    """Made by :meth:`nfctl.lab.Host.worker`, ends with the lab."""

    def __init__(self, enter: Callable[[], None]) -> None:
        # When this end closes, also by SIGKILL, the worker ends.
        self._pipe, theirs = Pipe()
        self._child = fork.Child(_work, enter, theirs, self._pipe)
        theirs.close()

    def run(self, function: Callable[..., T], *args: Any, timeout: float = 30.0) -> T:
        """Run ``function(*args)``, which all have to pickle, as :meth:`nfctl.lab.Host.run` does.

        After a TimeoutError (``timeout`` is in seconds) the worker is gone.
        """
        try:
            self._pipe.send((function, args))
            if not self._pipe.poll(timeout):
                raise TimeoutError("the worker gave no answer in time")
            good, value = self._pipe.recv()
        except (EOFError, BrokenPipeError):
            self._child.result(timeout)  # raises what ended it
            raise ChildProcessError("the worker has ended") from None
        except BaseException:
            self.close()  # or the next call would get this one's answer
            raise
        if not good:
            raise value
        return cast("T", value)

    def close(self) -> None:
        """End the worker."""
        self._pipe.close()
        self._child.kill()


def _work(
    enter: Callable[[], None],
    pipe: Connection,
    theirs: Connection,
) -> None:
    theirs.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the lab to answer
    enter()
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*args))
        except Exception as error:  # noqa: BLE001 - the lab's process raises it again
            answer = (False, fork.portable(error))
        pipe.send(answer)
