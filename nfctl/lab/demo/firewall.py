"""The firewall that the demo loads onto its router, in iptables-save syntax.

``wan0`` is the outside (the client's side), ``lan0`` the inside (the server's). The filter
table drops what no rule accepts. Every way to move between chains is in use: a jump (``-j``)
comes back behind its rule, also by RETURN; a goto (``-g``) does not come back there, so what
WEB does not accept misses the rest of OUTSIDE and meets the policy of FORWARD.
"""

from __future__ import annotations

IPV4 = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
# An inside address cannot come from outside.
-A PREROUTING -s 10.77.0.0/24 -i wan0 -j DROP
# A syslog message is one packet: it is not worth an entry in the connection table.
-A PREROUTING -p udp -m udp --dport 514 -j CT --notrack
-A PREROUTING -p udp -m udp --sport 514 -j CT --notrack
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CLASSIFY - [0:0]
-A PREROUTING -i wan0 -m conntrack --ctstate NEW -j CLASSIFY
# What sends passwords in the clear gets a mark; the filter table refuses the mark.
-A CLASSIFY -p tcp -m multiport --dports 21,23 -j MARK --set-xmark 0x17/0xffffffff
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:PORTS - [0:0]
-A PREROUTING -d 192.0.2.1/32 -i wan0 -j PORTS
# Port 8080 of the router is port 80 of the server.
-A PORTS -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.77.0.10:80
# The inside goes out under the router's address.
-A POSTROUTING -s 10.77.0.0/24 -o wan0 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:OUTSIDE - [0:0]
:SSH - [0:0]
:WEB - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -i lan0 -o wan0 -j ACCEPT
-A FORWARD -i wan0 -o lan0 -j OUTSIDE
-A OUTSIDE -p tcp -m mark --mark 0x17 -j REJECT --reject-with tcp-reset
-A OUTSIDE -p tcp -m tcp --dport 22 -j SSH
-A OUTSIDE -p tcp -m tcp --dport 22 -j REJECT --reject-with icmp-host-prohibited
-A OUTSIDE -p tcp -m multiport --dports 80,443,9200 -g WEB
-A OUTSIDE -p udp -m udp --dport 53 -j ACCEPT
-A OUTSIDE -p udp -m udp --dport 514 -m conntrack --ctstate UNTRACKED -j ACCEPT
-A OUTSIDE -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A OUTSIDE -p tcp -m tcp --dport 1:1023 -j REJECT --reject-with icmp-admin-prohibited
# Visitors' addresses are not for ssh: back to OUTSIDE.
-A SSH -s 192.0.2.64/26 -j RETURN
-A SSH -j ACCEPT
-A WEB -p tcp -m multiport --dports 80,9200 -j ACCEPT
COMMIT
"""

IPV6 = """\
*raw
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
# An inside address cannot come from outside.
-A PREROUTING -s fd77::/64 -i wan0 -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CLASSIFY - [0:0]
-A PREROUTING -i wan0 -m conntrack --ctstate NEW -j CLASSIFY
-A CLASSIFY -p tcp -m multiport --dports 21,23 -j MARK --set-xmark 0x17/0xffffffff
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:PORTS - [0:0]
-A PREROUTING -d 2001:db8:1::1/128 -i wan0 -j PORTS
-A PORTS -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd77::10]:80
-A POSTROUTING -s fd77::/64 -o wan0 -j MASQUERADE
COMMIT
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:OUTSIDE - [0:0]
:WEB - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
# IPv6 does not work without neighbour discovery, which is ICMPv6.
-A INPUT -p ipv6-icmp -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate INVALID -j DROP
-A FORWARD -i lan0 -o wan0 -j ACCEPT
-A FORWARD -i wan0 -o lan0 -j OUTSIDE
-A OUTSIDE -p tcp -m mark --mark 0x17 -j REJECT --reject-with tcp-reset
-A OUTSIDE -p tcp -m multiport --dports 80,443,9200 -g WEB
-A OUTSIDE -p tcp -m tcp --dport 22 -j ACCEPT
-A OUTSIDE -p ipv6-icmp -m icmp6 --icmpv6-type 128 -j ACCEPT
-A OUTSIDE -p udp -j REJECT --reject-with icmp6-adm-prohibited
-A WEB -p tcp -m multiport --dports 80,9200 -j ACCEPT
COMMIT
"""

# Behind filter, where the kernel has it: what filter accepted can still be refused.
SECURITY = """\
*security
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A FORWARD -p tcp -m tcp --dport 9200 -j DROP
COMMIT
"""
