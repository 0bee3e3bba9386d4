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

``policy`` is null for a user-defined chain, ``references`` counts the jumps to it.
"""

from __future__ import annotations

from typing import Any

from nfctl.errors import BadInput
from nfctl.kernel import netns
from nfctl.kernel.decode import Decoder
from nfctl.kernel.table import Table, counters_of
from nfctl.ruleset.names import check_table
from nfctl.ruleset.spec import Setting, Spec


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
    with netns.entered(network), Table(family, check_table(table)) as kernel:
        names = kernel.chains()
        if chain is not None:
            if chain not in names:
                msg = f"table {table} has no chain {chain}"
                raise BadInput(msg, hint=f"its chains are {', '.join(names[:12])}")
            names = [chain]
        decoder = Decoder(family)
        return {
            "family": family,
            "table": table,
            "chains": [_chain(kernel, decoder, name, rules) for name in names],
        }


def _chain(kernel: Table, decoder: Decoder, name: str, with_rules: bool) -> dict[str, Any]:
    policy = kernel.policy(name)
    found = list(kernel.entries(name))
    document: dict[str, Any] = {
        "name": name,
        "builtin": policy is not None,
        "policy": policy.verdict if policy else None,
        "packets": policy.packets if policy else 0,
        "bytes": policy.octets if policy else 0,
        "references": 0 if policy else kernel.references(name),
        "rules": len(found),
    }
    if with_rules:
        specs = decoder.specs([parts for _, parts in found])
        document["rules"] = [
            _rule(number, spec, counters_of(raw, kernel.family), kernel.family)
            for number, (spec, (raw, _)) in enumerate(zip(specs, found, strict=True), 1)
        ]
    return document


def _rule(number: int, text: str, counters: tuple[int, int], family: int) -> dict[str, Any]:
    spec = Spec.parse(text, family=family)
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
    with netns.entered(network), Table(family, check_table(table)) as kernel:
        names = kernel.chains()
        if chain is not None:
            if chain not in names:
                msg = f"table {table} has no chain {chain}"
                raise BadInput(msg, hint=f"its chains are {', '.join(names[:12])}")
            names = [chain]
        lines = []
        for name in names:
            policy = kernel.policy(name)
            if policy is None:
                lines.append(f"-N {name}")
            else:
                count = f" -c {policy.packets} {policy.octets}" if counters else ""
                lines.append(f"-P {name} {policy.verdict}{count}")
        decoder = Decoder(family)
        for name in names:
            found = list(kernel.entries(name))
            specs = decoder.specs([parts for _, parts in found])
            for spec, (raw, _) in zip(specs, found, strict=True):
                if counters:
                    spec = _counted(spec, counters_of(raw, family))  # noqa: PLW2901
                lines.append(f"-A {name} {spec}" if spec else f"-A {name}")
        return lines


def _counted(spec: str, counters: tuple[int, int]) -> str:
    """Put ``-c PACKETS BYTES`` where iptables -S -v does: before the target."""
    text = f"-c {counters[0]} {counters[1]}"
    at = max(spec.rfind(" -j "), spec.rfind(" -g "))
    if spec.startswith(("-j ", "-g ")):
        return f"{text} {spec}"
    if at < 0:
        return f"{spec} {text}".strip()
    return f"{spec[:at]} {text}{spec[at:]}"
