"""What ``nfctl rule list`` and ``nfctl chain list`` show: a table as one plain document.

The document is a contract; keys are only ever added::

    {"family": 4, "table": "filter", "chains": [
      {"name": "INPUT", "builtin": true, "policy": "DROP", "packets": 12, "bytes": 3400,
       "references": 0, "rules": [
         {"number": 1, "packets": 7, "bytes": 420, "spec": "-i lo -j ACCEPT",
          "source": null, "destination": null, "in_interface": {"value": "lo", "inverted": false},
          "out_interface": null, "protocol": null, "fragment": null,
          "matches": [{"name": "tcp", "options": ["--dport", "22"]}],
          "target": {"name": "ACCEPT", "options": []}, "goto": false}]}]}

``policy`` is null for a user-defined chain, ``references`` counts the jumps to it. ``fragment``
is true for ``-f``, false for ``! -f``. Bytes of a name that are not UTF-8 come as the surrogates
of Python's ``surrogateescape``.
Of a rule whose text cannot be taken apart (an interface with a
blank in its name) there are only ``spec`` and the counters.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from nfctl.errors import BadInput
from nfctl.kernel import netns
from nfctl.kernel.blob import Blob, BlobChain
from nfctl.kernel.decode import Decoder
from nfctl.ruleset.spec import Setting, Spec, option_places
from nfctl.ruleset.words import split


def listing(
    family: int,
    table: str,
    chain: str | None = None,
    *,
    network: str | None = None,
    rules: bool = True,
) -> dict[str, Any]:
    """Return the document for a table, or for one chain of it.

    ``rules`` False leaves the rules out and counts them instead (``"rules": 3``). Raises
    BadInput for a table or chain that is not there, NotPermitted, Unsupported.
    """
    with netns.entered(network):
        blob = Blob(family, table)
        references = _references(blob)
        decoder = Decoder(family)
        return {
            "family": family,
            "table": table,
            "chains": [
                _chain(blob, decoder, found, references, rules) for found in _chains(blob, chain)
            ],
        }


def _chains(blob: Blob, chain: str | None) -> list[BlobChain]:
    found = [item for item in blob.chains if chain in {None, item.name}]
    if not found:
        names = [item.name for item in blob.chains]
        msg = f"table {blob.table} has no chain {chain}"
        raise BadInput(msg, hint=f"its chains are {', '.join(names[:12])}")
    return found


def _references(blob: Blob) -> Counter[bytes]:
    return Counter(
        parts.jump for item in blob.chains for parts in blob.parts(item.rules) if parts.jump
    )


def _chain(
    blob: Blob, decoder: Decoder, chain: BlobChain, references: Counter[bytes], with_rules: bool
) -> dict[str, Any]:
    name, policy, spans = chain
    document: dict[str, Any] = {
        "name": name,
        "builtin": policy is not None,
        "policy": policy.verdict if policy else None,
        "packets": policy.packets if policy else 0,
        "bytes": policy.octets if policy else 0,
        "references": 0 if policy else references[name.encode("utf-8", "surrogateescape")],
        "rules": len(spans),
    }
    if with_rules:
        specs = decoder.specs(blob.parts(spans))
        document["rules"] = [
            _rule(number, spec, blob.counters(span), blob.family)
            for number, (spec, span) in enumerate(zip(specs, spans, strict=True), 1)
        ]
    return document


def _rule(number: int, text: str, counters: tuple[int, int], family: int) -> dict[str, Any]:
    try:
        spec = Spec.parse(text, family=family)
    except BadInput:
        spec = Spec()  # an interface's name may hold a blank, which iptables-save does not quote
    return {
        "number": number,
        "packets": counters[0],
        "bytes": counters[1],
        "spec": text,
        "source": _setting(spec.source),
        "destination": _setting(spec.destination),
        "in_interface": _setting(spec.in_interface),
        "out_interface": _setting(spec.out_interface),
        "protocol": _setting(spec.protocol),
        "fragment": None if spec.fragment is None else not spec.fragment.inverted,
        "matches": [{"name": use.name, "options": list(use.options)} for use in spec.matches],
        "target": spec.target and {"name": spec.target.name, "options": list(spec.target.options)},
        "goto": spec.goto,
    }


def _setting(setting: Setting | None) -> dict[str, Any] | None:
    return None if setting is None else {"value": setting.value, "inverted": setting.inverted}


def specifications(
    family: int,
    table: str,
    chain: str | None = None,
    *,
    counters: bool = False,
    network: str | None = None,
) -> list[str]:
    """Return what ``iptables -S`` prints: -P, -N and -A lines; ``counters`` as with -v."""
    with netns.entered(network):
        blob = Blob(family, table)
        chains = _chains(blob, chain)
        decoder = Decoder(family)
        lines = []
        for name, policy, _ in chains:
            if policy is None:
                lines.append(f"-N {name}")
            else:
                count = f" -c {policy.packets} {policy.octets}" if counters else ""
                lines.append(f"-P {name} {policy.verdict}{count}")
        for name, _, spans in chains:
            for spec, span in zip(decoder.specs(blob.parts(spans)), spans, strict=True):
                shown = _counted(spec, blob.counters(span)) if counters else spec
                lines.append(f"-A {name} {shown}" if shown else f"-A {name}")
        return lines


def _counted(spec: str, counters: tuple[int, int]) -> str:
    """Put ``-c PACKETS BYTES`` where iptables -S -v does: before the target."""
    text = f"-c {counters[0]} {counters[1]}"
    words = split(spec)
    texts = [word.text for word in words]
    for place in option_places(texts):
        if texts[place] in {"-j", "-g"}:
            at = words[place].column - 1
            return f"{spec[:at]}{text} {spec[at:]}"
    return f"{spec} {text}".strip()
