"""Rule lines for every match and target extension, and what iptables says of bad ones.

The oracle is iptables-legacy: what cases() yields loads and prints back, REFUSED fails in user
space with the words given, KERNEL_REFUSED parses but the kernel does not take it, IGNORED loads and
makes no rule, VARYING loads with some versions only. `python -m tests.kernel.check_corpus` proves
it. The functions at the end run the oracle: in a network namespace and a mount namespace of their
own, with a tmpfs on /run, so that lock and tables are private.

The rules stand in blocks of text, one a line: what follows `-A CHAIN ` in an iptables-restore file.
    == EXTENSION FAMILIES TABLE CHAIN   begins a block; "46" means once for IPv4, once for IPv6
    ++ STEP                             what the rules of this block need before they can load
    # ...                               a comment
    RULE                                a backslash at the end of a line joins the next one
    RULE => WORDS                       among the refused: a part of what iptables-restore says
{f} stands for the family, 4 or 6, and {inet} for the name that ipset has for it. The steps are:
    chain NAME              a chain of the same table
    rule CHAIN RULE         a rule of the same table, before those of the block
    ipset create NAME ...   the arguments of ipset
    nfacct NAME             an accounting object
    cttimeout NAME FAMILY   a connection tracking timeout policy for TCP
    bpf PATH                a socket filter program, pinned there
"""

from __future__ import annotations

import ctypes
import errno
import functools
import math
import os
import platform
import re
import socket
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@dataclass(frozen=True, slots=True)
class Case:
    """A rule that iptables loads, where the kernel has the extension."""

    family: int
    table: str
    chain: str
    rule: str
    extension: str
    setup: tuple[str, ...] = ()

    @property
    def copies(self) -> int:
        """How many rules this one makes: each of several -s goes with each of several -d."""
        return math.prod(words.count(",") + 1 for words in _ADDRESSES.findall(self.rule))

    def __str__(self) -> str:
        return f"ipv{self.family} {self.table} {self.chain} {self.rule}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A rule that is refused; words are a part of what iptables-restore says."""

    family: int
    table: str
    chain: str
    rule: str
    words: str
    setup: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"ipv{self.family} {self.table} {self.chain} {self.rule}"


_ADDRESSES: Final = re.compile(r"(?:^|\s)(?:-[sd]|--(?:src|dst|source|destination)) ([\w.:/,]+)")

# --- The header of a rule, and the targets that need no extension --------------------------------

_HEADERS: Final = r"""
== standard 46 filter INPUT
-j ACCEPT
-j DROP
-j RETURN
-j QUEUE
--jump ACCEPT
-j "ACCEPT"
-j    ACCEPT   -p   tcp
-p tcp
-p TCP -j DROP
-p 6 -j DROP
-p 0x11
-p all -j ACCEPT
-p 0 -j ACCEPT
-p 253
--protocol udp -j ACCEPT
--proto tcp
! -p tcp -j DROP
! --protocol 41
-i lo -j ACCEPT
-i eth+
-i +
! -i eth0
! -i eth+ -j DROP
--in-interface eth0.100
-i fifteen-letters
-i "two words"
-i eth0 -j ACCEPT --
-c 10 2048 -j ACCEPT
-c 10,2048 -j ACCEPT
-c 18446744073709551615 18446744073709551615
--set-counters 7 512 -p tcp
--set-counters=3,4 -j DROP
-j RETURN -i eth0 -p udp

== standard 46 filter OUTPUT
-o eth0 -j ACCEPT
-o tun+
! --out-interface wg+ -j DROP

== standard 46 filter FORWARD
-i eth0 -o eth1 -j ACCEPT
-i br+ ! -o br+ -j DROP
! -i lan0 ! -o wan0 ! -p tcp
--in-int lan0 --out-int wan0

== standard 46 filter INPUT
++ chain WEB
-j WEB
-p tcp --jump WEB
-g WEB
-gWEB
--goto WEB -i eth0
--goto=WEB

== standard 46 filter WEB
++ chain WEB
++ chain DEEPER
++ chain a-chain.name:of_28-letters+x
++ chain icmp
++ chain CHECKSUM
-i eth0 -o eth1 -j ACCEPT
-j RETURN
-j DEEPER
-g DEEPER
-j a-chain.name:of_28-letters+x
-j icmp
# A chain that is called like a target hides it.
-j CHECKSUM

== standard 4 filter INPUT
-s 10.0.0.1 -j ACCEPT
-s 10.0.0.1/32 -d 192.168.0.0/16
-s 10.1.2.3/8
-s 10.1.2.3/255.255.0.0
-s 10.1.2.3/255.0.255.0
-s 10.1.2.3/0.0.0.255 -j DROP
-s 0.0.0.0/0 -j ACCEPT
-s 0.0.0.0
-s 10/8
-s 172.16/12
! -s 10.0.0.1
! -s 0.0.0.0/0
! -s 10.0.0.0/8 ! -d 172.16.0.0/12 -j DROP
--source 10.0.0.1 --destination 10.0.0.2
--src 10.0.0.1 --dst 10.0.0.2
--sou 10.0.0.1 --dest 10.0.0.2
-s 10.0.0.1,10.0.0.2 -j ACCEPT
-s 10.0.0.0/8,172.16.0.0/12,192.168.0.0/16 -d 198.51.100.1,203.0.113.9 -j DROP
-d 10.0.0.1,10.0.0.1
-f -j DROP
! -f -j ACCEPT
--fragments
-4 -j ACCEPT
--ipv4 -s 10.0.0.1
-p icmp -s 10.0.0.0/8
-p esp
-p ah -s 10.0.0.1

== standard 6 filter INPUT
-s 2001:db8::1 -j ACCEPT
-s 2001:DB8:0:0:0::A/128
-s 2001:db8::/32 -d fe80::/10
-s 2001:db8::1/64
-s 2001:db8::1/ffff:ffff:ffff::
-s 2001:db8::1/ffff::ffff
-s ::/0 -j ACCEPT
-s ::
-s ::ffff:192.0.2.1
! -s ::1
! -s ::/0
! -d ff02::/16 -j DROP
--source 2001:db8::1 --destination 2001:db8::2
-s 2001:db8::1,2001:db8::2 -j ACCEPT
-s fe80::/10,fd00::/8 -d ff02::1,ff02::2 -j DROP
-6 -j ACCEPT
--ipv6 -s ::1
-p ipv6-icmp
-p icmpv6 -j ACCEPT
-p 58
# iptables warns that such a rule never matches, and loads it.
-p ah
! -p ipv6-frag
-p mobility-header

== standard 46 raw PREROUTING
-i eth0 -j ACCEPT
== standard 46 mangle FORWARD
-i eth0 -o eth1 -j DROP
== standard 46 nat PREROUTING
-i eth0 -j RETURN
== standard 46 nat INPUT
-p tcp -j ACCEPT
== standard 46 nat POSTROUTING
++ chain KUBE-SVC-XPGD46QRK7WJZT7O
-o eth0 -j KUBE-SVC-XPGD46QRK7WJZT7O
== standard 46 security OUTPUT
-o eth0 -j ACCEPT

# Rules as people and programs write them.
== standard 4 filter INPUT
-i eth0 -s 10.0.0.0/8 -p tcp -m conntrack --ctstate NEW -m tcp --dport 22 -m comment \
    --comment "ssh from inside" -j ACCEPT
-p tcp -m conntrack --ctstate NEW -m recent --set --name ssh --dport 22
-p tcp -m multiport --dports 80,443 -m limit --limit 25/min --limit-burst 100 -m length \
    --length 0:1500 -m statistic --mode random --probability 0.25 -j LOG --log-prefix "in: "
-m limit -m length -m mark -m tos --limit 4/min --length 10:20 --mark 3 --tos 0x10 -j DROP
-m length --length 1 -m limit -m length --length 2 --limit 1/min
-c 5 300 ! -f ! -i lo ! -s 10.0.0.0/8 -d 192.0.2.1 ! -p icmp -j RETURN
== standard 4 nat PREROUTING
++ chain KUBE-SEP-A
! -s 10.244.0.0/16 -d 10.96.0.10/32 -p udp -m comment --comment "kube-system/kube-dns:dns" \
    -m udp --dport 53 -j MARK --or-mark 0x4000
-m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A
"""

# --- Protocol matches, named by -m or implied by -p ----------------------------------------------

_PROTOCOLS: Final = r"""
== tcp 46 filter INPUT
-p tcp --dport 80
-p tcp -m tcp --dport 22 -j ACCEPT
-p tcp --sport 1024:65535 --dport http
-p tcp ! --sport 22 ! --dport 1:1024
-p tcp --syn
-p tcp --tcp-flags ALL FIN,PSH,URG

== tcp 4 filter INPUT
-p 6 --dport 25 -j ACCEPT
-p TCP --dport 26
-p tcp -m tcp
-p tcp -mtcp --dport 5
--match=tcp --dport 6 -p tcp
-m tcp -p tcp --dport 7
-m tcp --dport 8 -p tcp
-p tcp --dport :1023
-p tcp --dport 1024:
-p tcp --dport :
-p tcp --dport 0x50
-p tcp --source-port 53 --destination-port 53
-p tcp --sport ssh:telnet
-p tcp --dport=8080
-p tcp --dpo 81
-p tcp --destination-p=82 --sp 83
-p tcp ! --syn
-p tcp --tcp-flags SYN,ACK,FIN,RST SYN
-p tcp --tcp-flags ALL NONE
-p tcp --tcp-flags syn,ack syn
-p tcp ! --tcp-flags SYN,RST SYN
-p tcp --tcp-flags=ALL ALL
-p tcp --tcp-option 2
-p tcp ! --tcp-option 255
-p tcp -m tcp --dport 80 -m tcp --sport 1024:
-p tcp --dport 80 -m tcp --sport 1024:
-p tcp -m comment --comment late --dport 99
-p tcp -j ACCEPT --dport 110
-p tcp -m limit -j ACCEPT --dport 111 --limit 5/sec

== udp 46 filter INPUT
-p udp --dport 53
-p udp ! --sport 5000:6000 ! --dport ntp
== udp 4 filter INPUT
-p 17 --dport domain
-p udp -m udp
-p udp --source-port 1024: --destination-port :1023
-p udp --sport tftp:sunrpc
-p udp --destination-po=9

== sctp 46 filter INPUT
-p sctp --dport 2905
-p sctp --chunk-types all DATA,INIT
== sctp 4 filter INPUT
-p 132 --sport 1024:
-p sctp -m sctp
-p sctp --source-port 1:5 --destination-port :9
-p sctp ! --sport 7 ! --dport 8
-p sctp --chunk-types any INIT,INIT_ACK,SACK,HEARTBEAT,HEARTBEAT_ACK,ABORT,SHUTDOWN
-p sctp --chunk-types only SHUTDOWN_ACK,ERROR,COOKIE_ECHO,COOKIE_ACK,ECN_ECNE,ECN_CWR
-p sctp --chunk-types any SHUTDOWN_COMPLETE,ASCONF,ASCONF_ACK,FORWARD_TSN
-p sctp ! --chunk-types any DATA:Be
-p sctp --chunk-types all DATA:UBE,ABORT:t,SHUTDOWN_COMPLETE:T
-p sctp --chunk-types ANY ALL
-p sctp --chunk any none

== dccp 46 filter INPUT
-p dccp --dport 5001
== dccp 4 filter INPUT
-p 33 --sport 1:9 --dport 10:
-p dccp --source-port 4 --destination-port 5
-p dccp ! --sport 6 ! --dport 7
-p dccp --dccp-types REQUEST,RESPONSE,DATA,ACK,DATAACK,CLOSEREQ,CLOSE,RESET
-p dccp --dccp-types sync,syncack,invalid
-p dccp ! --dccp-types RESET
-p dccp --dccp-option 37
-p dccp ! --dccp-option 1

== esp 46 filter INPUT
-p esp --espspi 256
-p 50 -m esp ! --espspi 0x100:0x1ff
-p esp -m esp --espspi :10

== ipcomp 46 filter INPUT
-p ipcomp --ipcompspi 18
-p 108 -m ipcomp ! --ipcompspi 4:9
-p ipcomp -m ipcomp --ipcompspi 1 --compres

== ah 4 filter INPUT
-p ah -m ah
-p ah --ahspi 500
-p 51 --ahspi 0x10:0x20
-p ah -m ah ! --ahspi 7:
== ah 6 filter INPUT
-m ah
-m ah --ahspi 500
-m ah ! --ahspi 1:9
-m ah --ahlen 20
-m ah ! --ahlen 24 --ahres

== icmp 4 filter INPUT
-p icmp --icmp-type echo-request -j ACCEPT
-p icmp -m icmp --icmp-type 8
-p 1 --icmp-type 0
-p icmp --icmp-type 3/4
-p icmp --icmp-type any
-p icmp --icmp-type 255
-p icmp --icmp-type ping
-p icmp --icmp-type PONG
-p icmp --icmp-type echo-req
-p icmp --icmp-type fragmentation-needed
-p icmp --icmp-type TOS-host-redirect
-p icmp ! --icmp-type redirect
-p icmp ! --icmp-type 3/13
-p icmp --icmp-t=13/0
-m icmp -p icmp --icmp-type 5
# The range of codes is stored, and not printed.
-p icmp --icmp-type 3/1:4

== icmp6 6 filter INPUT
-p ipv6-icmp --icmpv6-type echo-request -j ACCEPT
-p icmpv6 --icmpv6-type 128
-p 58 --icmpv6-type 129/0
-p ipv6-icmp -m icmp6 --icmpv6-type packet-too-big
-p ipv6-icmp -m icmpv6 --icmpv6-type 1/4
-p ipv6-icmp -m ipv6-icmp --icmpv6-type no-route
-p ipv6-icmp --icmpv6-type neighbour-solicitation
-p ipv6-icmp --icmpv6-type neighbor-advertisement
-p ipv6-icmp --icmpv6-type router-adv
-p ipv6-icmp ! --icmpv6-type redirect
-p ipv6-icmp ! --icmpv6-type 4/2
-m icmp6 -p icmpv6 --icmpv6-type ttl-exceeded
-p icmpv6 --icmp 135

# The protocol is called mobility-header, the match mh: only -p mh implies it.
== mh 6 filter INPUT
-p mobility-header -m mh
-p mh --mh-type binding-update
-p 135 -m mh --mh-type 1:4
-p mobility-header -m mh --mh-type brr:cot
-p mobility-header -m mh ! --mh-type binding-error
"""

# --- IPv6 extension headers ----------------------------------------------------------------------

_EXTENSION_HEADERS: Final = r"""
== dst 6 filter INPUT
-m dst
-m dst ! --dst-len 16
-m dst --dst-opts 4:2,1:3,201
-m dst --dst-len 24 --dst-opts 5

== hbh 6 filter INPUT
-m hbh
-m hbh ! --hbh-len 16
-m hbh --hbh-opts 5:2,1:4,194:4
-m hbh --hbh-len 40 --hbh-opts 194

== frag 6 filter INPUT
-m frag
-m frag --fragid 7
-m frag ! --fragid 10:20
-m frag --fraglen 8
-m frag ! --fraglen 9 --fragres
-m frag --fragfirst --fragmore
-m frag --fraglast

== rt 6 filter INPUT
-m rt
-m rt --rt-type 2
-m rt ! --rt-type 0 --rt-segsleft 1
-m rt ! --rt-segsleft 2:5 --rt-len 24
-m rt ! --rt-len 16
-m rt --rt-type 0 --rt-0-res
-m rt --rt-type 0 --rt-0-addrs 2001:db8::1,2001:db8::2
-m rt --rt-type 0 --rt-0-addrs 2001:db8::3 --rt-0-not-strict

== srh 6 filter INPUT
-m srh
-m srh --srh-next-hdr 41
-m srh ! --srh-next-hdr 6
-m srh --srh-hdr-len-eq 4
-m srh --srh-hdr-len-gt 2 --srh-segs-left-lt 3
-m srh --srh-hdr-len-lt 9 --srh-segs-left-gt 0
-m srh --srh-segs-left-eq 1 --srh-last-entry-eq 2
-m srh --srh-last-entry-gt 1
-m srh --srh-last-entry-lt 6 --srh-tag 77
-m srh ! --srh-hdr-len-eq 1 ! --srh-segs-left-eq 5 ! --srh-last-entry-eq 4 ! --srh-tag 9
-m srh ! --srh-hdr-len-gt 8 ! --srh-segs-left-gt 4 ! --srh-last-entry-gt 3
-m srh ! --srh-hdr-len-lt 2 ! --srh-segs-left-lt 1 ! --srh-last-entry-lt 1
-m srh --srh-psid 2001:db8::/64 --srh-nsid 2001:db8:1::5 --srh-lsid fd00::/8
-m srh ! --srh-psid 2001:db8::7 ! --srh-nsid fd01::/16 ! --srh-lsid 2001:db8:2::/48

== ipv6header 6 filter INPUT
-m ipv6header --header hop,dst,route,frag,auth,esp,none,prot
-m ipv6header --header hop-by-hop,ipv6-opts,ipv6-route,ipv6-frag,ah,ipv6-nonxt,protocol
-m ipv6header --header 60,43,44,51,50 --soft
-m ipv6header ! --header frag

== eui64 6 filter INPUT
-m eui64 -j ACCEPT
== eui64 6 mangle PREROUTING
-m eui64 -i eth0 -j DROP
"""

# --- Matches on the packet -----------------------------------------------------------------------

_PACKETS: Final = r"""
== multiport 46 filter INPUT
-p tcp -m multiport --dports 22,80,443
-p tcp -m multiport --sports 1024:65535
-p udp -m multiport ! --ports domain,ntp,4500:4510
== multiport 4 filter INPUT
-p tcp -m multiport --destination-ports http,https,8080
-p udp -m multiport --source-ports 53
-p tcp -m multiport ! --dports 1:1023,6000:6010
-p tcp -m multiport ! --sports 25
-p sctp -m multiport --dports 2905,2906
-p dccp -m multiport --dports 5001
-p udplite -m multiport --dports 5002,5003
-p 6 -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15
-p tcp -m multiport --dports 80,443 -m multiport --sports 1024:65535
-p tcp -m multiport --dports 80 -m tcp --syn
# Short for --dports, as long as no tcp match has brought --dport.
-p tcp -m multiport --dport 80
-p tcp -m tcp --syn -m multiport --dports 80 --dport 81
-m multiport -p tcp --dports 83

== length 46 filter INPUT
-m length --length 64
-m length ! --length 1:1500
== length 4 filter INPUT
-m length --length :128
-m length --len=1400:

== dscp 46 filter INPUT
-m dscp --dscp 0x2e
-m dscp ! --dscp-class AF41
== dscp 4 filter INPUT
-m dscp ! --dscp 63
-m dscp --dscp-class cs3

== tos 46 filter INPUT
-m tos --tos 0x10
-m tos --tos Minimize-Delay
== tos 4 filter INPUT
-m tos --tos 0x08/0x1c
-m tos --tos Maximize-throughput
-m tos --tos Normal-Service
-m tos ! --tos 4
-m tos ! --tos Minimize-Cost

== ttl 4 filter INPUT
-m ttl --ttl-eq 64
-m ttl ! --ttl-eq 1
-m ttl --ttl-lt 10
-m ttl --ttl-gt 200
-m ttl --ttl 255

== hl 6 filter INPUT
-m hl --hl-eq 64
-m hl ! --hl-eq 1
-m hl --hl-lt 10
-m hl --hl-gt 200
-m hl --hl 255

== ecn 46 filter INPUT
-p tcp -m ecn --ecn-tcp-ece --ecn-ip-ect 1
== ecn 4 filter INPUT
-p tcp -m ecn --ecn-tcp-cwr
-p tcp -m ecn ! --ecn-tcp-cwr ! --ecn-tcp-ece
-m ecn ! --ecn-ip-ect 0

== tcpmss 46 filter INPUT
-p tcp -m tcpmss --mss 536
-p tcp --syn -m tcpmss ! --mss 1400:1460
== tcpmss 4 filter INPUT
-p tcp -m tcpmss --mss 9000:

== iprange 4 filter INPUT
-m iprange --src-range 10.0.0.5-10.0.0.9
-m iprange --dst-range 192.0.2.1-192.0.2.20
-m iprange ! --src-range 10.1.0.0-10.1.0.255 ! --dst-range 10.2.0.0-10.2.0.255
-m iprange --src-range 10.0.0.1
-m iprange --src-range 10.0.0.9-10.0.0.5
== iprange 6 filter INPUT
-m iprange --src-range 2001:db8::5-2001:db8::9
-m iprange ! --src-range ::1-::9 --dst-range fe80::1

== mac 46 filter INPUT
-m mac --mac-source 02:00:5e:10:00:01
== mac 4 mangle PREROUTING
-m mac ! --mac-source 2:0:5E:1:A:b

== pkttype 46 filter INPUT
-m pkttype --pkt-type unicast
== pkttype 4 filter INPUT
-m pkttype --pkt-type broadcast
-m pkttype --pkt-type multicast
-m pkttype --pkt-type HOST
-m pkttype ! --pkt-type bcast

== addrtype 46 filter INPUT
-m addrtype --src-type LOCAL
-m addrtype --dst-type UNICAST,LOCAL,MULTICAST
-m addrtype ! --src-type UNSPEC ! --dst-type ANYCAST
-m addrtype --dst-type local --limit-iface-in
== addrtype 4 filter INPUT
-m addrtype --dst-type BROADCAST
-m addrtype --src-type THROW,NAT,XRESOLVE --dst-type blackhole,unreachable,prohibit
== addrtype 46 filter OUTPUT
-m addrtype --src-type LOCAL --limit-iface-out

== string 46 filter INPUT
-m string --string needle --algo bm
-m string --algo bm --hex-string "|de ad be ef|"
== string 4 filter INPUT
-m string --algo kmp --string "GET /index.html"
-m string --algo bm ! --string "quoted \"word\" inside"
-m string --algo bm --string "back\\slash"
-m string --algo kmp --string "x y " --from 20 --to 200
-m string --algo bm --string NEEDLE --icase
-m string --algo kmp --hex-string "|0D0A|Host: |00|"
-m string --algo bm ! --hex-string "|ff|" --icase
-m string --algo bm --hex-string "a\\|b"
-m string --algo bm --string "$(reboot) `id` 'x' ; &"
-m string --algo=bm --string=--dash
-m string --algo bm --string one -m string --algo bm ! --string two

== u32 46 filter INPUT
-m u32 --u32 "6&0xFF=1"
== u32 4 filter INPUT
-m u32 --u32 "0>>22&0x3C@4>>24=0x50,0x100:0x1ff&&2&0x7F=3"
-m u32 ! --u32 "0&0xF0000000=0x40000000"
-m u32 --u32 "4<<8@0=0:9"

== bpf 46 filter INPUT
-m bpf --bytecode "4,48 0 0 9,21 0 1 17,6 0 0 262144,6 0 0 0" -j DROP
== bpf 46 filter INPUT
++ bpf /run/corpus/program
-m bpf --object-pinned /run/corpus/program

== osf 4 filter INPUT
-p tcp -m osf --genre Linux
-p tcp -m osf ! --genre Windows --ttl 0
-p tcp -m osf --genre unknown --ttl 2 --log 1

== time 46 filter INPUT
-m time --timestart 09:00 --timestop 17:30 --weekdays Mon,Tue,Wed,Thu,Fri
== time 4 filter INPUT
-m time --timestart 22:00:01 --timestop 06:00 --contiguous
-m time --datestart 2026-01-01 --datestop 2027-12-31T23:59:59
-m time --datestart 2030 --datestop 2031-06
-m time --datestart 2030-02-03T04:05 --utc
-m time --weekdays 6,7 --kerneltz
-m time ! --weekdays Sa,Su
-m time --monthdays 1,15,31
-m time ! --monthdays 13 --localtz
-m time
-m time --weekdays Mon -m time ! --monthdays 1

== statistic 46 filter INPUT
-m statistic --mode random --probability 0.33333333349
-m statistic --mode nth --every 3 --packet 0
== statistic 4 filter INPUT
-m statistic --mode random ! --probability 1
-m statistic --mode random --probability 1e-3
-m statistic --mode nth ! --every 10 --packet 9
-m statistic --mode nth --every 4 --packet 1 -m statistic --mode random --probability 0.1

== quota 46 filter INPUT
-m quota --quota 1048576
== quota 4 filter INPUT
-m quota ! --quota 10
-m quota --quota 18446744073709551615

== limit 46 filter INPUT
-m limit
-m limit --limit 5/sec --limit-burst 10 -j ACCEPT
== limit 4 filter INPUT
-m limit --limit 1/second
-m limit --limit 3/minute
-m limit --limit 100/h
-m limit --limit 10/day
-m limit --limit 10000/s --limit-burst 10000
-m limit --limit 7
-mlimit --limit 1/min -m limit --limit 20/hour --limit-burst 3
-m limit -j ACCEPT --limit 2/sec
-m limit -m tcp -p tcp --limit 6/min --syn --limit-b 2

== comment 46 filter INPUT
-m comment --comment plain
-m comment --comment "with spaces in it"
-m comment --comment "a \"quoted\" b"
== comment 4 filter INPUT
-m comment --comment "it's a back\\slash"
-m comment --comment bare\slash
-m comment --comment "dropped back\slash"
-m comment --comment 'single
-m comment --comment "#not-a-comment"
-m comment --comment pre"fix and quotes"
-m comment --comment "-j"
-m comment --comment --dport
-m comment --comment !
-m comment --comment=equals
-m comment --comment ""
-m comment --comment "  blank ends  "
-m comment --comment "$HOME;`id`|&<>*?[]{}()"
-m comment --comment "äöü ☃"
-m comment --comment one -m comment --comment two
-j ACCEPT -m comment --comment "behind the target"
"""

# --- Matches on connections and counters ---------------------------------------------------------

_CONNECTIONS: Final = r"""
== conntrack 46 filter INPUT
-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-m conntrack ! --ctstate INVALID
-m conntrack --ctproto tcp --ctorigdstport 80
-m conntrack --ctdir ORIGINAL --ctstatus ASSURED,CONFIRMED
== conntrack 4 filter INPUT
-m conntrack --ctstate UNTRACKED
-m conntrack --ctstate SNAT,DNAT,NEW
-m conntrack --ctstate est,rel
-m conntrack ! --ctproto 17
-m conntrack --ctorigsrcport 1024:65535 --ctreplsrcport 443 --ctrepldstport 1024:
-m conntrack ! --ctorigsrcport 1 ! --ctorigdstport 2:3 ! --ctreplsrcport 4 ! --ctrepldstport ssh
-m conntrack --ctstatus expected,seen_reply
-m conntrack ! --ctstatus NONE
-m conntrack --ctexpire 30
-m conntrack ! --ctexpire 10:20
-m conntrack --ctexpire 60:
-m conntrack --ctstate NEW -m conntrack --ctdir reply
-m conntrack --ctorigsrc 10.0.0.1 --ctorigdst 10.0.0.0/8
-m conntrack --ctreplsrc 192.0.2.0/255.255.255.0 --ctrepldst 192.0.2.7
-m conntrack ! --ctorigsrc 10.0.0.1 ! --ctorigdst 10.0.0.2 ! --ctreplsrc 10.0.0.3 \
    ! --ctrepldst 10.0.0.4
== conntrack 6 filter INPUT
-m conntrack --ctorigsrc 2001:db8::1 --ctorigdst 2001:db8::/32
-m conntrack --ctreplsrc fd00::/8 ! --ctrepldst ::1

== state 46 filter INPUT
-m state --state ESTABLISHED,RELATED -j ACCEPT
-m state ! --state INVALID,UNTRACKED
== state 4 filter INPUT
-m state --state new -p tcp --syn

== connmark 46 mangle PREROUTING
-m connmark --mark 1
-m connmark ! --mark 0x10/0xff
== connmark 4 mangle PREROUTING
-m connmark ! --mark 0xffffffff
-m mark --mark 1 -m connmark --mark 2

== mark 46 filter INPUT
-m mark --mark 0x10/0xff
-m mark ! --mark 1
== mark 4 filter INPUT
-m mark --mark 010
-m mark ! --mark 4294967295
-m mark ! --mark 0/0xf0
-m mark --mark 1 -m mark ! --mark 2/2
-m connmark --mark 3 -m mark --mark 4

== connbytes 46 filter INPUT
-m connbytes --connbytes 1000:2000 --connbytes-dir original --connbytes-mode bytes
== connbytes 4 filter INPUT
-m connbytes --connbytes 10 --connbytes-dir reply --connbytes-mode packets
-m connbytes ! --connbytes 5: --connbytes-dir both --connbytes-mode avgpkt
-m connbytes --connbytes-mode bytes --connbytes-dir both --connbytes :77

== connlabel 46 filter INPUT
-m connlabel --label 3
== connlabel 4 filter INPUT
-m connlabel ! --label 127
-m connlabel ! --label 0x10 --set

== connlimit 46 filter INPUT
-p tcp --syn -m connlimit --connlimit-above 10
-m connlimit --connlimit-upto 5 --connlimit-mask 24 --connlimit-saddr
== connlimit 4 filter INPUT
-m connlimit ! --connlimit-above 3 --connlimit-daddr
-m connlimit ! --connlimit-upto 4 --connlimit-mask 0
-m connlimit --connlimit-above 9 --connlimit-mask 255.255.0.0
== connlimit 6 filter INPUT
-m connlimit --connlimit-upto 9 --connlimit-mask 64 --connlimit-daddr

== helper 46 filter INPUT
-m helper --helper ftp
== helper 4 filter INPUT
-m helper ! --helper sip

== cluster 46 mangle PREROUTING
-m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 0xdead
== cluster 4 mangle PREROUTING
-m cluster --cluster-total-nodes 4 ! --cluster-local-node 3 --cluster-hash-seed 7
-m cluster --cluster-total-nodes 8 --cluster-local-nodemask 0x0a --cluster-hash-seed 1
-m cluster --cluster-total-nodes 8 ! --cluster-local-nodemask 3 --cluster-hash-seed 1

== hashlimit 46 filter INPUT
-m hashlimit --hashlimit-upto 10/sec --hashlimit-name h01
-m hashlimit --hashlimit-above 5/min --hashlimit-burst 7 --hashlimit-mode srcip \
    --hashlimit-srcmask 24 --hashlimit-name h02
-m hashlimit --hashlimit-upto 4/minute --hashlimit-mode dstip --hashlimit-dstmask 16 \
    --hashlimit-name h03
-m hashlimit --hashlimit-upto 512kb/s --hashlimit-mode srcip --hashlimit-name h04
== hashlimit 4 filter INPUT
-m hashlimit ! --hashlimit-upto 3/hour --hashlimit-mode dstip,dstport --hashlimit-name h05
-m hashlimit ! --hashlimit-above 2/day --hashlimit-mode srcip,srcport --hashlimit-name h06
-m hashlimit --hashlimit 9/second --hashlimit-mode srcip,dstip,srcport,dstport --hashlimit-name h07
-m hashlimit --hashlimit-upto 1/sec --hashlimit-htable-size 64 --hashlimit-htable-max 1000 \
    --hashlimit-htable-gcinterval 2000 --hashlimit-htable-expire 30000 --hashlimit-name h08
-m hashlimit --hashlimit-above 2mb/s --hashlimit-burst 4mb --hashlimit-name h09
-m hashlimit --hashlimit-above 1000b/s --hashlimit-burst 64kb --hashlimit-name h10
-m hashlimit --hashlimit-above 20/sec --hashlimit-rate-match --hashlimit-name h11
-m hashlimit --hashlimit-upto 30/sec --hashlimit-rate-match --hashlimit-rate-interval 5 \
    --hashlimit-name h12
-m hashlimit --hashlimit-upto 1000000/sec --hashlimit-burst 10 --hashlimit-name h13
-m hashlimit --hashlimit-upto 1/sec --hashlimit-name h14 \
    -m hashlimit --hashlimit-above 9/sec --hashlimit-mode srcip --hashlimit-name h15

== recent 46 filter INPUT
-m recent --set
-m recent ! --rcheck --seconds 60 --hitcount 4 --name r01 --rsource
== recent 4 filter INPUT
-m recent ! --set --name r02 --rdest
-m recent --rcheck --rttl --name r03
-m recent --update --seconds 30 --reap --name r04
-m recent ! --update --hitcount 3 --rttl --name r05
-m recent --remove --name r06 --rdest
-m recent ! --remove --name r07
-m recent --set --name r08 -m recent --update --seconds 5 --name r09
-m recent --set --name r10 --mask 255.255.255.0
== recent 6 filter INPUT
-m recent --set --name r11 --mask ffff:ffff:ffff:ffff::

== nfacct 46 filter INPUT
++ nfacct web-in
-m nfacct --nfacct-name web-in

== rateest 46 filter FORWARD
++ rule INPUT -j RATEEST --rateest-name wan --rateest-interval 250ms --rateest-ewmalog 500ms
++ rule INPUT -j RATEEST --rateest-name lan --rateest-interval 500ms --rateest-ewmalog 4s
-m rateest --rateest wan --rateest-lt --rateest-bps 1mbit
-m rateest --rateest1 wan ! --rateest-gt --rateest-pps --rateest2 lan
== rateest 4 filter FORWARD
++ rule INPUT -j RATEEST --rateest-name wan --rateest-interval 250ms --rateest-ewmalog 500ms
++ rule INPUT -j RATEEST --rateest-name lan --rateest-interval 500ms --rateest-ewmalog 4s
-m rateest --rateest1 wan --rateest-gt --rateest-pps 100
-m rateest --rateest wan ! --rateest-eq --rateest-pps2 7
-m rateest --rateest wan --rateest-eq --rateest-bps2 8kbit
-m rateest --rateest1 wan --rateest-lt --rateest-bps --rateest2 lan
-m rateest --rateest-delta --rateest wan --rateest-bps1 2mbit --rateest-gt --rateest-bps2 1mbit
-m rateest --rateest-delta --rateest1 wan --rateest-pps1 500 --rateest-lt --rateest2 lan \
    --rateest-pps2 600
"""

# --- Matches on where a packet comes from, and on sets -------------------------------------------

_ORIGINS: Final = r"""
== owner 46 filter OUTPUT
-m owner --uid-owner root --gid-owner 0
-m owner ! --uid-owner 1000-1999
== owner 4 filter OUTPUT
-m owner --uid-owner 5:9
-m owner --gid-owner 100-200 --suppl-groups
-m owner ! --gid-owner nogroup
-m owner --socket-exists
-m owner ! --socket-exists
== owner 4 mangle POSTROUTING
-m owner --uid-owner nobody -j DROP

== cgroup 46 filter OUTPUT
-m cgroup --cgroup 1
== cgroup 4 filter OUTPUT
-m cgroup ! --cgroup 0x100001
-m cgroup --path /
-m cgroup ! --path "/"

== cpu 46 filter INPUT
-m cpu --cpu 0
== cpu 4 filter INPUT
-m cpu ! --cpu 3

== devgroup 46 filter FORWARD
-m devgroup --src-group 1
== devgroup 4 filter FORWARD
-m devgroup --dst-group 0x2/0xf
-m devgroup ! --src-group 3 ! --dst-group 4/0x4
-m devgroup --src-group default

== physdev 46 filter FORWARD
-m physdev --physdev-in eth0
== physdev 4 filter FORWARD
-m physdev --physdev-out veth+ --physdev-is-bridged
-m physdev ! --physdev-in tap+ ! --physdev-is-bridged
-m physdev --physdev-is-bridged ! --physdev-out eth1
-m physdev --physdev-is-bridged --physdev-is-out ! --physdev-is-in
-m physdev --physdev-is-bridged ! --physdev-is-out
== physdev 4 mangle PREROUTING
-m physdev --physdev-in eth0 --physdev-is-in -j ACCEPT

== policy 46 filter INPUT
-m policy --dir in --pol ipsec --reqid 7 --proto esp
-m policy --dir in --pol ipsec --strict --spi 0x200 --next --proto 50 --mode transport
== policy 4 filter INPUT
-m policy --dir in --pol none
# Short for --protocol elsewhere, here an option of its own.
-m policy --dir in --pol ipsec --proto esp --protocol tcp
-m policy --dir in --pol ipsec ! --reqid 7 ! --proto ah ! --spi 0x100 ! --mode transport
-m policy --dir in --pol ipsec --strict --reqid 1 --next --reqid 2 --next ! --reqid 3
-m policy --dir in --pol ipsec --mode tunnel --tunnel-src 10.0.0.1 --tunnel-dst 10.0.1.0/24
-m policy --dir in --pol ipsec --mode tunnel ! --tunnel-src 10.0.0.0/8 ! --tunnel-dst 10.9.9.9
== policy 6 filter INPUT
-m policy --dir in --pol ipsec --strict --mode tunnel --tunnel-src 2001:db8::1 \
    --tunnel-dst 2001:db8::/64 --next --proto ipcomp
== policy 46 filter OUTPUT
-m policy --dir out --pol ipsec

== realm 4 filter INPUT
-m realm --realm 5
-m realm --realm 0x10/0xf0
-m realm ! --realm 7
-m realm --realm cosmos

== rpfilter 46 raw PREROUTING
-m rpfilter --invert -j DROP
== rpfilter 46 mangle PREROUTING
-m rpfilter
-m rpfilter --loose --validmark --accept-local

== socket 46 mangle PREROUTING
-m socket
-m socket --transparent --nowildcard --restore-skmark -j ACCEPT
== socket 4 mangle INPUT
-p udp -m socket --transparent
-m socket --nowildcard

== ipvs 46 filter INPUT
-m ipvs --ipvs
-m ipvs --vproto tcp --vport http
== ipvs 4 filter INPUT
-m ipvs ! --ipvs
-m ipvs ! --vproto 17 ! --vport 53
-m ipvs --vdir ORIGINAL --vmethod MASQ
-m ipvs --vdir reply ! --vmethod GATE
-m ipvs --vmethod IPIP --vportctl 21
-m ipvs ! --vportctl ftp
-m ipvs --vaddr 10.0.0.1
-m ipvs ! --vaddr 10.0.0.0/24
== ipvs 6 filter INPUT
-m ipvs --vaddr 2001:db8::1

== set 46 filter INPUT
++ ipset create hosts{f} hash:ip family {inet} timeout 300 counters skbinfo
++ ipset create flows{f} hash:ip,port,ip family {inet} counters
++ ipset create nets{f} hash:net family {inet}
++ ipset create ports bitmap:port range 0-65535
++ ipset create lists list:set
-m set --match-set hosts{f} src
-m set ! --match-set flows{f} src,dst,dst
-m set --match-set ports dst -p tcp
-m set --match-set lists src,src
-m set --match-set=hosts{f} src -j DROP
-m set --set hosts{f} src
-m set --match-set nets{f} src --return-nomatch
-m set --match-set hosts{f} src ! --update-counters ! --update-subcounters
-m set --match-set hosts{f} src --update-counters --update-subcounters
-m set --match-set hosts{f} src --packets-eq 5 --bytes-gt 1000
-m set --match-set hosts{f} src ! --packets-eq 5 ! --bytes-eq 6
-m set --match-set hosts{f} src --packets-lt 9 --bytes-eq 60
-m set --match-set hosts{f} src --packets-gt 4 --bytes-lt 0x100
-m set --match-set hosts{f} src -m set ! --match-set nets{f} dst -j ACCEPT

== SET 46 filter INPUT
++ ipset create hosts{f} hash:ip family {inet} timeout 300 counters skbinfo
++ ipset create flows{f} hash:ip,port,ip family {inet} counters
-j SET --add-set hosts{f} src
-j SET --add-set hosts{f} dst --exist --timeout 60
-j SET --del-set flows{f} src,dst,dst
-j SET --add-set flows{f} src,src,dst --del-set hosts{f} dst

== SET 46 mangle FORWARD
++ ipset create hosts{f} hash:ip family {inet} timeout 300 counters skbinfo
-j SET --map-set hosts{f} src --map-mark
-j SET --map-set hosts{f} dst --map-mark --map-prio --map-queue --add-set hosts{f} src
"""

# --- Targets -------------------------------------------------------------------------------------

_TARGETS: Final = r"""
== REJECT 4 filter INPUT
-j REJECT
-j REJECT --reject-with icmp-net-unreachable
-j REJECT --reject-with icmp-host-unreachable
-j REJECT --reject-with icmp-proto-unreachable
-j REJECT --reject-with icmp-port-unreachable
-j REJECT --reject-with icmp-net-prohibited
-j REJECT --reject-with icmp-host-prohibited
-j REJECT --reject-with icmp-admin-prohibited
-j REJECT --reject-with admin-prohib
-p tcp -j REJECT --reject-with tcp-reset
-p tcp -j REJECT --reject=tcp-rst
== REJECT 6 filter INPUT
-j REJECT
-j REJECT --reject-with icmp6-no-route
-j REJECT --reject-with icmp6-adm-prohibited
-j REJECT --reject-with icmp6-addr-unreachable
-j REJECT --reject-with addr-unreach
-j REJECT --reject-with icmp6-port-unreachable
-j REJECT --reject-with icmp6-policy-fail
-j REJECT --reject-with icmp6-reject-route
-p tcp -j REJECT --reject-with tcp-reset

== LOG 46 filter INPUT
-j LOG
-j LOG --log-prefix "x y " --log-level warning
-j LOG --log-tcp-sequence --log-tcp-options --log-ip-options --log-uid --log-macdecode
== LOG 4 filter INPUT
-j LOG --log-prefix "a \"b\" c: " --log-level 7
-j LOG --log-level emerg
-j LOG --log-level debug --log-uid
-j LOG --log-prefix "no more than twenty-nine bytes are kept of this"
-p tcp -j LOG --log-pre=syn: --syn

== NFLOG 46 filter INPUT
-j NFLOG --nflog-group 5 --nflog-prefix "in drop "
== NFLOG 4 filter INPUT
-j NFLOG
-j NFLOG --nflog-group 65535 --nflog-threshold 20
-j NFLOG --nflog-size 128
-j NFLOG --nflog-range 64

== NFQUEUE 46 filter INPUT
-j NFQUEUE --queue-num 7 --queue-bypass
== NFQUEUE 4 filter INPUT
-j NFQUEUE
-j NFQUEUE --queue-balance 0:3
-j NFQUEUE --queue-cpu-fanout --queue-bypass --queue-balance 1:65534
== NFQUEUE 4 mangle PREROUTING
-j NFQUEUE --queue-num 65535 --queue-by

== AUDIT 46 filter INPUT
-j AUDIT --type drop
== AUDIT 4 filter INPUT
-j AUDIT --type accept
-j AUDIT --type reject

== TRACE 46 raw PREROUTING
-p tcp --dport 80 -j TRACE
== TRACE 4 raw OUTPUT
-o lo -j TRACE

== TEE 4 mangle PREROUTING
-j TEE --gateway 192.0.2.1
-j TEE --gateway 192.0.2.1 --oif eth0
== TEE 6 mangle PREROUTING
-j TEE --gateway 2001:db8::1 --oif eth0

== IDLETIMER 46 filter INPUT
-j IDLETIMER --timeout 30 --label corpus-idle
== IDLETIMER 4 filter INPUT
-j IDLETIMER --timeout 60 --label corpus-alarm --alarm

== LED 46 filter INPUT
-j LED --led-trigger-id corpus1
== LED 4 filter INPUT
-j LED --led-trigger-id corpus2 --led-delay 500 --led-always-blink
-j LED --led-trigger-id corpus3 --led-delay inf

== RATEEST 46 filter INPUT
-j RATEEST --rateest-name e1 --rateest-interval 250ms --rateest-ewmalog 0.5s
== RATEEST 4 filter INPUT
-j RATEEST --rateest-name e2 --rateest-interval 8s --rateest-ewmalog 64sec
-j RATEEST --rateest-name e3 --rateest-interval 1000000us --rateest-ewmalog 2000000

== SYNPROXY 46 filter INPUT
-p tcp -m conntrack --ctstate INVALID,UNTRACKED -j SYNPROXY --sack-perm --timestamp --wscale 7 \
    --mss 1460
== SYNPROXY 4 filter INPUT
-p tcp --syn -j SYNPROXY
-p tcp -j SYNPROXY --mss 536 --ecn

== ULOG 4 filter INPUT
-j ULOG
-j ULOG --ulog-nlgroup 5 --ulog-prefix "x y " --ulog-cprange 100 --ulog-qthreshold 10

== CLUSTERIP 4 filter INPUT
-d 10.0.0.9 -i lo -j CLUSTERIP --new --hashmode sourceip --clustermac 01:00:5e:00:00:09 \
    --total-nodes 2 --local-node 1 --hash-init 7
-d 10.0.0.8 -i lo -j CLUSTERIP --new --hashmode sourceip-sourceport-destport \
    --clustermac 01:00:5e:00:00:08 --total-nodes 3 --local-node 2

== MARK 46 mangle PREROUTING
-j MARK --set-mark 1
-j MARK --set-xmark 0xff/0xffff
== MARK 4 mangle PREROUTING
-j MARK --set-mark 0x10/0xf0
-j MARK --set-m=2
-j MARK --and-mark 0xffff0000
-j MARK --xor-mark 1
== MARK 4 filter INPUT
-m mark --mark 0 -j MARK --or-mark 4

== CONNMARK 46 mangle PREROUTING
-j CONNMARK --save-mark
-m connmark --mark 1 -j CONNMARK --restore-mark --nfmask 0xff --ctmask 0xff00
== CONNMARK 4 mangle PREROUTING
-j CONNMARK --restore-mark --mask 0xf
-j CONNMARK --set-mark 5
-j CONNMARK --set-mark 5/0xf
-j CONNMARK --set-xmark 0x10/0xff
-j CONNMARK --and-mark 0xf0
-j CONNMARK --or-mark 0x1
-j CONNMARK --xor-mark 0x2
-j CONNMARK --set-mark 1 --left-shift-mark 8
-j CONNMARK --restore-mark --right-shift-mark 16

== CONNSECMARK 46 mangle PREROUTING
-j CONNSECMARK --save
== CONNSECMARK 4 security INPUT
-j CONNSECMARK --restore
== SECMARK 46 security INPUT
-j SECMARK --selctx system_u:object_r:httpd_packet_t:s0

== CLASSIFY 46 mangle POSTROUTING
-j CLASSIFY --set-class 1:10
== CLASSIFY 4 mangle POSTROUTING
-o eth0 -j CLASSIFY --set-class ffff:a

== CHECKSUM 46 mangle POSTROUTING
-p udp --sport 67 -j CHECKSUM --checksum-fill

== DSCP 46 mangle PREROUTING
-j DSCP --set-dscp 46
== DSCP 4 mangle PREROUTING
-j DSCP --set-dscp-class AF11
-j DSCP --set-dscp-class be

== TOS 46 mangle PREROUTING
-j TOS --set-tos 0x10
== TOS 4 mangle PREROUTING
-j TOS --set-tos 0x08/0x3f
-j TOS --set-tos Minimize-cost
-j TOS --and-tos 0xf0
-j TOS --or-tos 4
-j TOS --xor-tos 0x02

== TTL 4 mangle PREROUTING
-j TTL --ttl-set 64
-j TTL --ttl-dec 1
-j TTL --ttl-inc 2
== HL 6 mangle PREROUTING
-j HL --hl-set 64
-j HL --hl-dec 1
-j HL --hl-inc 2

== ECN 4 mangle POSTROUTING
-p tcp -j ECN --ecn-tcp-remove
-p tcp -j ECN --ecn-tcp-cwr 1 --ecn-tcp-ece 0
-j ECN --ecn-ip-ect 2

== TCPMSS 46 mangle FORWARD
-p tcp --syn -j TCPMSS --clamp-mss-to-pmtu
-p tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1360
== TCPMSS 4 mangle FORWARD
-p tcp --tcp-flags SYN SYN -o ppp+ -j TCPMSS --clamp

== TCPOPTSTRIP 46 mangle PREROUTING
-p tcp -j TCPOPTSTRIP --strip-options timestamp,md5,sack
== TCPOPTSTRIP 4 mangle PREROUTING
-p tcp -j TCPOPTSTRIP --strip-options=wscale,mss,sack-permitted,5,253
-p tcp -j TCPOPTSTRIP

== HMARK 46 mangle PREROUTING
-j HMARK --hmark-tuple src,dst --hmark-mod 10 --hmark-rnd 0xcafe
-j HMARK --hmark-src-prefix 24 --hmark-dst-prefix 16 --hmark-mod 8 --hmark-rnd 3
== HMARK 4 mangle PREROUTING
-j HMARK --hmark-tuple src,dst,sport,dport,proto --hmark-mod 4 --hmark-offset 100 --hmark-rnd 1
-j HMARK --hmark-tuple ct,src --hmark-mod 8 --hmark-rnd 2
-j HMARK --hmark-sport-mask 0xff00 --hmark-dport-mask 0xff --hmark-proto-mask 0xff \
    --hmark-src-prefix 32 --hmark-mod 5 --hmark-rnd 4
-j HMARK --hmark-sport 80 --hmark-dport 443 --hmark-src-prefix 8 --hmark-mod 5 --hmark-rnd 5
-j HMARK --hmark-spi 0x100 --hmark-spi-mask 0xffff --hmark-src-prefix 32 --hmark-mod 5 \
    --hmark-rnd 7

== CT 46 raw PREROUTING
-j CT --notrack
-p tcp --dport 21 -j CT --helper ftp
== CT 4 raw PREROUTING
-j CT --zone 7
-j CT --zone mark
-j CT --zone-orig 8
-j CT --zone-reply 9
-j CT --ctevents new,related,destroy,reply,assured
-j CT --ctevents protoinfo,helper,mark,natseqinfo,secmark --expevents new
== CT 46 raw OUTPUT
++ cttimeout patient{f} {f}
-p tcp -j CT --timeout patient{f}

== NOTRACK 46 raw PREROUTING
-p udp --dport 53 -j NOTRACK

== TPROXY 4 mangle PREROUTING
-p tcp -j TPROXY --on-port 8080
-p tcp --dport 80 -j TPROXY --on-port 3129 --on-ip 127.0.0.1 --tproxy-mark 0x1/0x1
-p udp -j TPROXY --on-port domain --tproxy-mark 7
== TPROXY 6 mangle PREROUTING
-p tcp -j TPROXY --on-port 3129 --on-ip ::1 --tproxy-mark 0x1/0x1

== SNAT 4 nat POSTROUTING
-o eth0 -j SNAT --to-source 198.51.100.1
-j SNAT --to-source 198.51.100.1-198.51.100.9 --persistent --random-fully
-p tcp -j SNAT --to-source 198.51.100.1:1024-65535 --random
-p udp -j SNAT --to-so=:5000-6000
-p icmp -j SNAT --to-source 198.51.100.1:1-9
== SNAT 6 nat POSTROUTING
-j SNAT --to-source 2001:db8::1-2001:db8::9 --persistent
-p tcp -j SNAT --to-source [2001:db8::1]:1024-65535 --random
-p tcp -j SNAT --to-source [2001:db8::1-2001:db8::9]:80 --random-fully
== SNAT 46 nat INPUT
-p tcp -j SNAT --to-source :1000-2000

== DNAT 4 nat PREROUTING
-i eth0 -j DNAT --to-destination 10.0.0.7
-j DNAT --to-destination 10.0.0.7-10.0.0.9 --persistent
-p tcp --dport 80 -j DNAT --to-destination 10.0.0.7:8080
-p tcp -j DNAT --to-destination 10.0.0.7:http
-p udp -j DNAT --to-destination 10.0.0.7:5000-5999/6000
-p sctp -j DNAT --to-destination 10.0.0.7:7-9 --random
== DNAT 6 nat PREROUTING
-j DNAT --to-destination 2001:db8::7-2001:db8::9 --persistent
-p tcp -j DNAT --to-destination [2001:db8::7]:8080
-p udp -j DNAT --to-destination [2001:db8::7]:5000-5999/6000 --random
== DNAT 46 nat OUTPUT
-p tcp -j DNAT --to-destination :8080

== MASQUERADE 46 nat POSTROUTING
-o ppp+ -j MASQUERADE --random
-p tcp -j MASQUERADE --to-ports 1024-65535
== MASQUERADE 4 nat POSTROUTING
-j MASQUERADE
-p 17 -j MASQUERADE --to=5000 --random-fully

== REDIRECT 46 nat PREROUTING
-p tcp --dport 80 -j REDIRECT --to-ports 3128
== REDIRECT 4 nat PREROUTING
-j REDIRECT
-p tcp -j REDIRECT --to-port 8000-8010 --random
-p udp -j REDIRECT --to-ports domain

== NETMAP 4 nat PREROUTING
-d 192.0.2.0/24 -j NETMAP --to 10.0.0.0/24
-j NETMAP --to 10.0.0.1
-j NETMAP --to 10.0.0.0/255.255.0.0
# --to is an option of both: it belongs to what came last.
-m string --algo bm --string x --to 99 -j NETMAP --to 10.1.0.0/16
-j NETMAP --to 10.1.0.0/16 -m string --algo bm --string x --to 99
== NETMAP 6 nat POSTROUTING
-s 2001:db8::/64 -j NETMAP --to fd00::/64

== SNPT 6 mangle POSTROUTING
-s fd00::/64 -j SNPT --src-pfx fd00::/64 --dst-pfx 2001:db8::/64
== DNPT 6 mangle PREROUTING
-d 2001:db8::/64 -j DNPT --src-pfx 2001:db8::/64 --dst-pfx fd00::/48
"""

# --- Refused in user space -----------------------------------------------------------------------

_BAD_HEADERS: Final = r"""
== standard 46 filter INPUT
-j NOSUCH => Couldn't load target `NOSUCH'
-j accept => Couldn't load target `accept'
-j NAT => Couldn't load target `NAT'
-g NOSUCH => goto 'NOSUCH' is not a chain
-j INPUT => failed
-m nosuch => Couldn't load match `nosuch'
-m a-match-name-of-thirty-letters => Invalid match name
-j A-TARGET-OF-TWENTY-NINE-LETTER => Invalid target name
-j "" => Invalid target name (too short)
-j "two words" => Invalid target name `two words'
--bogus => unknown option "--bogus"
-z => unknown option "-z"
-j => option "-j" requires an argument
-p tcp --dport => option "--dport" requires an argument
-j ACCEPT DROP => Bad argument `DROP'
# The closing quote ends the word.
-m comment --comment "a"b => Bad argument `b'
-j ACCEPT -- -p tcp => unknown arguments found on commandline
-I INPUT -j ACCEPT => Cannot use -I with -A
-j DROP -j ACCEPT => multiple -
-p tcp -p udp => multiple -
-c 1 2 -c 3 4 => multiple -
-p nosuchproto => unknown protocol "nosuchproto" specified
-p 256 => unknown protocol "256" specified
! -p 0 => rule would never match protocol
! -p all => rule would never match protocol
! -j DROP => cannot have ! before -
! -c 1 2 => cannot have ! before -
! -m tcp => unexpected ! flag before --match
! ! -p tcp => multiple consecutive ! not allowed
-p tcp ! => nothing appropriate following !
-p ! tcp => unknown protocol
-o eth0 => with INPUT
-i an-interface-too => must be shorter than
-i "" => Empty interface is likely to be undesired
-s no-such-host.invalid => host/network `no-such-host.invalid' not found
-n -j ACCEPT => with this command
-x => with this command
--line-numbers => with this command
-t nat -j ACCEPT => The -t option cannot be used in
-w -j ACCEPT => You cannot use `-w' from
-c 5 => requires packet and byte counter
-c a 1 => packet counter not numeric
-c 1 b => byte counter not numeric

== standard 4 filter INPUT
-s 10.0.0.0/33 => invalid mask `33' specified
-s 10.0.0.256 => host/network `10.0.0.256' not found
-s 2001:db8::1 => host/network `2001:db8::1' not found
! -s 10.0.0.1,10.0.0.2 => ! not allowed with multiple source or destination IP addresses
-s 10.0.0.1 -s 10.0.0.2 => multiple -
-f -f => multiple -

== standard 6 filter INPUT
-s 2001:db8::/129 => invalid mask `129' specified
-s 10.0.0.1 => host/network `10.0.0.1' not found
! -d ::1,::2 => ! not allowed with multiple source or destination IP addresses
-f -j DROP => is not supported in IPv6
-p icmp --icmp-type 8 => unknown option "--icmp-type"
-j TTL => Couldn't load target `TTL'

== standard 46 filter OUTPUT
-i eth0 => with OUTPUT
== standard 4 mangle PREROUTING
-o eth0 => with PREROUTING
== standard 4 nat POSTROUTING
-i eth0 => with POSTROUTING
== standard 46 nat PREROUTING
-j DROP => The "nat" table is not intended for filtering
== standard 46 filter A-CHAIN-OF-TWENTY-NINE-LETTER
-j ACCEPT => too long
== standard 46 filter NOSUCH
-j ACCEPT => failed
"""

_BAD_OPTIONS: Final = r"""
== matches 46 filter INPUT
--dport 80 => unknown option "--dport"
--dport 80 -p tcp => unknown option "--dport"
-p udp --syn => unknown option "--syn"
-p tcp --dport no-such-service => invalid port/service `no-such-service' specified
-m multiport --dports 80 -p tcp => multiport needs `-p tcp'
-m mark -m connmark --mark 1 => mark: option "--mark" must be specified
-m conntrack --ctstate BOGUS => Bad ctstate "BOGUS"
-m limit --limit 20000/sec => Rate too fast "20000/sec"

== matches 4 filter INPUT
-p udplite --dport 5 => unknown option "--dport"
-p tcp --dport 65536 => invalid port/service `65536' specified
-p tcp --dport 9:1 => invalid portrange (min > max)
-p tcp --dport ! 80 => invalid port/service `!' specified
-p tcp --dport 1 --dport 2 => Only one `--destination-port' allowed
-p tcp --syn --tcp-flags ALL SYN => Only one of `--syn' or `--tcp-flags'
-p tcp --tcp-flags SYN => requires two args
-p tcp --tcp-flags SYN,FOO SYN => Unknown TCP flag `FOO'
-p tcp --tcp-option 0 => Bad TCP option "0"
-p udp --dport 1:2:3 => Too many components for option
-p udp --dport no-such-service => Port "no-such-service" does not resolve to anything
-p sctp --chunk-types all NOSUCH => Unknown sctp chunk `NOSUCH'
-p sctp --chunk-types most DATA => Match type has to be one of
-p dccp --dccp-types NOSUCH => Unknown DCCP type `NOSUCH'
-p esp --espspi x => bad value for option "--espspi"
-p icmp --icmp-type nosuch => Unknown ICMP type `nosuch'
-p icmp --icmp-type host => Ambiguous ICMP type `host'
-p icmp -m icmp => option "--icmp-type" must be specified
-m multiport --dports 80 => multiport needs `-p tcp'
-p icmp -m multiport --dports 80 => multiport only works with
! -p tcp -m multiport --dports 80 => multiport only works with
-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16 => too many ports specified
-p tcp -m multiport --dports 9:1 => invalid portrange specified
-p tcp -m multiport --dports 1 --sports 2 => cannot be used together with
-p tcp -m multiport --dport 1 --sport 2 => cannot be used together with
# Both --dport and --dports begin like this.
-p tcp --syn -m multiport --dpor 80,81 => unknown option "--dpor"
-m limit --limit 0/sec => bad rate "0/sec"
-m limit --limit 5/fortnight => bad rate "5/fortnight"
-m limit --limit-burst 10001 => bad value for option "--limit-burst"
-m limit ! --limit 5/sec => cannot be inverted
-m limit --limit 1/s --limit 2/s => can only be used once
-m length => option "--length" must be specified
-m length --length 65536 => bad value for option "--length"
-m mark --mark 0x100000000 => option "--mark", or out of range
# The options of connmark came after those of mark, and the second -m mark brings no new ones.
-m mark --mark 1 -m connmark --mark 2 -m mark --mark 3 => connmark: option "--mark" can only be
-m conntrack => At least one option is required
-m conntrack --ctstatus BOGUS => Bad ctstatus "BOGUS"
-m conntrack ! --ctdir REPLY => cannot be inverted
-m state => option "--state" must be specified
-m comment ! --comment x => cannot be inverted
-m dscp --dscp 64 => bad value for option "--dscp"
-m dscp --dscp-class NOSUCH => Invalid DSCP value `NOSUCH'
-m dscp --dscp 1 --dscp-class EF => cannot be used together with
-m tos --tos Nonsense => Symbolic name "Nonsense" is unknown
-m ecn => some option required
-m ttl => You must specify one of
-m ttl --ttl-eq 256 => bad value for option "--ttl-eq"
-m ttl ! --ttl-lt 5 => cannot be inverted
-p tcp -m tcpmss --mss 9:1 => range
-m mac --mac-source 00:11:22:33:44 => Invalid MAC address specified
-m pkttype --pkt-type carrier-pigeon => Bad packet type 'carrier-pigeon'
-m addrtype => you must specify --src-type or --dst-type
-m addrtype --src-type NOSUCH => bad type "NOSUCH"
-m addrtype --src-type LOCAL --limit-iface-in --limit-iface-out => cannot be used together with
-m iprange --src-range 10.0.0.1-2001:db8::1 => Bad value for "--src-range" option: "2001:db8::1"
-m string --algo bm => You must specify `--string' or `--hex-string'
-m string --string x => option "--algo" must be specified
-m string --algo bm --hex-string "|0|" => Invalid hex block
-m string --algo bm --hex-string "|0x|" => Invalid hex char 'x'
-m u32 --u32 "0x" => u32: at char
-m bpf => is required
-m bpf --bytecode "2,6 0 0 1" => parsed program length is less than the encoded length
-m bpf --object-pinned /nonexistent => failed to get bpf object
-m time --timestart 25:00 => invalid time "25:00" specified
-m time --datestart 1969-01-01 => Invalid date "1969-01-01" specified
-m time --weekdays Xyz => Xyz is not a valid day specifier
-m time --monthdays 32 => 32 is not a valid day for --monthdays
-m time --timestart 01:00 --timestop 02:00 --contiguous => --contiguous only makes sense
-m time --utc --kerneltz => cannot be used together with
-m statistic --mode sometimes => Bad mode "sometimes"
-m statistic --mode random => --probability must be specified
-m statistic --mode random --probability 1.5 => bad value for option "--probability"
-m statistic --mode nth --every 3 => also requires "--packet"
-m quota --quota -1 => bad value for option "--quota"
-m connbytes --connbytes 1 --connbytes-dir up --connbytes-mode bytes => Unknown --connbytes-dir `up'
-m connlimit => You must specify
-m connlimit --connlimit-above 1 --connlimit-upto 2 => cannot be used together with
-m cluster --cluster-total-nodes 2 --cluster-hash-seed 1 => is missing
-m hashlimit --hashlimit-name x => You have to specify --hashlimit
-m hashlimit --hashlimit-upto 5/sec => option "--hashlimit-name" must be specified
-m hashlimit --hashlimit-upto 5/sec --hashlimit-mode planet --hashlimit-name x => planet
-m recent => you must specify one of `--set', `--rcheck'
-m recent --rcheck --reap => also requires "--seconds"
-m recent --set --rttl => cannot be used together with
-m owner --uid-owner no-such-user => no-such-user
-m owner --suppl-groups => you need to use --gid-owner first
-m physdev => no physdev option specified
-m devgroup => You must specify either '--src-group' or '--dst-group'
-m realm --realm nosuch => nosuch
-m policy --pol ipsec => neither --dir in nor --dir out specified
-m policy --dir in --pol ipsec --strict => empty policy element
-m policy --dir in --pol ipsec --proto tcp => protocol must be ah/esp/ipcomp
-m set => You must specify `--match-set' with proper arguments
-m set --match-set no-such-set src => Set no-such-set doesn't exist
-m set --match-set name-only => --match-set requires two args
-m set --match-set a-set-name-of-more-than-31-letters src => too long, max 31 characters
-m rpfilter ! --loose => cannot be inverted

== matches 4 filter INPUT
++ ipset create hosts6 hash:ip family inet6 timeout 300 counters skbinfo
-m set --match-set hosts6 src => is IPv6, which is not applicable

== matches 6 filter INPUT
-p icmpv6 --icmpv6-type nosuch => Unknown ICMPv6 type `nosuch'
-p mobility-header --mh-type 5 => unknown option "--mh-type"
-p mh --mh-type nosuch => Invalid MH type `nosuch'
-m hl => You must specify one of
-m rt --rt-0-res => `--rt-type 0' required before `--rt-0-res'
-m rt --rt-type 0 --rt-0-addrs nonsense => bad address: nonsense
-m ipv6header --header nosuch => unknown header `nosuch' specified
-m frag --fragmore --fraglast => cannot be used together with
-m dst --dst-opts 1:x => no valid digits in
-m srh --srh-tag 65536 => bad value for option "--srh-tag"

== targets 46 filter INPUT
-j ACCEPT --nosuch => unknown option "--nosuch"
-j LOG --log-level noisy => log level "noisy" unknown
-j REJECT --reject-with nosuch => unknown reject type "nosuch"
-j MASQUERADE --to-ports 80 -p tcp => Need TCP, UDP, SCTP or DCCP with port specification

== targets 4 filter INPUT
-j LOG --log-prefix "" => Argument must have a minimum length of 1 characters
-j LOG ! --log-uid => cannot be inverted
-j LOG --log-uid --log-uid => can only be used once
-j NFLOG --nflog-group 65536 => bad value for option "--nflog-group"
-j NFLOG --nflog-size 1 --nflog-range 2 => cannot be used together with
-j NFQUEUE --queue-balance 5:5 => 5
-j NFQUEUE --queue-num 1 --queue-cpu-fanout => also requires "--queue-balance"
-j AUDIT --type maybe => Bad action type value "maybe"
-j IDLETIMER --timeout 5 => option "--label" must be specified
-j TEE => option "--gateway" must be specified
-j TEE --gateway nosuch.invalid => getaddrinfo
-j RATEEST --rateest-name x --rateest-interval soon --rateest-ewmalog 1s => bad interval value
-j SET --exist => You must specify either
-j SET --add-set no-such-set src => Set no-such-set doesn't exist
-j MARK => is required
-j MARK --set-mark 1 --or-mark 2 => cannot be used together with
-j CONNMARK => No operation specified
-j CONNSECMARK => parameter required
-j CLASSIFY --set-class 1 => Bad class value "1"
-j CHECKSUM => option "--checksum-fill" must be specified
-j DSCP --set-dscp-class NOSUCH => Invalid DSCP value `NOSUCH'
-j TOS => An action is required
-j TTL --ttl-dec 0 => bad value for option "--ttl-dec"
-j ECN => An operation is required
-p tcp -j TCPMSS => At least one parameter is required
-p tcp -j TCPOPTSTRIP --strip-options 1 => Option value may not be 0 or 1
-p tcp -j TCPOPTSTRIP --strip-options 5,sack => Option "sack" already specified
-j HMARK --hmark-tuple src --hmark-mod 5 => --hmark-rnd is mandatory
-j HMARK --hmark-tuple shoe --hmark-mod 5 --hmark-rnd 1 => Bad type "shoe"
-j CT --zone 65536 => Cannot parse 65536 as a zone ID
-j CT --ctevents birth => Unknown event type "birth"
-j SNAT => option "--to-source" must be specified
-j SNAT --to-source nonsense => Bad IP address "nonsense"
-j SNAT --to-source :80 => Need TCP, UDP, SCTP or DCCP with port specification
-p tcp -j DNAT --to-destination :9-1 => Port range
-p tcp -j DNAT --to-destination :no-such-service => Port `no-such-service' not valid
-j DNAT --to-destination [10.0.0.1] => Invalid address format
-j DNAT --to-destination 10.0.0.1 --to-destination 10.0.0.2 => can only be used once
-p tcp -j REDIRECT --to-ports 80:81 => Invalid port:port syntax - use dash
-j NETMAP => option "--to" must be specified
-m string --algo bm --string x -j NETMAP --to 10.1.0.0/16 --to 99 => can only be used once
-j LED => option "--led-trigger-id" must be specified
-j SECMARK => option "--selctx" must be specified
-j CLUSTERIP --new => Invalid parameter combination
-j ULOG --ulog-nlgroup 33 => bad value for option "--ulog-nlgroup"

== targets 6 filter INPUT
-j HL => You must specify an action
-j SNPT --src-pfx fd00::/64 => option "--dst-pfx" must be specified
-j REJECT --reject-with icmp-host-unreachable => unknown reject type "icmp-host-unreachable"
-p tcp -j DNAT --to-destination [2001:db8::1 => Invalid address format
"""

# --- Parsed, and refused by the kernel at the commit ---------------------------------------------

_BAD_FOR_THE_KERNEL: Final = r"""
== kernel 46 filter INPUT
-j MASQUERADE => failed
-j CT --notrack => failed
-j TOS --set-tos 1 => failed
-p tcp -j TPROXY --on-port 1 => failed
-m owner --uid-owner 0 => failed
-m tcp --dport 80 => failed
-m tcp -p udp --dport 80 => failed
! -p tcp --dport 80 => failed
-j REJECT --reject-with tcp-reset => failed

== kernel 4 filter INPUT
-p tcp -j DNAT --to-destination :80 => failed
-j REDIRECT => failed
-j NOTRACK => failed
-j TRACE => failed
-j TTL --ttl-set 1 => failed
-j ECN --ecn-ip-ect 0 => failed
-j CHECKSUM --checksum-fill => failed
-j CONNSECMARK --save => failed
-j SYNPROXY => failed
-j SYNPROXY --wscale 15 => failed
-j NETMAP --to 10.0.0.0/8 => failed
-m limit --limit-burst 0 => failed
-m rpfilter => failed
-m rateest --rateest nobody --rateest-lt --rateest-bps 1mbit => failed
-m nfacct --nfacct-name nobody => failed
-m bpf --bytecode "1,0 0 0 1" => failed
-m recent --rcheck --hitcount 999999 => failed
-m ecn --ecn-tcp-cwr => failed
-m addrtype --src-type LOCAL --limit-iface-out => failed
-m cgroup --path /no/such/group => failed
-m string --algo nosuch --string x => failed
-p udp -m tcpmss --mss 1 => failed

== kernel 6 filter INPUT
-j HL --hl-set 1 => failed
-m addrtype --dst-type BROADCAST => failed

== kernel 46 filter LOOP
++ chain LOOP
++ rule INPUT -j LOOP
-j LOOP => failed

== kernel 46 nat PREROUTING
-j REJECT => failed
-j MASQUERADE => failed

== kernel 4 nat PREROUTING
-p tcp -j SNAT --to-source :80 => failed

== kernel 4 raw PREROUTING
-p tcp -j CT --helper nosuch => failed
-p tcp -j CT --timeout nosuch => failed

== kernel 4 mangle PREROUTING
-j TPROXY --on-port 1 => failed
-p tcp -j TCPMSS --set-mss 100 => failed
-j CLASSIFY --set-class 1:1 => failed
-j TCPOPTSTRIP --strip-options 5 => failed
"""

# --- Loaded, and yet no rule; loaded by some versions only ---------------------------------------

_FOR_THE_OTHER_FAMILY: Final = r"""
== standard 4 filter INPUT
-6 -j ACCEPT
--ipv6 -p tcp --dport 80
== standard 6 filter INPUT
-4 -s 10.0.0.1 -j ACCEPT
"""

_VERSIONS: Final = r"""
# Up to 1.8.9 iptables did not part these options from a word that is joined to them.
== standard 46 filter INPUT
-jACCEPT
--jump=ACCEPT
-ptcp -j ACCEPT
--protocol=udp
-ilo
--in-interface=br-lan
== standard 4 filter INPUT
-s10.0.0.1
--src=10.0.0.1 --dst=10.0.0.2
# From 1.8.10 on it refuses what would always match.
== conntrack 4 filter INPUT
-m conntrack ! --ctproto 0
"""

# --- Reading the blocks --------------------------------------------------------------------------

_IPSET_FAMILY: Final = {4: "inet", 6: "inet6"}


def _read(text: str) -> Iterator[Case]:
    """Yield each rule of a text of blocks, once for each family of its block."""
    extension = families = table = chain = ""
    setup: list[str] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        mark, _, rest = line.partition(" ")
        if mark == "==":
            extension, families, table, chain = rest.split()
            setup = []
        elif mark == "++":
            setup.append(rest)
        elif line and mark != "#":
            for family in map(int, families):
                rule, *steps = (
                    words.replace("{f}", str(family)).replace("{inet}", _IPSET_FAMILY[family])
                    for words in (line, *setup)
                )
                yield Case(family, table, chain, rule, extension, tuple(steps))


def _refusals(*texts: str) -> list[Refusal]:
    refusals = []
    for case in (case for text in texts for case in _read(text)):
        rule, words = case.rule.split(" => ")
        refusals.append(Refusal(case.family, case.table, case.chain, rule, words, case.setup))
    return refusals


@functools.cache
def _all_cases() -> tuple[Case, ...]:
    """Read the blocks, and add the rules that do not fit on a line of theirs."""
    texts = (_HEADERS, _PROTOCOLS, _EXTENSION_HEADERS, _PACKETS, _CONNECTIONS, _ORIGINS, _TARGETS)
    return (
        *(case for text in texts for case in _read(text)),
        *(Case(family, "filter", "INPUT", "", "standard") for family in (4, 6)),
        Case(4, "filter", "INPUT", "-p\ttcp \t -j\tDROP", "standard"),
        # A comment that is too long is cut at 255 bytes, without a word.
        *(
            Case(4, "filter", "INPUT", f"-m comment --comment {'x' * length}", "comment")
            for length in (255, 256, 1000)
        ),
    )


def cases() -> list[Case]:
    """All rules that load where the kernel has their extension."""
    return list(_all_cases())


REFUSED: Final = _refusals(_BAD_HEADERS, _BAD_OPTIONS)
KERNEL_REFUSED: Final = _refusals(_BAD_FOR_THE_KERNEL)

# A line for the other family is read up to that word, and makes no rule.
IGNORED: Final = list(_read(_FOR_THE_OTHER_FAMILY))

# What the oracle does with these has to be asked: see oracle_accepts().
VARYING: Final = list(_read(_VERSIONS))

# --- The oracle ----------------------------------------------------------------------------------

# A setting that only the first network namespace of a kernel has.
_HOST_ONLY: Final = Path("/proc/sys/net/core/netdev_budget")


def restore_text(group: Iterable[Case | Refusal]) -> str:
    """Cases of one family and table, as one input for iptables-restore."""
    group = list(group)
    steps = list(dict.fromkeys(step for case in group for step in case.setup))
    chains = [step.removeprefix("chain ") for step in steps if step.startswith("chain ")]
    before = [step.removeprefix("rule ") for step in steps if step.startswith("rule ")]
    return "\n".join(
        (
            f"*{group[0].table}",
            *(f":{chain} - [0:0]" for chain in chains),
            *(f"-A {rule}" for rule in before),
            *(f"-A {case.chain} {case.rule}" for case in group),
            "COMMIT\n",
        )
    )


def restore(group: Iterable[Case | Refusal], *options: str) -> subprocess.CompletedProcess[str]:
    """Let the oracle load these cases of one family and table, in place of what is there."""
    group = list(group)
    if _HOST_ONLY.exists():
        raise RuntimeError("the corpus loads only into a network namespace of its own")
    for step in dict.fromkeys(step for case in group for step in case.setup):
        kind, _, rest = step.partition(" ")
        if kind in _PROVIDERS:
            _PROVIDERS[kind](rest)
    return _run(f"{_prefix(group[0].family)}-restore", *options, text=restore_text(group))


def saved_rules(family: int, table: str) -> list[str]:
    """Return what the oracle prints of a table: its -A lines."""
    output = _run(f"{_prefix(family)}-save", "-t", table).stdout
    return [line for line in output.splitlines() if line.startswith("-A ")]


def oracle_accepts(case: Case) -> bool:
    """Whether this kernel and this iptables load the case; replaces the table's content."""
    try:
        return restore([case]).returncode == 0
    except (OSError, subprocess.CalledProcessError):  # what the case needs cannot be made here
        return False


@functools.cache
def kernel_lacks(extension: str, family: int) -> str | None:
    """Name the kernel option that is missing, when the oracle loads no case of an extension."""
    own = [case for case in _all_cases() if (case.extension, case.family) == (extension, family)]
    return None if any(map(oracle_accepts, own)) else kernel_option(extension, family)


def kernel_option(extension: str, family: int) -> str:
    """Name the kernel option that brings an extension, and what else it needs."""
    kind = "TARGET" if extension.isupper() else "MATCH"
    name = _KERNEL_OPTIONS.get(extension, f"CONFIG_NETFILTER_XT_{kind}_{extension.upper()}")
    return name.format("" if family == 4 else "6")


# Where the name of the option does not follow from the name of the extension.
_KERNEL_OPTIONS: Final = {
    "standard": "CONFIG_IP{}_NF_IPTABLES_LEGACY",
    "tcp": "CONFIG_NETFILTER_XTABLES",
    "udp": "CONFIG_NETFILTER_XTABLES",
    "icmp": "CONFIG_IP_NF_IPTABLES",
    "icmp6": "CONFIG_IP6_NF_IPTABLES",
    "set": "CONFIG_NETFILTER_XT_SET",
    "SET": "CONFIG_NETFILTER_XT_SET",
    "mark": "CONFIG_NETFILTER_XT_MARK",
    "MARK": "CONFIG_NETFILTER_XT_MARK",
    "connmark": "CONFIG_NETFILTER_XT_CONNMARK",
    "CONNMARK": "CONFIG_NETFILTER_XT_CONNMARK",
    "SNAT": "CONFIG_NETFILTER_XT_NAT",
    "DNAT": "CONFIG_NETFILTER_XT_NAT",
    "tos": "CONFIG_NETFILTER_XT_MATCH_DSCP",
    "TOS": "CONFIG_NETFILTER_XT_TARGET_DSCP",
    "ttl": "CONFIG_NETFILTER_XT_MATCH_HL",
    "TTL": "CONFIG_NETFILTER_XT_TARGET_HL",
    "NOTRACK": "CONFIG_NETFILTER_XT_TARGET_CT",
    "SECMARK": "CONFIG_NETFILTER_XT_TARGET_SECMARK and an active security module with labels",
    "ah": "CONFIG_IP{}_NF_MATCH_AH",
    "rpfilter": "CONFIG_IP{}_NF_MATCH_RPFILTER",
    "REJECT": "CONFIG_IP{}_NF_TARGET_REJECT",
    "SYNPROXY": "CONFIG_IP{}_NF_TARGET_SYNPROXY",
    "ECN": "CONFIG_IP_NF_TARGET_ECN",
    "CLUSTERIP": "CONFIG_IP_NF_TARGET_CLUSTERIP (no longer in Linux)",
    "ULOG": "CONFIG_IP_NF_TARGET_ULOG (no longer in Linux)",
    "dst": "CONFIG_IP6_NF_MATCH_OPTS",
    "hbh": "CONFIG_IP6_NF_MATCH_OPTS",
    "eui64": "CONFIG_IP6_NF_MATCH_EUI64",
    "frag": "CONFIG_IP6_NF_MATCH_FRAG",
    "ipv6header": "CONFIG_IP6_NF_MATCH_IPV6HEADER",
    "mh": "CONFIG_IP6_NF_MATCH_MH",
    "rt": "CONFIG_IP6_NF_MATCH_RT",
    "srh": "CONFIG_IP6_NF_MATCH_SRH",
    "SNPT": "CONFIG_IP6_NF_TARGET_NPT",
    "DNPT": "CONFIG_IP6_NF_TARGET_NPT",
}

# Files in the directory of extensions that register no extension of their own name.
NO_EXTENSION: Final = {"NAT": "one file that SNAT, DNAT, MASQUERADE and REDIRECT link to"}


def _prefix(family: int) -> str:
    return "iptables-legacy" if family == 4 else "ip6tables-legacy"


def _run(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _make_set(words: str) -> None:
    subprocess.run(["ipset", *words.split(), "-exist"], check=True)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _tell_netfilter(subsystem: int, *attributes: bytes) -> None:
    """Send one nfnetlink "new" message, and take that the object is there already."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0) + b"".join(attributes)
    request_ack_create = 0x1 | 0x4 | 0x400
    header = struct.pack("=IHHII", 16 + len(body), subsystem << 8, request_ack_create, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netfilter:
        netfilter.send(header + body)
        (error,) = struct.unpack_from("=i", netfilter.recv(4096), 16)
    if -error not in (0, errno.EEXIST, errno.EBUSY):
        raise OSError(-error, os.strerror(-error))


def _make_nfacct(name: str) -> None:
    _tell_netfilter(7, _attribute(1, name.encode() + b"\0"))


def _make_timeout(words: str) -> None:
    name, family = words.split()
    l3 = socket.AF_INET if family == "4" else socket.AF_INET6
    established = _attribute(3, struct.pack(">I", 3600))
    _tell_netfilter(
        8,
        _attribute(1, name.encode() + b"\0"),
        _attribute(2, struct.pack(">H", l3)),
        _attribute(3, bytes([socket.IPPROTO_TCP])),
        _attribute(4 | 0x8000, established),
    )


def _pin_program(name: str) -> None:
    """Load the socket filter "mov r0, 1; exit" and pin it; its file system is mounted once."""
    path = Path(name)
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.parent.is_mount():
        subprocess.run(["mount", "-t", "bpf", "bpf", path.parent], check=True)
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    syscall = functools.partial(ctypes.CDLL(None, use_errno=True).syscall, number)
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0), 16)
    licence = ctypes.create_string_buffer(b"GPL")
    load = struct.pack("=IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence))
    attributes = ctypes.create_string_buffer(load, 72)
    program = syscall(5, attributes, len(attributes))
    where = ctypes.create_string_buffer(os.fsencode(path))
    pin = ctypes.create_string_buffer(struct.pack("=QI", ctypes.addressof(where), program), 72)
    if program < 0 or syscall(6, pin, len(pin)) < 0:
        raise OSError(ctypes.get_errno(), f"cannot pin a program at {path}")
    os.close(program)


_PROVIDERS: Final[dict[str, Callable[[str], None]]] = {
    "ipset": _make_set,
    "nfacct": _make_nfacct,
    "cttimeout": _make_timeout,
    "bpf": _pin_program,
}
