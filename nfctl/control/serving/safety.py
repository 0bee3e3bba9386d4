"""What has to be looked at before services are applied: whose chains there are, and who is cut off.

Also what keeps them from working, and is the host's own affair: forwarding that is off.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nfctl.control import guard
from nfctl.control.rehearsal.host import Host
from nfctl.control.serving.desired import policy_name
from nfctl.errors import AnswerNo, BadInput, NfctlError
from nfctl.kernel.blob import Blob
from nfctl.kernel.table import active_tables
from nfctl.services.difference import addresses, places, title
from nfctl.services.model import family_of
from nfctl.services.names import PREFIX, Names
from nfctl.services.reading import UNUSUAL, recorded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.journal.state import State
    from nfctl.services.difference import Difference
    from nfctl.services.model import ServiceList

_TABLES: Final = ("nat", "filter", "mangle")
_SWITCHES: Final = {
    4: ("net.ipv4.ip_forward", Path("/proc/sys/net/ipv4/ip_forward")),
    6: ("net.ipv6.conf.all.forwarding", Path("/proc/sys/net/ipv6/conf/all/forwarding")),
}
_SAID: Final = 5  # services that a note names


def strangers(prefix: str, state: State) -> list[str]:
    """Return chains of a prefix that are in the kernel, and that no apply is known to have made."""
    try:
        record = state.record(policy_name(prefix))
    except NfctlError:  # damaged: there was one
        return []
    if record is not None:
        if not record.services:
            msg = f"{record.name} is the name of another policy that was applied here"
            raise BadInput(msg, hint="take another --prefix")
        return []
    names = Names(prefix)
    return [
        chain.name
        for family in (4, 6)
        for table in active_tables(family)
        if table in _TABLES
        for chain in Blob(family, table).chains
        if chain.policy is None and names.is_own(chain.name)
    ]


def check_chains(prefix: str, state: State, *, adopt: bool) -> list[str]:
    """Raise BadInput where chains of this prefix are somebody else's; return notes."""
    found = strangers(prefix, state)
    if not found:
        return []
    if adopt or prefix == PREFIX:
        many = f"{len(found)} chains" if len(found) > 1 else "a chain"
        are = "are" if len(found) > 1 else "is"
        what = f"{many} {prefix}* that nfctl did not know {are} taken over"
        return [f"{what}: {_some(found)}"]
    who = "kube-proxy's" if prefix == "KUBE-" else "another program's"
    there = f"is a chain {found[0]} already"
    if len(found) > 1:
        there = f"are {len(found)} chains {prefix}* already, such as {found[0]}"
    msg = f"there {there}: {who}, it seems"
    hint = "take another --prefix; --adopt takes them over, if nobody else writes them any more"
    raise BadInput(msg, hint=hint)


def check_operator(before: ServiceList | None, after: ServiceList, *, force: bool) -> list[str]:
    """Raise AnswerNo where a service takes the operator's own SSH connection; return notes.

    Packets of a connection that is there are not translated anew; but it could not be made again.
    """
    operator = guard.operator()
    if operator is None:
        return []
    known = {service.key: service for service in (before.services if before else ())}
    for service in after.services:
        if service.protocol != operator.protocol:
            continue
        old = known.get(service.key)
        had = set(places(old)) if old is not None else set()
        for address, port in places(service):
            if port != operator.port or (address, port) in had:
                continue
            if address == operator.destination or (
                address is None
                and family_of(operator.destination) in service.families()
                and after.has_node_ports_at(operator.destination)
            ):
                what = f"{address}:{port}" if address else f"node port {port}"
                msg = f"this would cut off {operator}: service {title(service)} takes {what}"
                if force:
                    return [f"{msg}, as --force allows"]
                raise AnswerNo(msg, hint="nothing was changed; --force applies it all the same")
    return []


def shared(difference: Difference, prefix: str, state: State) -> Iterator[str]:
    """Say which addresses that services come to have those of other prefixes have, too."""
    mine: set[tuple[str, str | None, int]] = set()
    for service in difference.come:
        mine.update((service.protocol, *place) for place in places(service))
    for before, after in difference.differ:
        mine.update((after.protocol, *place) for place in {*places(after)} - {*places(before)})
    names: list[str] = []
    if mine:
        with contextlib.suppress(NfctlError):
            names = [name for name in state.policies() if name.startswith(policy_name(""))]
    for name in names:
        if name == policy_name(prefix):
            continue
        with contextlib.suppress(NfctlError, *UNUSUAL):
            record = state.record(name)
            if record is None or not record.services:
                continue
            other = recorded(json.loads(record.services))
            taken = [
                f"{address} of {title(service)}"
                for service in other.services
                for place, address in zip(places(service), addresses(service), strict=True)
                if (service.protocol, *place) in mine
            ]
            if taken:
                who = f"services of prefix {other.prefix} have these, too"
                yield f"{who}, and whose chains are jumped to first gets them: {_some(taken)}"


def forwarding(settings: ServiceList) -> Iterator[str]:
    """Say where packets are not forwarded, though endpoints are on other hosts."""
    for family, (name, path) in _SWITCHES.items():
        addresses = {
            endpoint.address: None
            for service in settings.services
            for endpoint in service.endpoints
            if endpoint.family == family and not endpoint.local
        }
        if not addresses:
            continue
        try:
            on = path.read_text().strip() != "0"
        except OSError:
            continue
        if not on and _any_elsewhere(addresses):
            yield (
                f"{name} is 0: other hosts do not reach endpoints that are not on this one "
                f"(sysctl -w {name}=1)"
            )


def _any_elsewhere(addresses: dict[str, None]) -> bool:
    with contextlib.closing(Host()) as host:
        return not all(map(host.is_local, addresses))


def useless(settings: ServiceList, whole: ServiceList) -> Iterator[str]:
    """Say which endpoints cannot be reached by anybody, or not by others, or not in some way.

    Of those in ``settings``, which may be a part of the ``whole`` list.
    """
    odd: list[str] = []
    loopback: list[str] = []
    virtual: list[str] = []
    clustered = {
        (service.protocol, ip, service.port)
        for service in whole.services
        for ip in service.cluster_ips
    }
    for service in settings.services:
        families = service.families()
        for endpoint in service.endpoints:
            if (service.protocol, *endpoint[:2]) in clustered:
                virtual.append(f"{endpoint} of {title(service)}")
            if endpoint.family not in families:
                odd.append(f"{endpoint} of {title(service)}")
            elif endpoint.address == "::1" or endpoint.address.startswith("127."):
                loopback.append(f"{endpoint} of {title(service)}")
    if odd:
        yield f"the service has no address of that family: {_some(odd)}"
    if virtual:
        yield f"nothing is translated twice, and this is a cluster IP: {_some(virtual)}"
    if loopback:
        yield f"the kernel sends what others send to no loopback address: {_some(loopback)}"
    for family in (4, 6):
        yield from _one_sided(settings, family)


def _one_sided(settings: ServiceList, family: int) -> Iterator[str]:
    """Say where ranges are of the other family alone, though there are endpoints of this one."""
    elsewhere: list[str] = []
    barred: list[str] = []
    listed = family in _families(settings.node_addresses)
    for service in settings.services:
        if family not in {endpoint.family for endpoint in service.endpoints}:
            continue
        if service.node_port and not listed:
            elsewhere.append(f"{service.node_port} of {title(service)}")
        outside = (service.node_port and listed) or family in map(family_of, service.external_ips)
        if outside and family not in _families(service.source_ranges):
            barred.append(title(service))
    if elsewhere:
        everywhere = "0.0.0.0/0" if family == 4 else "::/0"
        why = f"node-addresses has no range of IPv{family} ({everywhere} is all)"
        yield f"node ports are served by IPv{10 - family} alone, as {why}: {_some(elsewhere)}"
    if barred:
        why = f"source-ranges has none of IPv{family}"
        yield f"nobody may come in by IPv{family}, as {why}: {_some(barred)}"


def _families(ranges: tuple[str, ...]) -> set[int]:
    """Return the families that ranges are of; both without any, which is no restriction."""
    return {family_of(net) for net in ranges} or {4, 6}


def _some(found: list[str]) -> str:
    more = f" and {len(found) - _SAID} more" if len(found) > _SAID else ""
    return f"{', '.join(found[:_SAID])}{more}"
