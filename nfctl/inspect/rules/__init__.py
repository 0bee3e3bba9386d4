"""The verdict rules of a YAML file: which packets are accepted, dropped, rejected or changed.

    version: 1                # optional
    default: accept           # accept, drop or reject: what no rule decides
    rules:
      - name: no-telnet       # optional, and unique; "rule 1" without
        when: {proto: tcp, dport: 23}
        verdict: reject

The first rule that matches decides; a rule without ``when`` matches every packet. A malformed
packet gets the default verdict (reported as ``malformed``), unless a rule says
``malformed: true``: other rules do not see it, but a drop or reject that still lasts does.

Keys of a rule
    ``verdict``: ``accept``: the packet goes on to the next table, where the firewall decides as
    ever. ``drop``. ``reject``: it is dropped and its sender told, by TCP reset or ICMP error.
    ``repeat``: it goes through the rules of the table mangle again, past the inspection.
    ``mark``: as accept, with a new mark. ``set``: as accept, with changed fields.

    ``mark``: ``0x10`` or ``0x10/0xff``, a value and the bits of the packet's mark that it is
    about; with ``verdict: mark``, ``set`` or ``repeat``.

    ``set``: the fields that ``verdict: set`` changes; see ``nfctl.inspect.rewrite``.

    ``for``: how long (``90s``, ``10m``, ``1h30m``, ``2d``, or seconds) the verdict stays for all
    packets of the same flow, without asking any rule. Not with ``set`` and ``repeat``.
    ``per``: whose packets that are: ``flow`` (both directions), ``source`` (those with the same
    source address) or ``destination``. 65,536 of each kind are remembered, by each worker for
    itself.

    ``offload: flow``: the kernel accepts or drops the rest of the flow by itself, at full speed.

    ``log: true``: the packet is reported even where packets are not shown.

Conditions, the keys of ``when``
    All keys of one mapping must hold; where a value is a list, one of its elements must. ``all``
    and ``any`` hold lists of further mappings, ``not`` a mapping, or a list of which none may
    hold. They may stand beside other keys::

        when:
          proto: tcp
          any: [{dport: 22}, {src: [10.0.0.0/8, fd00::/8]}]
          not: {dst: 10.0.0.53}

    ``chain``: ``PREROUTING``, ``INPUT``, ``FORWARD``, ``OUTPUT``, ``POSTROUTING``.
    ``in``, ``out``: names of interfaces; ``eth*`` (or ``eth+``) is every eth.
    ``family``: ``ipv4`` or ``ipv6``.
    ``src``, ``dst``: ``192.0.2.1``, ``192.0.2.0/24``, ``192.0.2.1-192.0.2.9``, and IPv6's. No
    names of hosts.
    ``proto``: ``tcp``, ``udp``, ``icmp``, ``icmpv6``, ``sctp``, ... or a number; the one behind
    IPv6's extension headers.
    ``sport``, ``dport``, ``port`` (either): ``22``, ``8000-8100``, ``1024-``; of TCP, UDP, SCTP,
    DCCP and UDP-Lite. Fragments but the first have no ports.
    ``icmp``: ``echo-request``, ``port-unreachable``, ``8``, ``3/4`` (type and code); names mean
    IPv4's and IPv6's.
    ``ttl`` (the hop limit of IPv6), ``len`` (bytes from the IP header on): ``64``, ``100-200``,
    ``"> 1000"``, ``"<= 60"`` (quoted: ``>`` alone means something else in YAML).
    ``dscp``: ``ef``, ``af31``, ``cs1``, ``46``.
    ``mark``: ``0x10/0xff``: the packet's mark, under that mask, has that value.
    ``tcp.flags``: ``syn`` or ``"syn,ack"``: of FIN, SYN, RST, PSH, ACK and URG exactly these are
    set. ``"rst/rst"`` or ``"syn,ack/syn"`` as iptables' ``--tcp-flags``: of the flags in front of
    the slash, those behind it are set and the others are not. ``all`` are those six.
    ``fragment``: ``true`` for each fragment, the first too. ``truncated``: ``true`` where the
    copy is shorter than the packet. ``malformed``: ``true`` where its headers cannot be.

    ``tls.sni``, ``tls.alpn``: the server's name, and a protocol, in the flow's ClientHello, of TCP
    or QUIC. They hold for each packet of the flow from the ClientHello's last on, in both
    directions. Until a flow has shown one, or cannot any more, they are undecided, and a rule
    that hangs on them does not match, with ``not`` in front of them neither. So names can be
    allowed as well as refused: ``{dport: 443, not: {tls.sni: "*.example.com"}}`` with ``drop``
    lets the handshake pass.
    ``dns.qname``, ``dns.type`` (``A``, ``AAAA``, ``ANY``, 65, ...): of a question, in a query or
    its answer. ``dns.rcode`` (``NXDOMAIN``, 3) and ``dns.answer`` (addresses, as for ``src``): of
    an answer.
    ``http.method``, ``http.host``, ``http.path`` (without the query): of a request that begins in
    this packet; ``http.status`` (``404``, ``500-599``): of a response.
    ``http.ambiguous``: ``true`` where a request names several hosts.
    ``quic.version``: ``v1``, ``v2`` or a number, of a long header.
    ``payload``: a regular expression that is found anywhere in what the packet carries, or
    ``{hex: "de ad"}``, or ``{bytes: "SSH-1."}``. Text is taken as Latin-1, a byte a character; in
    expressions ``.`` is every byte (re.DOTALL). A packet without payload fulfils none of these.

    Names (``tls.sni``, ``dns.qname``, ``http.host``) do not depend on case, nor on a dot at the
    end. ``*`` stands for any characters: ``*.example.com`` is every name below example.com, at
    any depth, and not example.com itself. Paths and ALPN depend on case.

    ``rate``: more than so many packets: ``100/s`` (also ``/min``, ``/h``, ``/d``), or
    ``{over: 100/s, per: source, burst: 200}``. ``per``: for each ``source`` (if nothing is said),
    ``destination`` or ``flow``. ``burst``: so many at once are allowed, without it as many as
    ``over`` says. It stands in ``when`` itself and is asked last: only packets that fulfil all
    its other conditions count. The 65,536 sources that sent last are kept apart; with several
    workers, each counts what it gets.

Examples::

    - when: {any: [{tls.sni: ["*.example.com", example.org]}, {dns.qname: "*.example.com"}]}
      verdict: drop
      for: 10m
      per: source
      log: true
    - when: {dport: [22, 8000-8100], rate: {over: 100/s, per: source, burst: 200}}
      verdict: drop
    - when: {proto: udp, dst: 192.0.2.0/24}
      verdict: mark
      mark: 0x10/0xff
    - when: {http.path: "/old/*"}
      verdict: set
      set: {ttl: 64}
    - when: {tls.sni: video.example}
      verdict: accept
      offload: flow

In Python: :func:`load` reads a file, :meth:`Rules.decide` decides a packet, :func:`describe` says
what is odd. How packets are decided quickly: ``nfctl.inspect.rules.plan``.
"""

from __future__ import annotations

from nfctl.inspect.rules.describe import describe
from nfctl.inspect.rules.expression import UNKNOWN, Facts, Unknown
from nfctl.inspect.rules.file import load
from nfctl.inspect.rules.plan import EMPTY, Plan, Rule, Rules

__all__ = ["EMPTY", "UNKNOWN", "Facts", "Plan", "Rule", "Rules", "Unknown", "describe", "load"]
