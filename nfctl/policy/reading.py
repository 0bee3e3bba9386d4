"""How a policy is read: a YAML file with all that it includes, or iptables-save files.

What stands in a YAML policy is in the docstring of the package: ``python -m pydoc nfctl.policy``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nfctl.document import Kind, load, shown
from nfctl.errors import BadInput, Where
from nfctl.policy import mistakes, saved
from nfctl.policy.expand import Expander
from nfctl.policy.families import BOTH, NAMES
from nfctl.policy.sets import Sets
from nfctl.policy.source import STDIN, Files, Identity, is_saved, matching
from nfctl.policy.variables import Variables
from nfctl.policy.wanted import (
    DEFAULT_NAME,
    Keep,
    Wanted,
    WantedChain,
    WantedTable,
)
from nfctl.ruleset.names import BUILTIN_CHAINS, POLICIES, check_new_chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from nfctl.document import Node

_DEEPEST: Final = 16  # files that include each other in a row
_MOST_MISTAKES: Final = 100  # that are looked for


def read(file: str | None, *, v4: str | None = None, v6: str | None = None) -> Wanted:
    """Read a YAML policy, or iptables-save files: ``v4`` and ``v6``, one of them or both.

    "-" is standard input. Raises BadInput, with the place of what is wrong.
    """
    if file is None:
        if v4 is None and v6 is None:
            msg = "there is no policy to read"
            raise BadInput(msg, hint="name a YAML file, or iptables-save files with -4 and -6")
        return saved.read(v4, v6)
    if v4 is not None or v6 is not None:
        msg = "a policy is one YAML file, or iptables-save files with -4 and -6, not both"
        raise BadInput(msg)
    files = Files()
    data, source, identity = files.typed(file)
    if is_saved(data):
        msg = "this is iptables-save text, which does not say of which family it is"
        hint = f"nfctl plan -4 {file}, or -6"
        raise BadInput(msg, hint=hint, where=Where(source))
    tree = _Tree(files)
    top = tree.top(data, source, identity)
    wanted = _resolved(top, tree)
    wanted.files = files.read
    return wanted


def parse(data: bytes, source: str = STDIN) -> Wanted:
    """Read the text of a YAML policy; what it includes is looked for from ``source``."""
    tree = _Tree(Files())
    return _resolved(tree.top(data, source, None), tree)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a YAML policy, for editors."""
    from nfctl.policy import model

    return model.schema()


# --- files and what they include ------------------------------------------------------------------


class _File(NamedTuple):
    """A file in the row of those that include each other."""

    name: str
    identity: Identity | None


class _Tree:
    """The documents of a policy: ``documents`` has what is included before what includes it."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.documents: list[Node] = []
        self.variables: dict[str, Node] = {}
        self._seen: set[Identity] = set()

    def top(self, data: bytes, source: str, identity: Identity | None) -> Node:
        """Read the policy's own file, and all others."""
        if identity is not None:
            self._seen.add(identity)
        root = load(data, source)
        self.variables = self._document(root, [_File(source, identity)])
        return root

    def _document(self, root: Node, way: list[_File]) -> dict[str, Node]:
        """Take in a document; return its variables and those of what it includes."""
        from nfctl.policy import model

        model.check(root, included=len(way) > 1)
        fields = {name: value for name, (_, value) in root.pairs.items()}
        own = _items(fields.get("variables"))
        inherited: dict[str, Node] = {}
        for node in fields["include"].one_or_many() if "include" in fields else []:
            for path in self._paths(node, way[-1].name):
                for name, value in self._include(node, path, way).items():
                    before = inherited.setdefault(name, value)
                    if name not in own and before is not value and _unlike(before, value):
                        hint = f"there it is defined, too: {before.where}"
                        msg = f"the variable {shown(name)} has two values, of two files included"
                        raise value.error(msg, f"{hint}; the including file may settle it")
        self.documents.append(root)
        return inherited | own

    def _paths(self, node: Node, including: str) -> list[str]:
        # not Path.parent: a file is named in messages as it was typed
        directory = including.rpartition("/")[0] + "/" if "/" in including else ""
        return matching(node.raw, "" if including == STDIN else directory, node.error)

    def _include(self, node: Node, path: str, way: list[_File]) -> dict[str, Node]:
        if len(way) >= _DEEPEST:
            raise node.error(f"more than {_DEEPEST} files include each other in a row")
        try:
            data, identity = self.files.included(path, self._seen)
        except BadInput as error:
            raise node.error(error.message, error.hint) from None
        names = [file.identity for file in way]
        if identity in names:
            around = [file.name for file in way[names.index(identity) :]]
            hint = " -> ".join([*around, around[0]])
            raise node.error(f"{shown(path)} includes itself", hint)
        if data is None:
            return {}
        self._seen.add(identity)
        if is_saved(data):
            msg = f"{shown(path)} is iptables-save text"
            raise node.error(msg, "a policy includes YAML files")
        return self._document(load(data, path), [*way, _File(path, identity)])


def _items(node: Node | None) -> dict[str, Node]:
    return {} if node is None else {name: value for name, (_, value) in node.pairs.items()}


def _unlike(one: Node, other: Node) -> bool:
    return one.plain() != other.plain()


# --- a policy put together ------------------------------------------------------------------------


class _Chain:
    """A chain, as one file or several have it."""

    def __init__(self, key: Node) -> None:
        self.key = key
        self.rules: list[Node] = []
        self.policies: dict[int, Node] = {}
        self.family: Node | None = None


class _Mistakes:
    """Collects what is wrong, so that the first error can say how much more there is."""

    def __init__(self) -> None:
        self._found: list[BadInput] = []

    def __enter__(self) -> _Mistakes:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, BadInput):
            return False
        self._found.append(error)
        if len(self._found) >= _MOST_MISTAKES:
            self.settle()
        return True

    def settle(self) -> None:
        """Raise the first mistake, if there are any."""
        if self._found:
            file = self._found[0].where and self._found[0].where.source
            same = [one for one in self._found if one.where and one.where.source == file]
            raise mistakes.earliest(same or self._found) from None


def _resolved(top: Node, tree: _Tree) -> Wanted:
    fields = {name: value for name, (_, value) in top.pairs.items()}
    named = fields["families"].one_or_many() if "families" in fields else []
    families = tuple(sorted({NAMES[node.raw] for node in named})) or BOTH
    wanted = Wanted(fields["name"].raw if "name" in fields else DEFAULT_NAME)
    variables = Variables(tree.variables)
    sets = Sets(wanted.name, families, variables)
    found = _Mistakes()
    tables: dict[str, tuple[Node, dict[str, _Chain]]] = {}
    for root in tree.documents:
        for key, node in _pairs(root, "sets"):
            with found:
                sets.declare(key, node)
        for node in _child(root, "keep"):
            with found:
                wanted.keep.append(_keep(node))
        for key, node in _pairs(root, "tables"):
            chains = tables.setdefault(key.raw, (key, {}))[1]
            for name, chain in node.pairs.values():
                with found:
                    _gather(key.raw, chains, name, chain)
    found.settle()
    wanted.tables = {family: {} for family in families}
    for table, (key, chains) in tables.items():
        _table(wanted, table, key, chains, variables, sets, found)
    found.settle()
    wanted.sets = sets.wanted()
    return wanted


def _pairs(root: Node, name: str) -> Sequence[tuple[Node, Node]]:
    """Return keys and values of the mapping under a key of a file, if it is there."""
    return [*root.pairs[name][1].pairs.values()] if name in root.pairs else []


def _child(root: Node, name: str) -> Sequence[Node]:
    return root.pairs[name][1].children if name in root.pairs else []


def _keep(node: Node) -> Keep:
    if node.kind is Kind.TEXT:
        return Keep(chain=_glob(node))
    given = {name: value for name, (_, value) in node.pairs.items() if value.kind is not Kind.NULL}
    if len(given) != 1:
        msg = "one of the keys chain, comment, interface and rule is expected here"
        raise node.error(msg, "for several, make several entries")
    [(name, value)] = given.items()
    return Keep(**{name: _glob(value)})


def _glob(node: Node) -> str:
    if not node.raw:
        raise node.error("a glob is expected here, not an empty text")
    return node.raw


def _gather(table: str, chains: dict[str, _Chain], key: Node, node: Node) -> None:
    """Add what a file has of a chain to what others have."""
    name = key.raw
    chain = chains.get(name)
    if chain is None:
        _check_chain(table, key)
        chain = chains[name] = _Chain(key)
    fields = {name: value for name, (_, value) in node.pairs.items() if value.kind is not Kind.NULL}
    policy, family, rules = fields.get("policy"), fields.get("family"), fields.get("rules", node)
    for number, verdict in _policies(policy):
        _check_policy(table, name, verdict)
        before = chain.policies.setdefault(number, verdict)
        if before.raw.upper() != verdict.raw.upper():
            msg = f"chain {name} of table {table} has two policies"
            raise verdict.error(msg, f"{before.raw} at {before.where}")
    if family is not None:
        if chain.family is not None and chain.family.raw != family.raw:
            msg = f"chain {name} of table {table} is of another family already"
            raise family.error(msg, f"{chain.family.raw} at {chain.family.where}")
        chain.family = chain.family or family
    chain.rules += rules.children


def _policies(node: Node | None) -> Iterator[tuple[int, Node]]:
    """Yield a chain's policy for each family: one is for all, a mapping has one for each."""
    if node is None:
        return
    if node.kind is not Kind.MAPPING:
        yield from dict.fromkeys(BOTH, node).items()
        return
    for name, (_, verdict) in node.pairs.items():
        if verdict.kind is not Kind.NULL:
            yield NAMES[name], verdict


def _check_chain(table: str, key: Node) -> None:
    name = key.raw
    if name in BUILTIN_CHAINS[table]:
        return
    elsewhere = [other for other, chains in BUILTIN_CHAINS.items() if name in chains]
    if elsewhere:
        msg = f"table {table} has no chain {name}"
        raise key.error(msg, f"it is a chain of the tables {', '.join(elsewhere)}")
    try:
        check_new_chain(name)
    except BadInput as error:
        raise key.error(error.message, error.hint) from None


def _check_policy(table: str, chain: str, node: Node) -> None:
    policy = node.raw.upper()
    if chain not in BUILTIN_CHAINS[table]:
        hint = f"built-in chains have one: {', '.join(BUILTIN_CHAINS[table])}"
        if chain.upper() in BUILTIN_CHAINS[table]:
            hint = f'did you mean "{chain.upper()}"? names of chains are told apart by case'
        raise node.error(f"chain {chain} is user-defined and has no policy", hint)
    if policy not in POLICIES:
        raise node.error(f"a policy is accept or drop, not {shown(node.raw)}")
    try:
        saved.check_builtin_policy(table, policy, node.where)
    except BadInput as error:
        raise node.error(error.message) from None


def _table(
    wanted: Wanted,
    table: str,
    key: Node,
    chains: dict[str, _Chain],
    variables: Variables,
    sets: Sets,
    found: _Mistakes,
) -> None:
    """Put the chains of a table into the families that have them."""
    families = tuple(wanted.tables)
    of_chain = {
        name: (NAMES[chain.family.raw],)
        for name, chain in chains.items()
        if chain.family is not None
    }
    expander = Expander(families, variables, sets, chains, of_chain)
    for name, chain in chains.items():
        having = [family for family in families if family in of_chain.get(name, families)]
        made: dict[int, WantedChain] = {}
        for family in having:
            tables = wanted.tables[family]
            if table not in tables:
                tables[table] = WantedTable(where=key.where)
            verdict = chain.policies.get(family)
            made[family] = tables[table].chains[name] = WantedChain(
                policy=verdict.raw.upper() if verdict else None, where=chain.key.where
            )
        for node in chain.rules:
            with found:
                text, asked = _rule(node, chain)
                for family, rule in expander.rule(
                    text, having if asked is None else [one for one in having if one == asked]
                ):
                    made[family].rules.append(rule)
    if not chains:
        for tables in wanted.tables.values():
            tables[table] = WantedTable(where=key.where)


def _rule(node: Node, chain: _Chain) -> tuple[Node, int | None]:
    """Return the text of a rule, and the family that it asks for."""
    if node.kind is Kind.TEXT:
        return node, None
    family = node.pairs["family"][1] if "family" in node.pairs else None
    if family is None or family.kind is Kind.NULL:
        return node.pairs["rule"][1], None
    if chain.family is not None and chain.family.raw != family.raw:
        msg = f"chain {chain.key.raw} is of {chain.family.raw} alone"
        raise family.error(msg, f"at {chain.family.where}")
    return node.pairs["rule"][1], NAMES[family.raw]
