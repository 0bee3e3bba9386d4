"""A view of the jump graph as a tree for a terminal.

::

     pkts bytes  filter (IPv4): 2 chains, 5 rules
       12  3.4k  INPUT  policy DROP → ACCEPT
       10  3.0k  ├─ WEB  if tcp dport 80 → 2 ACCEPT, DROP
        2   400  └─ LOGGED (goto)  if ctstate INVALID → LOG, DROP

A line is a jump: the chain it leads to, the condition, and what becomes of packets by the rules
of that chain that jump no further. What a jump counted is before it. A chain that several jumps
lead to is written out once, and is "(above)" or "(below)" elsewhere; so is one that would be
written too far to the right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from nfctl.inspect.text import cells, cut
from nfctl.text import human, visible

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nfctl.jumps.fold import Edge, End, Node, View
    from nfctl.jumps.graph import Pair

_Piece = tuple[str, str]  # a text and its colour

_BOLD, _DIM, _CHAIN, _BAD, _MARK = "1", "2", "36", "31", "33"
_COLOURS: Final = {"ACCEPT": "32", "DROP": "31", "REJECT": "31", "RETURN": "33"}
_ASCII: Final = str.maketrans({"├": "+", "└": "`", "─": "-", "│": "|", "→": ">", "…": "~"})
_DEEPEST: Final = 20  # levels; what is deeper is written out below
_ROOM: Final = 46  # columns that a line has at least, before it is written out below
_NARROW: Final = 60  # columns; a terminal that is narrower wraps by itself


def tree(
    views: Iterable[View], *, width: int = 0, colour: bool = False, unicode: bool = True
) -> str:
    """Draw views under each other, in ``width`` columns; 0 cuts nothing."""
    parts = [_Tree(view, width if width >= _NARROW else 0, colour).text() for view in views]
    text = "\n".join(parts)
    return text if unicode else text.translate(_ASCII)


def title(view: View) -> str:
    """Return what a view is of: "nat (IPv4): 12 chains, 40 rules"."""
    graph = view.graph
    text = f"{graph.table} (IPv{graph.family})"
    if graph.start:
        text += f", from {visible(graph.start)}"
    if graph.to:
        return f"{text}, ways to {visible(graph.to)}"
    chains, rules = graph.own, graph.rules
    text += f": {chains:,} {'chain' if chains == 1 else 'chains'}"
    return f"{text}, {rules:,} {'rule' if rules == 1 else 'rules'}"


def jumps_text(edge: Edge, node: Node) -> str:
    """Say how many jumps an edge is: "200 jumps", "5 jumps each by chance"; "" for one."""
    text = ""
    if node.alike == 1 and edge.rules > 1:
        text = f"{edge.rules:,} jumps"
    elif edge.most > 1:
        few = f"{edge.least:,} to " if edge.least < edge.most else ""
        text = f"{few}{edge.most:,} jumps each"
    return f"{text} by chance" if edge.chance else text


def ends_text(ends: list[End]) -> list[_Piece]:
    """Say what becomes of packets: "3 ACCEPT, DROP, 2 DNAT to 10.0.0.*"."""
    pieces: list[_Piece] = []
    for end in ends:
        text = visible(f"{end.target or 'no target'} {end.where}".rstrip())
        if end.rules > 1:
            text = f"{end.rules:,} {text}"
        pieces += [(", ", "")] * bool(pieces) + [(text, _COLOURS.get(end.target, "35"))]
    return pieces


class _Tree:
    def __init__(self, view: View, width: int, colour: bool) -> None:
        self.view = view
        self.width = width
        self.colour = colour
        self.counted = view.graph.counted
        self.lines: list[str] = []
        self.top = set(map(id, [*view.roots, *view.unreferenced, *view.looping]))
        self.written: set[int] = set()
        self.below: dict[int, Node] = {}
        room = width - 13 * self.counted - _ROOM
        self.deepest = min(_DEEPEST, max(room // 3, 2)) if width else _DEEPEST

    def text(self) -> str:
        view = self.view
        head = title(view)
        self._line(self._columns("pkts", "bytes"), [(head, _BOLD)])
        if view.folded:
            self._line(self._columns(), [("chains that are alike are one line: --all shows each",
                                          _DIM)])  # fmt: skip
        self._section("", view.roots)
        self._section("nobody jumps to:", view.unreferenced)
        self._section("only a loop leads to:", view.looping)
        return "\n".join(self.lines) + "\n"

    def _section(self, heading: str, tops: list[Node]) -> None:
        if tops:
            self._blank()
        if tops and heading:
            self._line(self._columns(), [(heading, _MARK)])
        for top in tops:
            self._branch(top)
        while self.below:
            self._branch(self.below.pop(next(iter(self.below))), [("  (from above)", _DIM)])

    def _branch(self, top: Node, note: list[_Piece] | None = None) -> None:
        """Write a chain and everything it leads to; a path may be longer than Python's stack."""
        self._node(top, None, note or [], goes_on=bool(top.edges))
        stack = [(top, iter(top.edges), "")]
        path = {id(top)}
        while stack:
            node, edges, prefix = stack[-1]
            edge = next(edges, None)
            if edge is None:
                stack.pop()
                path.remove(id(node))
                continue
            to = edge.to
            last = edge is node.edges[-1]
            mark = self._mark(to, path, len(stack))
            branch = prefix + ("└─ " if last else "├─ ")
            bars = prefix + ("   " if last else "│  ")
            goes_on = not mark and bool(to.edges)
            self._node(to, (edge, node), mark, branch, bars, goes_on=goes_on)
            if goes_on:
                stack.append((to, iter(to.edges), bars))
                path.add(id(to))

    def _mark(self, to: Node, path: set[int], depth: int) -> list[_Piece]:
        """Say where a chain is written out, if not here."""
        if id(to) in path:
            return [(" (loop)", _BAD)]
        if id(to) in self.written:
            return [(" (above)", _DIM)]
        if id(to) in self.top or id(to) in self.below:
            return [(" (below)", _DIM)]
        if depth >= self.deepest and to.edges:
            self.below[id(to)] = to
            return [(" (below)", _DIM)]
        return []

    def _node(
        self,
        node: Node,
        jump: tuple[Edge, Node] | None,
        mark: list[_Piece],
        branch: str = "",
        bars: str = "",
        *,
        goes_on: bool,
    ) -> None:
        """Write a chain: behind a jump from another, or by itself; ``mark`` is said of it."""
        counters = jump[0].counters if jump else node.counters
        columns = self._counters(counters)
        pieces = [(branch, _DIM), (visible(node.name), _style(node)), *_facts(node, jump), *mark]
        if jump and (label := jump[0].label):
            pieces += [("  " if label.startswith("/*") else "  if ", _DIM), (label, "")]
        if not jump or not mark:
            self.written.add(id(node))
            ends: list[_Piece] = [(" → ", _DIM), *ends_text(node.ends)] if node.ends else []
            if ends and self.width and _width([*columns, *pieces, *ends]) > self.width:
                self._line(columns, pieces)
                columns = self._columns()
                pieces = [(bars + ("│ " if goes_on else "  "), _DIM)]
            pieces += ends
        self._line(columns, pieces)

    # --- lines --------------------------------------------------------------------------------

    def _columns(self, packets: str = "", octets: str = "") -> list[_Piece]:
        return [(f"{packets:>5} {octets:>5}  ", _DIM)] if self.counted else []

    def _counters(self, counters: Pair | None) -> list[_Piece]:
        if counters is None:
            return self._columns()
        return self._columns(human(counters[0]), human(counters[1]))

    def _blank(self) -> None:
        self.lines.append("")

    def _line(self, columns: list[_Piece], pieces: list[_Piece]) -> None:
        pieces = [*columns, *pieces]
        if self.width and _width(pieces) > self.width:
            pieces = _cut(pieces, self.width)
        if not self.colour:
            self.lines.append("".join(text for text, _ in pieces).rstrip())
            return
        self.lines.append(
            "".join(
                f"\033[{code}m{text}\033[0m" if code and text.strip() else text
                for text, code in pieces
            ).rstrip()
        )


def _facts(node: Node, jump: tuple[Edge, Node] | None) -> list[_Piece]:
    """Return what is said of a chain behind its name."""
    pieces: list[_Piece] = []
    if jump and jump[0].goto:
        pieces.append((" (goto)", _MARK))
    facts = []
    if node.alike > 1:
        facts.append(f"{node.alike:,} chains alike")
    if jump and (jumps := jumps_text(*jump)):
        facts.append(jumps)
    if facts:
        pieces.append((f" ({', '.join(facts)})", _MARK))
    if not node.chain.present:
        pieces.append((" (no such chain)", _BAD))
    elif not node.builtin and not node.size:
        pieces.append((" (empty)", _DIM))
    if node.chain.policy is not None:
        policy = node.chain.policy
        pieces += [("  policy ", _DIM), (policy, _COLOURS.get(policy, ""))]
    return pieces


def _style(node: Node) -> str:
    if not node.chain.present:
        return _BAD
    return _BOLD if node.builtin else _CHAIN


def _width(pieces: list[_Piece]) -> int:
    return sum(cells(text) for text, _ in pieces)


def _cut(pieces: list[_Piece], width: int) -> list[_Piece]:
    kept: list[_Piece] = []
    for text, code in pieces:
        taken = cells(text)
        if taken > width or (taken == width and text is not pieces[-1][0]):
            return [*kept, (cut(text + "…", width), code)]
        kept.append((text, code))
        width -= taken
    return kept
