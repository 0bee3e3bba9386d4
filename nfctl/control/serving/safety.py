"""What has to be looked at before services are applied: whose chains there are, and who is cut off.

Also what keeps them from working, and is the host's own affair: forwarding that is off.
"""

from __future__ import annotations

import contextlib
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from nfctl.control import guard
from nfctl.control.rehearsal.host import Host
from nfctl.control.serving.desired import policy_name
from nfctl.errors import AnswerNo, BadInput, NfctlError
from nfctl.kernel.blob import Blob
from nfctl.kernel.table import active_tables
from nfctl.services.difference import places, title
from nfctl.services.model import family_of
from nfctl.services.names import PREFIX, Names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.control.journal.state import State
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
        return [f"{len(found)} chains {prefix}* that nfctl did not know are taken over"]
    who = "kube-proxy's" if prefix == "KUBE-" else "another program's"
    msg = f"there are {len(found)} chains {prefix}* already, such as {found[0]}: {who}, it seems"
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
                and _is_node_address(operator.destination, after)
            ):
                what = f"{address}:{port}" if address else f"node port {port}"
                msg = f"this would cut off {operator}: service {title(service)} takes {what}"
                if force:
                    return [f"{msg}, as --force allows"]
                raise AnswerNo(msg, hint="nothing was changed; --force applies it all the same")
    return []


def _is_node_address(address: str, settings: ServiceList) -> bool:
    nets = [ipaddress.ip_network(net) for net in settings.node_addresses]
    found = ipaddress.ip_address(address)
    return any(found in net for net in nets) if nets else not found.is_loopback


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
        for address in addresses:
            try:
                if not host.way(address).local:
                    return True
            except OSError:  # no route: it surely is not here
                return True
    return False


def useless(settings: ServiceList) -> Iterator[str]:
    """Say which endpoints cannot be reached by anybody, or not by others."""
    odd: list[str] = []
    loopback: list[str] = []
    for service in settings.services:
        families = service.families()
        for endpoint in service.endpoints:
            if endpoint.family not in families:
                odd.append(f"{endpoint} of {title(service)}")
            elif endpoint.address == "::1" or endpoint.address.startswith("127."):
                loopback.append(f"{endpoint} of {title(service)}")
    if odd:
        yield f"the service has no address of that family: {_some(odd)}"
    if loopback:
        yield f"the kernel sends what others send to no loopback address: {_some(loopback)}"


def _some(found: list[str]) -> str:
    more = f" and {len(found) - _SAID} more" if len(found) > _SAID else ""
    return f"{', '.join(found[:_SAID])}{more}"
