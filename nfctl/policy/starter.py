"""A policy to begin with: a host that is reachable by SSH, and by what IP itself needs.

ICMPv6 is as RFC 4890 (section 4.4) has it for a host: without neighbour discovery there is no
IPv6, without Packet Too Big there are connections that stall. Its messages stand before the rule
that drops INVALID packets: connection tracking calls so what it knows nothing of, a Packet Too
Big about a forgotten connection among them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

_HEAD = """\
# A policy for this host: try it with "nfctl plan FILE", then "nfctl apply --confirm 60 FILE".
# Rules are iptables' own: what stands behind -A CHAIN. One file is for IPv4 and IPv6; a rule
# with addresses or extensions of one family is for that one alone. The form of this file:
# nfctl policy schema.
version: 1
"""

_ONE_FAMILY = """\
# There is no IPv6 in this kernel. Without this line the policy is for both families.
families: [ipv4]
"""

_VARIABLES = """
variables:
  # {why}
  ssh: {ports}
  # New pings that are let in.
  pings: 20/second
"""

_NEIGHBOURS = """\
  # Neighbour discovery (RFC 4861), without which there is no IPv6.
  neighbours: [neighbour-solicitation, neighbour-advertisement, 141, 142]
  routers: [router-advertisement, redirect]
  # Multicast listener discovery (RFC 2710, RFC 3810): 130 to 132, and 143.
  listeners: [130, 131, 132, 143]
  # Errors; Packet Too Big is needed by every connection over a smaller link.
  errors: [destination-unreachable, packet-too-big, time-exceeded, parameter-problem]
"""

_INPUT = """
tables:
  filter:
    INPUT:
      # What no rule accepts is dropped.
      policy: drop
      rules:
        - -i lo -j ACCEPT
        # Answers to what this host has sent, and errors about it.
        - -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"""

_ICMPV6 = """
        # ICMPv6 (RFC 4890, section 4.4). A hop limit of 255 proves that no router forwarded it.
        - -p ipv6-icmp -m hl --hl-eq 255 -m icmp6 --icmpv6-type ${neighbours} -j ACCEPT
        - -s fe80::/10 -p ipv6-icmp -m hl --hl-eq 255 -m icmp6 --icmpv6-type ${routers} -j ACCEPT
        - -s fe80::/10 -p ipv6-icmp -m hl --hl-eq 1 -m icmp6 --icmpv6-type ${listeners} -j ACCEPT
        - -p ipv6-icmp -m icmp6 --icmpv6-type ${errors} -j ACCEPT
"""

_MIDDLE = """
        # Packets that belong to nothing: out of a connection's window, or of none at all.
        - -m conntrack --ctstate INVALID -j DROP

        - -p icmp -m icmp --icmp-type echo-request -m limit --limit ${pings} -j ACCEPT
"""

_PING6 = """\
        - -p ipv6-icmp -m icmp6 --icmpv6-type echo-request -m limit --limit ${pings} -j ACCEPT
"""

_DHCP = """
        # DHCP: answers come from a server's own address, or to everybody.
        - -p udp -m udp --sport 67 --dport 68 -j ACCEPT
"""

_NO_DHCP = """
        # DHCP: this host has no lease; if it is to get its address so, take the # away.
        # - -p udp -m udp --sport 67 --dport 68 -j ACCEPT
"""

_DHCPV6 = """\
        # DHCPv6 (RFC 8415): the client asks a multicast address, the answer comes from another.
        - -d fe80::/10 -p udp -m udp --dport 546 -j ACCEPT
"""

_SERVICES = """
        # SSH, from everywhere. To admit some only: -s 192.0.2.0/24 before -p.
        - -p tcp -m tcp --dport ${ssh} -j ACCEPT

        # What else this host serves, such as:
        # - -p tcp -m multiport --dports 80,443 -j ACCEPT
"""

_FORWARD = """
    # This host forwards nothing.
    FORWARD:
      policy: drop
"""

_FORWARDING = """
    # FORWARD is left as it is, since this host seems to forward for others:
{reasons}
    # To decide about it here, name the chain; the rules of Docker and its like stay where they are.
    # FORWARD:
    #   policy: drop
"""

_OUTPUT = """
    # What this host sends by itself is not looked at.
    OUTPUT:
      policy: accept
"""


@dataclass(slots=True)
class Surroundings:
    """What a starter policy has to know of its host.

    ``ssh`` are the ports of sshd, and ``ssh_why`` how they are known. ``forwarding`` are reasons
    to think that the host forwards packets. ``dhcp`` is whether it has a lease.
    """

    ssh: list[int] = field(default_factory=lambda: [22])
    ssh_why: str = "sshd's own port, unless its configuration says another."
    forwarding: list[str] = field(default_factory=list)
    dhcp: bool = False
    ipv6: bool = True


def starter(host: Surroundings) -> str:
    """Return the text of a policy file, with comments."""
    ports = str(host.ssh[0]) if len(host.ssh) == 1 else f"[{', '.join(map(str, host.ssh))}]"
    reasons = "\n".join(f"    # - {reason}" for reason in host.forwarding)
    six = host.ipv6
    return "".join(
        (
            _HEAD,
            "" if six else _ONE_FAMILY,
            _VARIABLES.format(why=host.ssh_why, ports=ports),
            _NEIGHBOURS if six else "",
            _INPUT,
            _ICMPV6 if six else "",
            _MIDDLE,
            _PING6 if six else "",
            _DHCP if host.dhcp else _NO_DHCP,
            _DHCPV6 if six else "",
            _SERVICES,
            _FORWARDING.format(reasons=reasons) if reasons else _FORWARD,
            _OUTPUT,
        )
    )
