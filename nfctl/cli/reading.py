"""What ``nfctl plan`` and ``nfctl apply`` are given: a policy, save files, or a saved plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.errors import BadInput

if TYPE_CHECKING:
    from nfctl.control.savedplan import SavedPlan
    from nfctl.policy.wanted import Wanted


def wanted_of(
    file: str | None, ipv4: str | None, ipv6: str | None
) -> tuple[Wanted, SavedPlan | None]:
    """Read what is wanted, and the saved plan if it is one; raises BadInput with the place."""
    from nfctl.control import savedplan
    from nfctl.policy import reading

    if file is None or file == "-" or not savedplan.is_plan(file):
        return reading.read(file, v4=ipv4, v6=ipv6), None
    if ipv4 or ipv6:
        msg = f"{file} is a saved plan: it says all, and -4 and -6 say something else"
        raise BadInput(msg)
    saved = savedplan.read(file)
    return saved.wanted, saved
