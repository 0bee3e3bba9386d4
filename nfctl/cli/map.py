"""`nfctl map`: the tables and chains as a packet meets them, with what they hold now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nfctl.cli.answer import print_json
from nfctl.cli.common import Ipv4, Ipv6, Json, Netns, family
from nfctl.cli.paint import Line, pad, show, width
from nfctl.text import human
from nfctl.traversal import Hook, Landmark, Way, nat_kind, route
from nfctl.traversal.picture import Picture, Stop, picture

if TYPE_CHECKING:
    from nfctl.traversal import Family
    from nfctl.traversal.picture import TableSummary

# Two boxes side by side fill 80 columns: the table's name takes what the numbers leave.
_LEFT, _RIGHT, _GAP = 41, 37, 2
_AXIS = 20  # where the line runs through the left boxes
_RIGHT_AXIS = _LEFT + _GAP + 18
_TITLES = f"{'rules':>5}{'chains':>7}  {'policy':<6}{'pkts':>5}"

_BORDER = "dim"
_HOOK = "bold cyan"
_PLACE = "yellow"


def map_command(
    ipv4: Ipv4 = False, ipv6: Ipv6 = False, netns: Netns = None, as_json: Json = False
) -> None:
    """Draw the tables and chains in the order in which a packet meets them.

    Each line of a box is a table: the rules of its built-in chain, the
    user-defined chains that jumps lead to from there, its policy, and how many
    packets the policy decided. A table that is not in use does not exist in this
    network namespace; looking leaves it so.

    [bold]Example:[/bold] nfctl map -6
    """
    from nfctl.control.doctor import nft_rules_met
    from nfctl.control.save import read
    from nfctl.kernel import netns as namespaces

    number: Family = 6 if family(ipv4, ipv6) == 6 else 4
    with namespaces.entered(netns):
        found = picture(read(family=number))
        nft_rules = nft_rules_met(number)
    if as_json:
        print_json(document(found, nft_rules))
    else:
        show(drawing(found, netns or "", nft_rules))


def document(found: Picture, nft_rules: int = 0) -> dict[str, object]:
    """Return the document of ``--json``.

    ``family``; ``hooks``, in the kernel's order: each with ``hook`` and its ``tables`` in the
    order of their priority (``table``, ``priority``, ``in_use``, ``policy``: null if not in use,
    ``packets`` and ``bytes`` that the policy decided, ``rules`` of the built-in chain,
    ``chains`` reachable from it, ``chain_rules`` in those); ``tables``: each with ``table``,
    ``in_use``, ``rules`` in all its chains, ``chains``: the names of the user-defined ones, and
    ``unreachable``: those that no jump leads to; ``ways``: the hooks that packets pass,
    ``local_in``, ``forwarded`` and ``local_out``; ``nft_rules``: the number of rules of
    nf_tables that packets meet as well.
    """
    return {
        "family": found.family,
        "hooks": [
            {
                "hook": hook.value,
                "tables": [_stop_document(stop) for stop in stops if isinstance(stop, Stop)],
            }
            for hook, stops in found.hooks.items()
        ],
        "tables": [
            {
                "table": table.name,
                "in_use": table.in_use,
                "rules": table.rules,
                "chains": list(table.chains),
                "unreachable": list(table.unreachable),
            }
            for table in found.tables
        ],
        "ways": {
            way.name.lower(): [part.value for part in route(way) if isinstance(part, Hook)]
            for way in Way
        },
        "nft_rules": nft_rules,
    }


def _stop_document(stop: Stop) -> dict[str, object]:
    return {
        "table": stop.station.table,
        "priority": stop.station.priority,
        "in_use": stop.in_use,
        "policy": stop.policy or None,
        "packets": stop.packets,
        "bytes": stop.octets,
        "rules": stop.rules,
        "chains": stop.chains,
        "chain_rules": stop.chain_rules,
    }


def drawing(found: Picture, netns: str = "", nft_rules: int = 0) -> list[Line]:
    """Draw the picture, 80 columns wide: two lanes, this host's on the left."""
    boxes = {
        hook: _box(hook, stops, _RIGHT if hook is Hook.FORWARD else _LEFT)
        for hook, stops in found.hooks.items()
    }
    where = f"network namespace {netns}" if netns else "this network namespace"
    lines: list[Line] = [
        [(f"IPv{found.family} tables of {where}, as packets meet them", "bold")],
        [],
        _place("from the network"),
        _axis(),
        *boxes[Hook.PREROUTING],
        _fork(),
        [*_axis("│ to this host"), *_lane("│")],
        [*_axis("▼"), *_lane("▼")],
    ]
    lines += _side_by_side(boxes[Hook.INPUT], boxes[Hook.FORWARD])
    below = [
        _axis("▼"),
        _place("local processes"),
        _axis(),
        _place(Landmark.ROUTING.value),
        _axis("▼"),
        *boxes[Hook.OUTPUT],
        _place(Landmark.REROUTING.value),
    ]
    lines += [[*pad(line, _LEFT), *_lane("│", _LEFT)] for line in below]
    back = "─" * (_RIGHT_AXIS - _AXIS - 2)
    lines += [
        [(" " * _AXIS, ""), (f"│◀{back}╯", _BORDER)],
        _axis("▼"),
        *boxes[Hook.POSTROUTING],
        _axis("▼"),
        _place("to the network"),
        [],
        *_table_lines(found.tables),
        [],
        [("chains: user-defined, reached by jumps; pkts: decided by the policy", "dim")],
    ]
    if nft_rules:
        rules = "1 rule" if nft_rules == 1 else f"{nft_rules} rules"
        note = f"nf_tables holds {rules} that packets meet as well: nfctl doctor"
        lines.append([(note, "bold yellow")])
    return lines


def _axis(text: str = "│") -> Line:
    return pad([(" " * _AXIS, ""), (text, _BORDER)], _LEFT)


def _lane(text: str, start: int = _LEFT) -> Line:
    return [(" " * (_RIGHT_AXIS - start), ""), (text, _BORDER)]


def _place(name: str) -> Line:
    start = max(0, _AXIS - len(name) // 2)
    return pad([(" " * start, ""), (name, _PLACE)], _LEFT)


def _fork() -> Line:
    """Draw the routing decision, and the way to another host that branches off to the right."""
    name = Landmark.ROUTING.value
    line: Line = [(" " * (_AXIS - len(name) // 2), ""), (name, _PLACE), (" ", "")]
    label = " to another host "
    rest = "─" * (_RIGHT_AXIS - width(line) - len(label) - 1)
    return [*line, (f"{rest}{label}─╮", _BORDER)]


def _side_by_side(left: list[Line], right: list[Line]) -> list[Line]:
    """Put two boxes beside each other; under the shorter right one its axis goes on."""
    lines = []
    for number, line in enumerate(left):
        if number < len(right):
            lines.append([*pad(line, _LEFT + _GAP), *right[number]])
        else:
            lines.append([*pad(line, _LEFT), *_lane("│")])
    return lines


def _box(hook: Hook, stops: tuple[Stop | Landmark, ...], columns: int) -> list[Line]:
    name = columns - 4 - len(_TITLES)
    rest = "─" * (name - len(hook.value) - 2)
    lines: list[Line] = [
        [
            ("╭ ", _BORDER),
            *pad([(hook.value, _HOOK), (" ", ""), (rest, _BORDER)], name),
            (f"{_TITLES} ", "dim"),
            ("╮", _BORDER),
        ]
    ]
    for stop in stops:
        row = _row(stop, name) if isinstance(stop, Stop) else _landmark(stop)
        lines.append([("│ ", _BORDER), *pad(row, columns - 4), (" │", _BORDER)])
    axis = _AXIS if columns == _LEFT else _RIGHT_AXIS - _LEFT - _GAP
    foot = "╰" + "─" * (axis - 1) + "┬" + "─" * (columns - axis - 2) + "╯"
    return [*lines, [(foot, _BORDER)]]


def _landmark(mark: Landmark) -> Line:
    return [("· ", _BORDER), (mark.value, _PLACE), (" ·", _BORDER)]


def _row(stop: Stop, name: int) -> Line:
    table = stop.station.table
    label = f"nat ({nat_kind(stop.station.hook)})" if table == "nat" else table
    if not stop.in_use:
        return [(f"{label:<{name}}{'not in use':>22}", "dim")]
    accepts = stop.policy == "ACCEPT"
    return [
        (f"{label:<{name}}", "bold" if stop.rules or not accepts else ""),
        (f"{human(stop.rules):>5}", "" if stop.rules else "dim"),
        (f"{human(stop.chains):>7}", "" if stop.chains else "dim"),
        (f"  {stop.policy:<6}", "green" if accepts else "bold red"),
        (f"{human(stop.packets):>5}", "" if stop.packets else "dim"),
    ]


def _table_lines(tables: tuple[TableSummary, ...]) -> list[Line]:
    lines: list[Line] = [[("table     rules  chains of its own", "dim")]]
    for table in tables:
        if not table.in_use:
            lines.append([(f"{table.name:<8}      -  not in use", "dim")])
            continue
        line: Line = [(f"{table.name:<8}", "bold"), (f"{human(table.rules):>7}", "")]
        line.append((f"  {len(table.chains)}", ""))
        if table.unreachable:
            line.append((_unreachable(table.unreachable, 80 - width(line)), "yellow"))
        lines.append(line)
    return lines


def _unreachable(names: tuple[str, ...], room: int) -> str:
    text = f", {len(names)} unreachable: "
    listed = ", ".join(names)
    if len(text) + len(listed) > room:
        listed = listed[: room - len(text) - 4].rpartition(", ")[0] + ", ..."
    return text + listed
