"""Deleting the flows that a change of rules decides differently, and no others.

Conntrack goes on doing to a flow what was decided for its first packet: a flow that DNAT sent to
a server goes there after the rule is gone, and ``--ctstate ESTABLISHED`` accepts what no rule
would let begin. So the first packet of every flow is made anew and rehearsed, in two copies of
this host's firewall, with the old rules and with the new ones (:mod:`nfctl.control.flush.copy`).
A flow is deleted if both is true:

* the old rules and the new rules give its first packet a different fate: passed or not, or
  translated differently;
* what the flow has now is not what the new rules would give it.

The first keeps what the change has nothing to do with (flows that began under still older rules,
RELATED ones). The second keeps what is right already. Where the rules leave a choice (ports from
a range, ``statistic``), what they may choose is right; see :mod:`nfctl.control.flush.fates` and
:mod:`nfctl.control.flush.worlds`.

Limits. A flow that arrived elsewhere than its replies would go is rehearsed where those would go.
Flows that a helper expected, of other zones than the rules give, or from an address that no
interface leads to, are not rehearsed; they are ``skipped``, with the reason, and stay. Rules of
nf_tables are not in the copies: where there are any, flows that the old rules do not explain
stay, too. What a bridge passes on is rehearsed as if it were routed.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from nfctl.control.flush import packets
from nfctl.control.flush.worlds import bare, zones
from nfctl.errors import NfctlError
from nfctl.kernel import flows
from nfctl.policy.wanted import WantedSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from nfctl.control.flush.trial import Case
    from nfctl.control.rehearsal.host import Way

_UP: Final = 1


@dataclass(slots=True)
class Flushed:
    """What became of the flows: how many were looked at, which were deleted, which were not.

    ``skipped`` are flows that could not be judged, each with the reason; they are still there.
    """

    examined: int = 0
    deleted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def flush(
    before: Mapping[int, str],
    after: Mapping[int, str],
    sets: Sequence[WantedSet] = (),
    *,
    sets_before: str = "",
) -> Flushed:
    """Delete the flows that rules ``after`` decide differently from rules ``before``.

    Both are iptables-save text of all tables by family (4, 6); a family with the same text in
    both is not looked at. Ipsets are taken as they are now; ``sets_before`` is ``ipset save``
    text of those that were otherwise before. ``sets`` are those that the policy wants; one that
    is not there yet is taken as it says. Acts in the network namespace of the calling thread.

    Never raises for what is no fault of the caller's: the change is made already. What cannot
    be done is ``skipped``.
    """
    done = Flushed()
    try:
        changed = _changed(before, after, sets_before)
        if changed and _any(changed):
            _flush({family: (before.get(family, ""), after.get(family, "")) for family in changed},
                   sets, sets_before, done)  # fmt: skip
    except NfctlError as error:
        done.skipped.append(f"all flows: {error}")
    except OSError as error:
        done.skipped.append(f"all flows: they cannot be rehearsed: {error.strerror or error}")
    return done


def _changed(before: Mapping[int, str], after: Mapping[int, str], sets_before: str) -> list[int]:
    """Return the families whose rules differ, or name sets that do."""
    from nfctl.control.rehearsal import sets as rehearsal_sets

    found = []
    otherwise = _sets_otherwise(sets_before)
    for family in (4, 6):
        old, new = before.get(family, ""), after.get(family, "")
        if bare(old) != bare(new) or otherwise & rehearsal_sets.named([old, new]):
            found.append(family)
    return found


def _sets_otherwise(sets_before: str) -> set[str]:
    """Return the names of the sets that are not what they were."""
    if not sets_before:
        return set()
    from nfctl.control.sets import saved
    from nfctl.kernel import ipset_save

    was = {one.name: one for one in ipset_save.parse(sets_before)}
    now = {one.name: one for one in ipset_save.parse(saved(was))}

    def content(one: ipset_save.SavedSet | None) -> object:
        return one and (one.type, one.family, sorted(one.entries))

    return {name for name, one in was.items() if content(one) != content(now.get(name))}


def _any(families: Iterable[int]) -> bool:
    """Whether there is a flow at all."""
    with flows.open_socket() as sock:
        parts = flows.listed(sock)
        return any(entry.family in families for part in parts for entry in part)


def _flush(
    texts: Mapping[int, tuple[str, str]],
    sets: Sequence[WantedSet],
    sets_before: str,
    done: Flushed,
) -> None:
    from nfctl.control.flush.copy import Rehearsal
    from nfctl.control.flush.trial import Trial
    from nfctl.control.rehearsal import sets as rehearsal_sets

    everything = [text for pair in texts.values() for text in pair]
    special = {
        "zones": bool(zones(everything)),
        "untracked": any("notrack" in text.lower() for text in everything),
    }
    was = _wanted(sets_before)
    missing = _missing(everything, was)
    made = [one for one in sets if one.name in missing]
    unknown = missing - {one.name for one in made}
    made += [WantedSet(name, "hash:ip", 4) for name in sorted(unknown)]
    ways = Ways()
    copies: list[Rehearsal] = []
    doomed: list[flows.Entry] = []
    try:
        for side, want in enumerate(([*made, *was], made)):
            named = rehearsal_sets.named(pair[side] for pair in texts.values())
            copies.append(Rehearsal(ways.interfaces, named, want, **special))
        for copy in copies:
            copy.answer()
        for family, (before, after) in texts.items():
            trial = Trial(family, before, after, copies, unknown)
            trial.run(_cases(family, ways, done))
            for entry, why in trial.sentence():
                if why:
                    _skip(done, entry, why)
                else:
                    doomed.append(entry)
    finally:
        for copy in copies:
            copy.close()
        ways.close()
    _delete(doomed, done)


def _wanted(saved: str) -> list[WantedSet]:
    """Return the sets of ``ipset save`` text."""
    from nfctl.kernel import ipset_save

    return [
        WantedSet(one.name, one.type, one.family, one.options, one.entries)
        for one in ipset_save.parse(saved)
    ]


def _missing(texts: Iterable[str], was: Iterable[WantedSet]) -> set[str]:
    """Return the sets that rules name and that are not there."""
    from nfctl.control.rehearsal import sets as rehearsal_sets

    named = rehearsal_sets.named(texts) - {one.name for one in was}
    return named - {kept.header.name for kept in rehearsal_sets.read(named)}


# --- the flows, and where they begin --------------------------------------------------------------


class Ways:
    """Where packets from an address come from: this host's interfaces, and its routes."""

    def __init__(self) -> None:
        from nfctl.control.rehearsal.host import Host

        self._host = Host()
        self._up: dict[int, str] = {}
        for index, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has gone meanwhile
                if name != "lo" and self._host.link(index).flags & _UP:
                    self._up[index] = name
        self._own = {address.raw for address in self._host.addresses()}
        self._find = lru_cache(maxsize=1 << 16)(self._look_up)

    @property
    def interfaces(self) -> list[str]:
        """The names of the interfaces that are up, without lo."""
        return list(self._up.values())

    def close(self) -> None:
        """Close what asks the kernel."""
        self._host.close()

    def to(self, address: bytes) -> tuple[int, str]:
        """Return the interface that an address is behind, 0 for the host itself; or why not."""
        return self._find(address)

    def link(self, address: bytes) -> int:
        """Return the interface of a link-local address, 0 for any other one."""
        return self._find(address)[0] if _is_link_local(address) else 0

    def _look_up(self, address: bytes) -> tuple[int, str]:
        text = str(ipaddress.ip_address(address))
        if not any(address):
            return 0, "nobody knows where it comes from, without an address"
        if _is_link_local(address):
            if address in self._own:
                return 0, ""
            # Every link has such addresses; where there is one link, it is that.
            if len(self._up) == 1:
                return next(iter(self._up)), ""
            return 0, f"{text} may be on any of the links"
        try:
            way: Way = self._host.way(text)
        except OSError as error:
            return 0, f"no interface leads to {text}: {os.strerror(error.errno or errno.EIO)}"
        if way.local:
            return 0, ""
        if way.ifindex not in self._up:
            return 0, f"the interface that leads to {text} is not up"
        return way.ifindex, ""


def _is_link_local(address: bytes) -> bool:
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def _cases(family: int, ways: Ways, done: Flushed) -> Iterator[Case]:
    """Yield the flows of a family that can be rehearsed; the others are skipped."""
    from nfctl.control.flush.copy import Opening
    from nfctl.control.flush.trial import Case

    with flows.open_socket() as sock:
        for part in flows.listed(sock, family):
            for entry in part:
                done.examined += 1
                if entry.status & flows.EXPECTED or entry.master:
                    _skip(done, entry, "the helper of another connection expected it")
                    continue
                original = flows.parse(entry.original)
                packet = packets.first(original)
                interface, trouble = ways.to(original.source)
                if packet is None:
                    _skip(done, entry, "no packet of its kind begins a connection")
                elif trouble:
                    _skip(done, entry, trouble)
                else:
                    scope = 0 if interface else ways.link(original.destination)
                    opening = Opening(interface, scope, entry.original, packet)
                    yield Case(entry, original, opening)


def _skip(done: Flushed, entry: flows.Entry, why: str) -> None:
    done.skipped.append(f"{entry}: {why}")


# --- deleting -------------------------------------------------------------------------------------


def _delete(doomed: Sequence[flows.Entry], done: Flushed) -> None:
    """Delete entries, and look whether they are gone."""
    if not doomed:
        return
    with flows.open_socket() as sock:
        for entry, number in zip(doomed, flows.delete(sock, doomed), strict=True):
            if number == errno.ENOENT:
                continue  # it has ended by itself
            there = flows.get(sock, entry.family, entry.name)
            if there is not None and there.number == entry.number:
                _skip(done, entry, f"it cannot be deleted: {os.strerror(number or errno.EBUSY)}")
            else:
                done.deleted.append(str(entry))
