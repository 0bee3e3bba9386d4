"""How many packets are still to be shown: one number, which all workers of a run count down."""

from __future__ import annotations

import fcntl
import os


class Countdown:
    """So many packets; made before the workers are forked. It is ``over`` when none is left."""

    def __init__(self, count: int) -> None:
        self.over = count <= 0
        self._file = os.memfd_create("nfctl-count", os.MFD_CLOEXEC)
        os.pwrite(self._file, count.to_bytes(8), 0)

    def take(self, count: int) -> int:
        """Count so many packets; return how many of them are still to be shown."""
        if self.over:
            return 0
        fcntl.lockf(self._file, fcntl.LOCK_EX)  # the process's: between workers
        try:
            left = int.from_bytes(os.pread(self._file, 8, 0))
            taken = min(left, count)
            os.pwrite(self._file, (left - taken).to_bytes(8), 0)
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)
        self.over = left == taken
        return taken

    def close(self) -> None:
        """Forget the number."""
        os.close(self._file)
