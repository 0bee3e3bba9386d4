"""iptables-save files as a policy: all of each table that the file has.

A table of such a file is wanted whole: chains that it does not declare go, unless they are
another program's. A built-in chain with ``-`` for its policy, or not declared at all, keeps the
policy that the kernel has. Counters in the file mean nothing to a policy.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from nfctl.errors import BadInput, Where, excerpt
from nfctl.policy.source import STDIN, Files
from nfctl.policy.wanted import Wanted, WantedChain, WantedRule, WantedTable
from nfctl.ruleset import script
from nfctl.ruleset.names import BUILTIN_CHAINS, check_new_chain

if TYPE_CHECKING:
    from nfctl.ruleset.script import Append, Command, Section

# What begins a policy, behind comments.
_YAML: Final = re.compile(r"(?:[ \t\r]*+(?:#[^\n]*)?\n|---[ \t\r]*\n)*+[a-z]+:(?:\s|$)")


def read(v4: str | None, v6: str | None) -> Wanted:
    """Read a file of each family, or of one; "-" is standard input."""
    if v4 == v6 == "-":
        msg = "standard input can be the rules of one family only"
        raise BadInput(msg, hint="give the file of the other family by its name")
    wanted, files = Wanted(), Files()
    for family, file in ((4, v4), (6, v6)):
        if file is not None:
            data, source, _ = files.typed(file)
            wanted.tables[family] = parse(data, source, family)
            wanted.raw[family] = data.decode("utf-8", "surrogateescape")
    wanted.files = files.read
    return wanted


def parse(data: bytes, source: str = STDIN, family: int = 4) -> dict[str, WantedTable]:
    """Return the tables of iptables-save text; BadInput with the place of what is no policy."""
    text = ""
    try:
        text = script.decode(data, source)
        parsed = script.parse(text, source=source, family=family)
        tables: dict[str, WantedTable] = {}
        for section in parsed.sections:
            before = tables.get(section.table)
            if before is not None and before.where is not None:
                msg = f"table {section.table} is there already, in line {before.where.line}"
                raise BadInput(msg, where=Where(source, section.line, 1))
            tables[section.table] = _table(section, source)
    except BadInput as error:
        if _YAML.match(text):
            error.hint = f"a YAML policy is for both families: leave out the -{family}"
        error.excerpt = error.excerpt or excerpt(text, error.where)
        raise
    return tables


def _table(section: Section, source: str) -> WantedTable:
    table = WantedTable(whole=True, where=Where(source, section.line, 1))
    chains = table.chains
    for name in BUILTIN_CHAINS[section.table]:
        chains[name] = WantedChain(where=table.where)
    new, rule = tuple.__new__, WantedRule
    current = ""
    rules: list[WantedRule] = []
    for item in section.items:
        if len(item) == 6:  # an Append, of which there are very many
            chain, spec, _, line, column, words = item
            if chain != current:
                if chain not in chains:
                    raise _no_chain(section.table, item, source)
                current, rules = chain, chains[chain].rules
            rules.append(new(rule, (spec, source, line, column, words, None)))
        else:
            _declare(section.table, table, item, source)
    return table


def _declare(name: str, table: WantedTable, item: Command, source: str) -> None:
    where = Where(source, item.line, item.column)
    if item.verb != ":":
        msg = f"-{item.verb} is nothing that can be in a policy"
        raise BadInput(msg, hint="a policy declares chains and appends rules: -A", where=where)
    chain, policy = item.chain, item.argument
    if chain in BUILTIN_CHAINS[name]:
        if policy != "-":
            table.chains[chain].policy = check_builtin_policy(name, policy, where)
        table.chains[chain].where = where
        return
    if policy != "-":
        msg = f"chain {chain} is user-defined and has no policy"
        raise BadInput(msg, hint="write - instead", where=where)
    if chain in table.chains:
        msg = f"chain {chain} is declared twice"
        raise BadInput(msg, where=where)
    try:
        check_new_chain(chain)
    except BadInput as error:
        raise error.at(where) from None
    table.chains[chain] = WantedChain(where=where)


def check_builtin_policy(table: str, policy: str, where: Where) -> str:
    """Return a policy that a built-in chain of this table may have; iptables inhibits one."""
    if table == "nat" and policy == "DROP":
        msg = 'The "nat" table is not intended for filtering, the use of DROP is inhibited.'
        raise BadInput(msg, where=where)
    return policy


def _no_chain(table: str, item: Append, source: str) -> BadInput:
    chain = item.chain
    msg = f"table {table} has no chain {chain}"
    hint = f"a line :{chain} - [0:0] must come before"
    elsewhere = [name for name, chains in BUILTIN_CHAINS.items() if chain in chains]
    if elsewhere:
        hint = f"it is a chain of the tables {', '.join(elsewhere)}"
    return BadInput(msg, hint=hint, where=Where(source, item.line, 1))
