"""How a rules file is read; what stands in it is in the docstring of the package."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nfctl import document
from nfctl.document import Kind, Node, shown
from nfctl.inspect.rules import conditions, values
from nfctl.inspect.rules import rate as rates
from nfctl.inspect.rules.expression import All
from nfctl.inspect.rules.plan import Rule, Rules
from nfctl.inspect.verdict import Action, Per, Verdict

if TYPE_CHECKING:
    from nfctl.inspect.rewrite import Rewrite

_VERDICTS: Final = {
    "accept": Action.ACCEPT,
    "drop": Action.DROP,
    "reject": Action.REJECT,
    "repeat": Action.REPEAT,
    "mark": Action.ACCEPT,
    "set": Action.ACCEPT,
}
_KEYS: Final = ("name", "when", "for", "per", "log", "mark", "set", "offload")
_RESERVED: Final = re.compile(r"default|malformed|handler .*", re.IGNORECASE)
_LONGEST_NAME: Final = 64  # characters
_LONGEST_TEXT: Final = 200


def load(text: str | bytes, source: str) -> Rules:
    """Read a rules file; ``source`` names it in errors. BadInput with a place if it is none."""
    root = document.load(text, source)
    if root.kind is Kind.LIST:
        msg = "a mapping is expected here, not a list"
        raise root.error(msg, 'the rules stand under the key "rules"')
    fields = root.mapping(optional=("version", "default", "rules"))
    if "version" in fields:
        fields["version"].integer(1, 1)
    default = Action.ACCEPT
    if "default" in fields:
        default = Action(fields["default"].choice("accept", "drop", "reject"))
    nodes = fields["rules"].list() if "rules" in fields else []
    rules: list[Rule] = []
    named: dict[str, Node] = {}
    for number, node in enumerate(nodes, 1):
        rule = _rule(node, number)
        if rule.name in named:
            place = node.pairs["name"][1] if "name" in node.pairs else node
            msg = f"there is a rule {shown(rule.name)} already"
            raise place.error(msg, f"at {named[rule.name].where}")
        named[rule.name] = node
        rules.append(rule)
    return Rules(rules, default)


def _rule(node: Node, number: int) -> Rule:
    fields = node.mapping(required=("verdict",), optional=_KEYS)
    word = fields["verdict"].choice(*_VERDICTS)
    name = _name(fields["name"]) if "name" in fields else f"rule {number}"
    _agree(node, word, fields)
    when = fields.get("when")
    tree = conditions.read(when, top=True) if when is not None else All(())
    limit = None
    if when is not None and "rate" in when.pairs:
        limit = rates.read(when.pairs["rate"][1])
    change: Rewrite | None = None
    if "set" in fields:
        from nfctl.inspect.rewrite import Rewrite

        change = Rewrite.read(fields["set"])
    verdict = Verdict(
        _VERDICTS[word],
        name,
        values.mark(fields["mark"]) if "mark" in fields else None,
        change,
        "offload" in fields and fields["offload"].choice("flow") == "flow",
        "log" in fields and fields["log"].boolean(),
        values.duration(fields["for"]) if "for" in fields else 0.0,
        Per(fields["per"].choice(*Per)) if "per" in fields else Per.FLOW,
    )
    said = _say(when.plain()) if when is not None and when.pairs else "every packet"
    said = said if len(said) <= _LONGEST_TEXT else said[: _LONGEST_TEXT - 3] + "..."
    return Rule(name, tree, verdict, rate=limit, where=node.where, text=f"{said} -> {word}")


def _name(node: Node) -> str:
    name = node.scalar()
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST_NAME:
        msg = f"{shown(name)} is no name of a rule"
        raise node.error(msg, f"1 to {_LONGEST_NAME} characters that can be shown")
    if _RESERVED.fullmatch(name):
        msg = f"{shown(name)} is what verdicts of other origin are called"
        raise node.error(msg, "name the rule otherwise")
    return name


def _agree(node: Node, word: str, fields: dict[str, Node]) -> None:
    """Raise BadInput for keys that the verdict has no use for, and for those it lacks."""
    for needed in ("mark", "set"):
        if word == needed and needed not in fields:
            msg = f'the verdict "{word}" needs the key "{needed}"'
            hint = "mark: 0x10, or mark: 0x10/0xff" if word == "mark" else "set: {ttl: 64}"
            raise node.error(msg, hint)
    refused = {
        "mark": word not in {"mark", "set", "repeat"},
        "set": word != "set",
        "offload": word not in {"accept", "drop"},
        "for": word in {"set", "repeat"},
    }
    hints = {
        "mark": "the verdicts mark, set and repeat can set one",
        "set": "write verdict: set, which accepts the changed packet",
        "offload": "the kernel can accept or drop the rest of a flow by itself, no more",
        "for": "accept, drop, reject and mark can last",
    }
    for key, wrong in refused.items():
        if wrong and key in fields:
            msg = f'"{key}" does not go with the verdict "{word}"'
            raise node.key(key).error(msg, hints[key])
    if "per" in fields and "for" not in fields:
        msg = '"per" says for whom a verdict lasts; how long is missing'
        raise node.key("per").error(msg, "for: 10m; what a rate is per stands in the rate")


def _say(value: object) -> str:
    """Write conditions on one line, much as they stand in the file."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_inner(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " | ".join(_inner(part) for part in value)
    if isinstance(value, bool):
        return str(value).lower()
    return "".join(c if c.isprintable() else "?" for c in str(value))


def _inner(value: object) -> str:
    return f"({_say(value)})" if isinstance(value, dict) else _say(value)
