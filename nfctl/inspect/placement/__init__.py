"""The rules that queue packets: put into table mangle, kept at its end, and taken out again.

Facts they rest on. A packet that a queue accepts goes on behind the table that queued it; so does
one that finds no listener (``--queue-bypass``) or a full queue (fail-open). So the jump to the
queue is the last rule of its chain, every other rule of mangle is met before it, and table filter
behind it: inspection never lets in what the firewall keeps out. A chain whose policy is DROP
cannot take it, since what reaches its end would be dropped, and the queue would accept it.

Everything is found again by its names and comments, so a run that was killed leaves nothing that
the next one, or :func:`remove`, would not take out; until then, packets pass (``--queue-bypass``).
The edits of one family are one transaction.
"""

from __future__ import annotations

from nfctl.inspect.marks import DEFAULT_MASK, Marks
from nfctl.inspect.placement.placed import Placed
from nfctl.inspect.placement.placing import check_free, place
from nfctl.inspect.placement.plan import Plan, check
from nfctl.inspect.placement.standing import Found, found, remove
from nfctl.inspect.placement.tables import Removed

__all__ = [
    "DEFAULT_MASK", "Found", "Marks", "Placed", "Plan", "Removed",
    "check", "check_free", "found", "place", "remove",
]  # fmt: skip
