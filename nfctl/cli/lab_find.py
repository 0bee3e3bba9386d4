"""The lab and the host that a command names, and what to say where there is none such."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from nfctl.errors import AnswerNo, BadInput, NotPermitted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from nfctl.lab.host import Host
    from nfctl.lab.standing import Standing


def require_root(why: str = "") -> None:
    """Raise NotPermitted unless the caller may see labs and enter their hosts."""
    from nfctl.lab import namespaces, syscalls

    if not syscalls.has_capabilities(syscalls.CAP_NET_ADMIN, syscalls.CAP_SYS_ADMIN):
        msg = f"this needs CAP_NET_ADMIN and CAP_SYS_ADMIN{why}"
        raise NotPermitted(msg, hint=namespaces.AS_ROOT)


def the_lab(name: str) -> Standing:
    """Return the lab called ``name``, or the only one; the error names those there are."""
    from nfctl.lab import standing

    with names_in_errors(name):
        return standing.find(name)


@contextlib.contextmanager
def names_in_errors(name: str) -> Iterator[None]:
    """Add the names of the labs there are to an error that says that ``name`` is none of them."""
    from nfctl.lab import standing

    try:
        yield
    except AnswerNo as error:
        names = [lab.name for lab in standing.labs()]
        error.hint = meant(name, names, "lab") if names else _why_none()
        raise


def the_host(lab_name: str, host_name: str) -> tuple[Standing, Host]:
    """Return a host of a lab that is up, with the lab."""
    require_root()
    lab = the_lab(lab_name)
    if lab.state.value != "up":
        states = {
            "making": "is being made or removed right now",
            "broken": "is broken: a part of it is missing",
        }
        hint = f"nfctl lab down {lab.name} removes it" if lab.state.value == "broken" else ""
        raise BadInput(f"the lab {lab.name} {states[lab.state.value]}", hint=hint)
    host = lab.hosts.get(host_name)
    if host is None:
        msg = f'the lab {lab.name} has no host "{host_name}"'
        raise BadInput(msg, hint=meant(host_name, lab.hosts, "host"))
    return lab, host


def meant(word: str, names: Iterable[str], what: str) -> str:
    """Return the names there are, and the one that was probably meant."""
    import difflib

    known = list(names)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    guess = f'did you mean "{close[0]}"?' if close else ""
    if len(known) == 1:
        return guess or f"the only {what} is {known[0]}"
    return f"{guess} {what}s: {', '.join(known)}".lstrip()


def none_up() -> None:
    """Say that there is no lab; not on standard output, which programs read."""
    print(f"no lab is up; {_why_none()}", file=sys.stderr)


def _why_none() -> str:
    lab, host = os.environ.get("NFCTL_LAB"), os.environ.get("NFCTL_HOST")
    if lab and host:  # set by `nfctl lab exec`: a host has a /run of its own, without labs
        return f"this is {host}, a host of the lab {lab}: leave it first"
    return "nfctl lab up makes one"
