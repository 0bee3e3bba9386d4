"""A packet and its verdict in one line, for people; ``record`` has them for programs.

What a packet says is shown and never believed: :func:`nfctl.inspect.text.safe` leaves nothing in
it that a terminal would obey or draw in another place, and bounds its length; addresses are never
looked up. Nothing here raises, whatever the packet.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from nfctl.inspect import headers as at
from nfctl.inspect.packet import PROTOCOLS
from nfctl.inspect.record import FLAGS, record
from nfctl.inspect.text import cells, cut, ends, safe
from nfctl.inspect.verdict import ACCEPT, Action, Verdict

if TYPE_CHECKING:
    from nfctl.inspect.headers import Headers
    from nfctl.inspect.packet import Packet
    from nfctl.inspect.payloads.dns import Dns
    from nfctl.inspect.payloads.http import Http
    from nfctl.inspect.payloads.tls import ClientHello

NAME: Final = 253
"""How many characters of a host name are shown: as many as DNS allows, its end tells most."""
_TARGET: Final = 120
_ANSWERS: Final = 3
LONGEST: Final = 640
"""The longest line, in columns."""

_SHOWN_FLAGS: Final = tuple(f"[{' '.join(names) or 'no flags'}]" for names in FLAGS)
#: The flags of ordinary data, which say nothing beside what the data are: ACK, PSH ACK.
_DATA_FLAGS: Final = frozenset({0x10, 0x18})

#: ICMP's types of echo, by IP version.
_ECHOES: Final = {4: frozenset({0, 8}), 6: frozenset({128, 129})}

__all__ = ["LONGEST", "Parts", "fit", "flow", "join", "line", "parts", "record", "safe"]


class Parts(NamedTuple):
    """The pieces of a line, safe for a terminal; "" where there is nothing to say.

    ``time`` is local, HH:MM:SS.mmm. ``where`` are the interfaces, ``eth0>``, ``>eth1`` or
    ``eth0>eth1``, else the chain. ``flow`` is ``source > destination``, with ports where there
    are any, ``protocol`` iptables' name of it, ``size`` the length. What it carries is
    ``what``, then ``name`` (a host's, worth an emphasis), then ``rest``, which brings its own
    separator. ``verdict`` is "" for what the default accepts unchanged.
    """

    time: str
    where: str
    flow: str
    protocol: str
    size: str
    what: str
    name: str
    rest: str
    verdict: str


def line(packet: Packet, verdict: Verdict, *, hello: bool = False, width: int | None = None) -> str:
    """Return the packet in one line, without a line end.

    ``hello`` says that this packet completes the ClientHello of its flow, so that it is shown
    once. With a ``width``, in columns, what the packet carries is cut before anything else is.
    """
    return join(fit(parts(packet, verdict, hello=hello), width))


def join(pieces: Parts) -> str:
    """Return pieces as one line."""
    stamp, where, flow, protocol, size, what, name, rest, verdict = pieces
    head = f"{stamp} {where} {flow} {protocol} {size}"
    if name:
        carried = f" {what} {name}{rest}" if what else f" {name}{rest}"
    else:
        carried = f" {what}{rest}" if what or rest else ""
    return f"{head}{carried} => {verdict}" if verdict else head + carried


def fit(pieces: Parts, width: int | None = None) -> Parts:
    """Return the pieces of a line of at most ``width`` columns, 640 if nothing is said.

    What the packet carries is cut first, from its end, then the verdict, then the rest.
    """
    limit = LONGEST if width is None else min(max(width, 0), LONGEST)
    # 2: a character takes so many columns at most; the blanks and the arrow between the pieces
    if 2 * sum(map(len, pieces)) + 10 <= limit:
        return pieces
    over = cells(join(pieces)) - limit
    new = list(pieces)
    for index in (7, 6, 5, 8, 0, 1, 4, 3, 2):
        if over <= 0:
            break
        old = cells(new[index])
        new[index] = cut(new[index], max(0, old - over))
        over = cells(join(Parts(*new))) - limit
    return Parts(*new)


def parts(packet: Packet, verdict: Verdict, *, hello: bool = False) -> Parts:
    """Return the pieces of a packet's line; ``hello`` as in :func:`line`."""
    head = packet.headers
    number = head.proto
    what, name, rest = _carried(packet, head, hello)
    if head.truncated:
        size = f"({len(packet.data)} of {packet.length} bytes)"
    else:
        size = f"{packet.length}B"
    if verdict is ACCEPT and packet.replacement is None:
        decided = ""
    else:
        decided = _decided(packet, verdict)
    return Parts(
        _clock(packet.time),
        _where(packet),
        flow(head),
        PROTOCOLS.get(number) or (str(number) if number >= 0 else "ip"),
        size,
        what,
        name,
        rest,
        decided,
    )


_second: tuple[int, str] = (-1, "")


def _clock(moment: float) -> str:
    """Return HH:MM:SS.mmm in local time; the second is kept, as making it is slow."""
    global _second  # noqa: PLW0603 - a cache of one
    try:
        thousandths = int(moment * 1000)
        second = thousandths // 1000
        known, text = _second
        if known != second:
            text = time.strftime("%H:%M:%S", time.localtime(second))
            _second = (second, text)
    except (OverflowError, ValueError, OSError):  # a capture's clock may say anything
        return "--:--:--.---"
    return f"{text}.{thousandths - second * 1000:03d}"


def _where(packet: Packet) -> str:
    indev, outdev = packet.indev, packet.outdev
    if indev or outdev:
        return safe(f"{indev}>{outdev}", 64, word=True)
    return safe(packet.chain, word=True) or "-"


def flow(head: Headers) -> str:
    """Return where a packet goes from and to: see :func:`nfctl.inspect.text.ends`."""
    return ends(head.src, head.dst, head.sport, head.dport) if head.src else "no address"


def _decided(packet: Packet, verdict: Verdict) -> str:
    words = []
    rewritten = verdict.rewrite is not None or packet.replacement is not None
    if verdict.action is not Action.ACCEPT or verdict.by != "default":
        words.append(f"{verdict.action.value} by {safe(verdict.by)}")
    elif rewritten or verdict.mark or verdict.offload or verdict.lasts:
        words.append(verdict.action.value)
    if rewritten:
        words.append("rewritten")
    if verdict.mark:
        value, mask = verdict.mark
        words.append(f"mark {value:#x}" + ("" if mask == 0xFFFFFFFF else f"/{mask:#x}"))
    if verdict.offload:
        words.append("offload")
    if verdict.lasts:
        words.append(f"for {verdict.lasts:g}s per {verdict.per.value}")
    return " ".join(words)


def _carried(packet: Packet, head: Headers, hello: bool) -> tuple[str, str, str]:
    """Return what the packet carries as ``what``, ``name`` and ``rest`` of its parts."""
    if head.malformed:
        return f"malformed: {safe(head.malformed)}", "", ""
    if head.fragment:
        more = "" if head.more else ", the last"
        return f"fragment {head.ident:#x} at {head.fragment}{more}", "", ""
    if head.more:
        what, name, rest = _message(packet, head, hello)
        return f"fragment {head.ident:#x} at 0 {what}".rstrip(), name, rest
    return _message(packet, head, hello)


def _message(packet: Packet, head: Headers, hello: bool) -> tuple[str, str, str]:
    number = head.proto
    if number == at.TCP:
        if head.end <= head.data:
            return _SHOWN_FLAGS[head.flags & 0xFF], "", ""
        what, name, rest = _stream(packet, hello)
        if what and head.flags in _DATA_FLAGS:
            return what, name, rest
        return f"{_SHOWN_FLAGS[head.flags & 0xFF]} {what}".rstrip(), name, rest
    if number == at.UDP:
        return _datagram(packet, head, hello)
    if head.icmp is not None:
        return _icmp(packet, head, head.icmp), "", ""
    return "", "", ""


def _stream(packet: Packet, hello: bool) -> tuple[str, str, str]:
    if hello and (asked := packet.hello) is not None:
        return "TLS ClientHello", *_hello(asked)
    if (message := packet.dns) is not None:
        return _dns(message)
    if (found := packet.http) is not None:
        return _http(found)
    return "", "", ""


def _datagram(packet: Packet, head: Headers, hello: bool) -> tuple[str, str, str]:
    if head.end <= head.data:
        return "", "", ""
    if (message := packet.dns) is not None:
        return _dns(message)
    # what has no long header is not worth a second look
    if packet.data[head.data] < 0x80 or (found := packet.quic) is None:
        return "", "", ""
    what = f"QUIC {safe(found.version_name)} {safe(found.kind)}".rstrip()
    asked = found.hello or (packet.hello if hello else None)
    return (what, *_hello(asked)) if asked is not None else (what, "", "")


def _hello(asked: ClientHello) -> tuple[str, str]:
    """Return the name that a ClientHello asks for, and behind it the protocols it offers."""
    rest = ""
    if asked.alpn:
        rest = f" {safe(','.join(asked.alpn[:8]), word=True)}"
    if asked.ech:
        rest += " ECH"
    return safe(asked.sni, NAME, word=True) or "(no name)", rest


def _http(found: Http) -> tuple[str, str, str]:
    if found.method:
        what = f"HTTP {safe(found.method, word=True)} {safe(found.target, _TARGET, word=True)}"
        rest = " (ambiguous)" if found.ambiguous else ""
        return what, safe(found.host, NAME, word=True), rest
    return f"HTTP {found.status} {safe(found.reason)}".rstrip(), "", ""


def _dns(message: Dns) -> tuple[str, str, str]:
    kind = "DNS answer" if message.response else "DNS query"
    questions = message.questions
    answers = message.answers
    if questions:
        name, asked = questions[0]
    elif answers:
        name, asked = answers[0][:2]
    else:
        code = f" {safe(message.rcode_name)}" if message.response else ""
        return kind + code, "", ""
    rest = f" +{len(questions) - 1}" if len(questions) > 1 else ""
    if message.response:
        if message.rcode_name != "NOERROR":
            rest += f": {safe(message.rcode_name)}"
        elif answers:
            shown = [
                safe(text) if kind_ == asked else f"{safe(kind_)} {safe(text)}"
                for _, kind_, text in answers[:_ANSWERS]
            ]
            more = f" +{len(answers) - _ANSWERS}" if len(answers) > _ANSWERS else ""
            rest += f": {', '.join(shown)}{more}"
        else:
            rest += ": no answer"
    return f"{kind} {safe(asked, word=True)}", safe(name, NAME, word=True) or ".", rest


def _icmp(packet: Packet, head: Headers, kind: tuple[int, int]) -> str:
    from nfctl.inspect.payloads import icmp

    text = safe(icmp.name(head.version, *kind))
    if kind[0] in _ECHOES[head.version]:
        at_ = head.transport + 4
        ident, number = packet.data[at_ : at_ + 2], packet.data[at_ + 2 : at_ + 4]
        return f"{text} id {int.from_bytes(ident)} seq {int.from_bytes(number)}"
    about = icmp.inner(head.version, packet.data[head.transport : head.end])
    return f"{text} for {safe(about, 140)}" if about else text
