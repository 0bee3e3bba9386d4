"""A packet and its verdict as one JSON object, for programs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from nfctl.inspect import headers as at
from nfctl.inspect.packet import PROTOCOLS
from nfctl.inspect.text import address
from nfctl.text import escaped

if TYPE_CHECKING:
    from nfctl.inspect.headers import Headers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.payloads.dns import Dns
    from nfctl.inspect.payloads.http import Http
    from nfctl.inspect.payloads.tls import ClientHello
    from nfctl.inspect.verdict import Verdict

LISTED: Final = 64
"""How many questions, answers or protocols a record holds at most."""
TEXT: Final = 2048
"""How many characters each of its strings holds at most."""

FLAGS: Final = tuple(
    [
        name
        for bit, name in enumerate(("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"))
        if flags >> bit & 1
    ]
    for flags in range(256)
)
"""The names of TCP's flags, by their byte."""


def record(packet: Packet, verdict: Verdict, *, hello: bool = False) -> dict[str, Any]:
    r"""Return the packet as one JSON object; fields that do not apply are absent, never null.

    The fields are a contract; more may come, none of these changes or goes:

    - ``time``: seconds since 1970, a number with a fraction.
    - ``chain``: the built-in chain that queued it; ``in``, ``out``: names of interfaces.
    - ``family``: 4 or 6; absent for what is no IP packet.
    - ``protocol``: its name as ``iptables -p`` takes it, or its number, as text.
    - ``source``, ``destination``: addresses; ``sport``, ``dport``: ports, where there are any.
    - ``length``: the packet's length in bytes. ``truncated``: true if the copy was cut, and then
      ``captured``: how many bytes of it are at hand. ``malformed``: what is wrong with it.
    - ``ttl``: TTL or hop limit. ``mark``: the packet's mark, unless it is 0.
    - ``fragment``: {``id``, ``offset`` in bytes, ``more``: whether more follow}.
    - ``tcp``: {``flags``: names such as "SYN", ``seq``, ``ack``, ``window``}.
    - ``icmp``: {``type``, ``code``, ``name``}.
    - ``dns``: {``kind``: "query" or "answer", ``rcode``: of answers, such as "NXDOMAIN",
      ``questions``: [{``name``, ``type``}], ``answers``: [{``name``, ``type``, ``data``}],
      ``cut``: true if there is more of it}.
    - ``tls``: of the packet that completes a ClientHello, of TCP or QUIC: {``sni``, ``alpn``: a
      list, ``version``, ``ech``: true}, each only if the client said so.
    - ``quic``: {``version``: such as "v1", ``kind``: such as "Initial"}, of long headers.
    - ``http``: {``method``, ``target``, ``path``, ``host``, ``version``, ``user_agent``,
      ``ambiguous``: true if it names several hosts} of requests, {``status``, ``reason``,
      ``version``} of responses.
    - ``verdict``: "accept", "drop", "reject" or "repeat"; ``by``: who decided, a rule's name,
      "handler NAME", "default" or "malformed".
    - ``rewritten``, ``offload``: true if so. ``set_mark``: {``value``, ``mask``}. ``lasts``:
      for how many seconds the verdict holds, and ``per``: "flow", "source", "destination".

    Strings are what the packet says, control characters and all, which JSON escapes; bytes that
    are no UTF-8 are written ``\xNN``. Of lists the first 64 are there, of strings 2,048
    characters.
    """
    head = packet.headers
    moment = packet.time
    found: dict[str, Any] = {"time": round(moment, 6) if math.isfinite(moment) else 0.0}
    if packet.chain:
        found["chain"] = _text(packet.chain)
    if packet.indev:
        found["in"] = _text(packet.indev)
    if packet.outdev:
        found["out"] = _text(packet.outdev)
    if head.src:
        _record_headers(found, head)
    found["length"] = packet.length
    if head.truncated:
        found["truncated"] = True
        found["captured"] = len(packet.data)
    if head.malformed:
        found["malformed"] = _text(head.malformed)
    if packet.fwmark:
        found["mark"] = packet.fwmark
    if head.src and not head.malformed:
        if head.fragment or head.more:
            found["fragment"] = {"id": head.ident, "offset": head.fragment, "more": head.more}
        if not head.fragment:
            _record_transport(found, packet, head, hello)
    found["verdict"] = verdict.action.value
    found["by"] = _text(verdict.by)
    if verdict.rewrite is not None or packet.replacement is not None:
        found["rewritten"] = True
    if verdict.mark:
        found["set_mark"] = {"value": verdict.mark[0], "mask": verdict.mark[1]}
    if verdict.offload:
        found["offload"] = True
    if verdict.lasts:
        found["lasts"] = verdict.lasts
        found["per"] = verdict.per.value
    return found


def _text(text: str) -> str:
    r"""Return a string that is valid in JSON; surrogates, which stand for bytes, become \xNN."""
    text = text[:TEXT]
    if text.isascii():
        return text
    return "".join(escaped(char) if "\ud800" <= char <= "\udfff" else char for char in text)


def _record_headers(found: dict[str, Any], head: Headers) -> None:
    found["family"] = head.version
    if head.proto >= 0:
        found["protocol"] = PROTOCOLS.get(head.proto) or str(head.proto)
    found["source"] = address(head.src)
    found["destination"] = address(head.dst)
    if head.sport or head.dport:
        found["sport"] = head.sport
        found["dport"] = head.dport
    found["ttl"] = head.ttl


def _record_transport(found: dict[str, Any], packet: Packet, head: Headers, hello: bool) -> None:
    asked = packet.hello if hello else None
    if head.proto == at.TCP:
        found["tcp"] = {
            "flags": FLAGS[head.flags & 0xFF],
            "seq": head.seq,
            "ack": head.ack,
            "window": head.window,
        }
        if (http := packet.http) is not None:
            found["http"] = _record_http(http)
    elif head.proto == at.UDP:
        if packet.dns is None and (quic := packet.quic) is not None:
            found["quic"] = {"version": _text(quic.version_name)}
            if quic.kind:
                found["quic"]["kind"] = _text(quic.kind)
            asked = quic.hello or asked
    elif head.icmp is not None:
        kind, code = head.icmp
        from nfctl.inspect.payloads import icmp

        name = _text(icmp.name(head.version, kind, code))
        found["icmp"] = {"type": kind, "code": code, "name": name}
    if (dns := packet.dns) is not None:
        found["dns"] = _record_dns(dns)
    if asked is not None:
        found["tls"] = _record_hello(asked)


def _record_http(http: Http) -> dict[str, Any]:
    if not http.method:
        return {
            "status": http.status,
            "reason": _text(http.reason),
            "version": _text(http.version),
        }
    return {
        "method": _text(http.method),
        "target": _text(http.target),
        "path": _text(http.path),
        **({"host": _text(http.host)} if http.host else {}),
        **({"version": http.version} if http.version else {}),
        **({"user_agent": _text(http.user_agent)} if http.user_agent else {}),
        **({"ambiguous": True} if http.ambiguous else {}),
    }


def _record_dns(dns: Dns) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": "answer" if dns.response else "query"}
    if dns.response:
        found["rcode"] = _text(dns.rcode_name)
    found["questions"] = [
        {"name": _text(name), "type": _text(kind)} for name, kind in dns.questions[:LISTED]
    ]
    if dns.response:
        found["answers"] = [
            {"name": _text(name), "type": _text(kind), "data": _text(text)}
            for name, kind, text in dns.answers[:LISTED]
        ]
    if dns.cut:
        found["cut"] = True
    return found


def _record_hello(asked: ClientHello) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if asked.sni:
        found["sni"] = _text(asked.sni)
    if asked.alpn:
        found["alpn"] = [_text(name) for name in asked.alpn[:LISTED]]
    if asked.version:
        found["version"] = _text(asked.version)
    if asked.ech:
        found["ech"] = True
    return found
