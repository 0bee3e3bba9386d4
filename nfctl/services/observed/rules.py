"""iptables-save text of nat, filter and mangle: what matters of each rule, quickly.

A node with 10,000 services has 170,000 rules. Nearly all of them are of the form that
iptables-save gives the rules of kube-proxy, which one regular expression reads; the others are
read word by word. A rule is a tuple of strings as they stand in the text.
"""

from __future__ import annotations

import re
from typing import NamedTuple, NoReturn

from nfctl.errors import BadInput, NfctlError, Where
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.script import family_said
from nfctl.ruleset.words import Word, split

#: The tables that are read; others are passed over.
TABLES = ("nat", "filter", "mangle")


class Rule(NamedTuple):
    """What matters of a rule; None where the rule does not say. ``not_...`` is "! " or None."""

    packets: str | None  # None in a text without counters
    chain: str
    not_source: str | None
    source: str | None  # address/mask
    not_destination: str | None
    destination: str | None
    protocol: str | None
    comment: str | None  # maybe in quotes: see said()
    remember: str | None  # recent --set: the list
    local: str | None  # addrtype LOCAL: "src" or "dst"
    port: str | None  # of the destination
    probability: str | None
    check: str | None  # recent --rcheck: seconds
    seen: str | None  # recent --rcheck: the list
    mark: str | None  # "value/mask"; with "! " before it if negated
    verb: str | None  # "j", or "g" for goto
    target: str | None
    argument: str | None  # the target's options, with a blank before them
    line: int  # of the text, from 0
    other: str = ""  # conditions that are none of these


class Table(NamedTuple):
    """A table: the chains in the order of the text, each with its rules."""

    name: str
    chains: dict[str, list[Rule]]


class Dump(NamedTuple):
    """The tables of one family."""

    source: str  # the file's name; "" for the kernel's tables
    family: int  # 4 or 6
    tables: dict[str, Table]
    lines: list[str]  # of the whole text

    def chains(self, table: str) -> dict[str, list[Rule]]:
        """Return a table's chains; none where the text has no such table."""
        found = self.tables.get(table)
        return found.chains if found else {}

    def text(self, rule: Rule) -> str:
        """Return a rule as it stands in the text, without its counters and its chain."""
        line = self.lines[rule.line].partition("-A ")[2]
        return line.partition(" ")[2] if line[:1] != '"' else line


def said(rule: Rule) -> str:
    """Return a rule's comment; "" without one."""
    comment = rule.comment
    if comment is None:
        return ""
    return comment[1:-1] if comment[:1] == '"' == comment[-1:] else comment


_ADDRESS = r"[0-9a-fA-F.:]+(?:/[0-9a-fA-F.:]+)?"
_NAME = r'[^ "]+'
_LIST_OPTIONS = r"(?: --mask [0-9a-fA-F.:]+)?(?: --rsource)?"
# as iptables-save prints the rules of kube-proxy, which puts the comment before other matches
_USUAL = re.compile(
    rf"(?:\[([0-9]{{1,20}}):[0-9]+\] )?-A ({_NAME})"
    rf"(?: (! )?-s ({_ADDRESS}))?(?: (! )?-d ({_ADDRESS}))?"
    r"(?: -p ([a-z]+))?"
    r"(?: -m comment --comment (\"[^\"\\]*\"|[^ \"]+))?"
    rf"(?: -m recent --set --name ({_NAME}){_LIST_OPTIONS})?"
    r"(?: -m addrtype --(src|dst)-type LOCAL)?"
    r"(?: -m (?:tcp|udp|sctp)(?: --dport ([0-9]{1,5}))?)?"
    r"(?: -m statistic --mode random --probability ([0-9.]+))?"
    r"(?: -m recent --rcheck --seconds ([0-9]{1,10})(?: --reap)?"
    rf" --name ({_NAME}){_LIST_OPTIONS})?"
    r"(?: -m mark --mark ([0-9a-fx/]+))?"
    rf"(?: -([jg]) ({_NAME})( .*)?)?"
)
_TARGET = re.compile(
    rf'(?:\[([0-9]{{1,20}}):[0-9]+\] )?-A (?:{_NAME}|"[^"]*")'
    r'(?:[^"]|"(?:[^"\\]|\\.)*")*? -([jg]) ([^ "]+)( .*)?'
)
_START = re.compile(rf'(?:\[([0-9]{{1,20}}):[0-9]+\] )?-A ({_NAME}|"(?:[^"\\]|\\.)*")(?: |$)')
_ENTRANCE = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.]*-)SERVICES")
_HASHED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.]*-)(SVC|SVL|SEP|EXT|FW|XLB)-([A-Z2-7]{16})")


def hashed(chain: str) -> tuple[str, str, str] | None:
    """Split the name of a service's or an endpoint's chain: prefix, kind, hash."""
    found = _HASHED.fullmatch(chain)
    return (found[1], found[2], found[3]) if found else None


def parse(text: str, source: str = "", family: int = 0) -> list[Dump]:
    """Read iptables-save text; raises BadInput with the place.

    A text may hold both families, one after the other, as two calls of iptables-save leave it:
    a table that comes again begins another dump. ``family`` 0 is to be found out by the line
    above a table, or else by the addresses in the rules; without any, it is 4.
    """
    return _Reader(text, source, family).dumps()


class _Reader:
    def __init__(self, text: str, source: str, family: int) -> None:
        if "\r\n" in text:
            text = text.replace("\r\n", "\n")
        self.lines = text.split("\n")
        self.source = source
        self.family = family
        self.ours: tuple[str, ...] = ("\0",)  # prefixes of chains whose rules are read to the word

    def fail(self, message: str, number: int, hint: str = "") -> NoReturn:
        where = Where(self.source or "<kernel>", number + 1, 1)
        raise BadInput(message, hint=hint, where=where)

    def dumps(self) -> list[Dump]:
        """Read all sections."""
        found: list[dict[str, Table]] = [{}]
        families: list[int] = []
        lines, at, end = self.lines, 0, len(self.lines)
        while at < end:
            line = lines[at]
            if not line or line[0] == "#":
                at += 1
                continue
            if line[0] != "*":
                hint = "what iptables-save prints begins with *NAME"
                self.fail("this stands outside a table", at, hint)
            name = line[1:].strip()
            if name not in BUILTIN_CHAINS:
                self.fail(f"there is no table {name!r}", at)
            if name in found[-1]:
                found.append({})
            if len(found) > len(families):
                families.append(family_said(lines[at - 1] if at else ""))
            table = found[-1][name] = Table(name, {})
            try:
                stop = lines.index("COMMIT", at)
            except ValueError:
                stop = next((n for n in range(at, end) if lines[n].rstrip() == "COMMIT"), -1)
                if stop < 0:
                    self.fail(f"COMMIT is missing: table {name} begins here", at)
            if name in TABLES:
                self.section(table, at + 1, stop)
            else:
                self.passed_over(name, at + 1, stop)
            at = stop + 1
        if not found[0]:
            message = "there is no table in this input"
            hint = "a table begins with *filter and ends with COMMIT"
            raise BadInput(message, hint=hint, where=Where(self.source or "<kernel>"))
        return [
            Dump(self.source, self.family or said or _family(tables), tables, lines)
            for tables, said in zip(found, families, strict=True)
        ]

    def section(self, table: Table, start: int, stop: int) -> None:
        """Read the lines of one table."""
        chains = table.chains
        usual, new, lines = _USUAL.fullmatch, tuple.__new__, self.lines
        current, rules = "", []
        for number in range(start, stop):
            line = lines[number]
            found = usual(line)
            if found is not None:
                fields = found.groups()
                if fields[1] != current:
                    current = fields[1]
                    rules = chains.setdefault(current, [])
                rules.append(new(Rule, (*fields, number, "")))
            elif line[:1] == ":":
                chain = line[1 : line.find(" ")]
                chains.setdefault(chain, [])
                if chain[-8:] == "SERVICES" or chain[-21:-16] in {"-SVC-", "-SEP-"}:
                    self._note(chain)
            elif line and line[0] != "#":
                self._unusual(table, line, number)
                current = ""

    def passed_over(self, name: str, start: int, stop: int) -> None:
        """Look that a table that is not read hides no other, for want of a COMMIT."""
        for number in range(start, stop):
            if self.lines[number][:1] == "*":
                self.fail(f"table {name} has no COMMIT before this", number)

    def _note(self, chain: str) -> None:
        """Have the rules of chains with this one's prefix read to the word."""
        found = _ENTRANCE.fullmatch(chain) or _HASHED.fullmatch(chain)
        if found is not None and found[1] not in self.ours:
            self.ours = (*self.ours, found[1])

    def _unusual(self, table: Table, line: str, number: int) -> None:
        """Read a rule that is not of the usual form; of other programs' chains the target."""
        found = _START.match(line)
        if found is None:
            if line[0] == "*":
                self.fail(f"table {table.name} has no COMMIT before this", number)
            self.fail("this is no line of iptables-save", number, "a rule begins with -A CHAIN")
        chain = found[2]
        try:
            if chain[:1] == '"':
                chain = split(chain)[0].text
            rules = table.chains.setdefault(chain, [])
            if chain in BUILTIN_CHAINS[table.name] or chain.startswith(self.ours):
                words = split(line[found.end() :], number=number + 1, column=found.end() + 1)
                rules.append(_rule(number, found[1], chain, words))
                return
        except NfctlError as error:
            raise error.at(Where(self.source or "<kernel>", number + 1, found.end())) from None
        to = _TARGET.fullmatch(line)
        verb, target, argument = to.groups()[1:] if to else (None, None, None)
        rules.append(
            _BLANK._replace(
                line=number, packets=found[1], chain=chain, verb=verb, target=target,
                argument=argument, other=line[found.end() :],
            )
        )  # fmt: skip


_BLANK = Rule(
    None, "", None, None, None, None, None, None, None, None, None, None, None, None, None, None,
    None, None, 0,
)  # fmt: skip

# an option, and the field its word goes to; those without a field say nothing that matters
_OPTIONS = {
    "-s": "source", "--source": "source", "-d": "destination", "--destination": "destination",
    "-p": "protocol", "--protocol": "protocol", "--comment": "comment",
    "--dport": "port", "--destination-port": "port", "--probability": "probability",
    "--seconds": "check", "--mark": "mark", "--name": "seen",
    "--mode": "", "--mask": "", "--nfacct-name": "",
}  # fmt: skip
_PLAIN = {"--reap", "--rsource", "--rcheck"}
_MATCHES = {"comment", "tcp", "udp", "sctp", "addrtype", "statistic", "recent", "mark", "nfacct"}


def _fits(field: str, word: str) -> bool:
    """Whether a word is what the rest takes for a field's value: of numbers, only plain ones."""
    longest = {"port": 5, "check": 10}.get(field)
    return longest is None or (word.isascii() and word.isdecimal() and len(word) <= longest)


def _rule(number: int, packets: str | None, chain: str, words: list[Word]) -> Rule:
    """Read a rule word by word."""
    fields: dict[str, str] = {}
    other: list[str] = []
    texts = [word.text for word in words]
    at, negated, setting = 0, "", False
    while at < len(texts):
        word = texts[at]
        following = texts[at + 1] if at + 1 < len(texts) else ""
        at += 2
        field = _OPTIONS.get(word)
        if word == "!":
            negated = "! "
            at -= 1
            continue
        if word in {"-j", "-g", "--jump", "--goto"}:
            fields |= {"verb": "g" if "g" in word else "j", "target": following}
            if at < len(texts):
                fields["argument"] = " " + " ".join(texts[at:])
            break
        if word in {"--dst-type", "--src-type"} and following == "LOCAL" and not negated:
            fields["local"] = word[2:5]
        elif field == "" or (word in {"-m", "--match"} and following in _MATCHES):
            pass
        elif field in {"source", "destination"}:
            fields[field] = following
            if negated:
                fields[f"not_{field}"] = negated
        elif field == "mark":
            fields[field] = negated + following
        elif field is not None and not negated and _fits(field, following):
            fields[field] = following
        elif word == "--set":
            setting = True
            at -= 1
        elif word in _PLAIN and not negated:
            at -= 1
        else:
            other += ["!"] if negated else []
            other.append(word)
            if following[:1] not in {"-", "!"} and following:
                other.append(following)
            else:
                at -= 1
        negated = ""
    if setting and "seen" in fields:
        fields["remember"] = fields.pop("seen")
    other_words = " ".join(other)
    return _BLANK._replace(line=number, packets=packets, chain=chain, other=other_words, **fields)


_TO = re.compile(r" --to-destination (?:\[|[0-9a-f]*:[0-9a-f]*:)")


def _family(tables: dict[str, Table]) -> int:
    """Return 4 or 6 by the first address in a rule; 4 without any."""
    for table in tables.values():
        for rules in table.chains.values():
            for rule in rules:
                address = rule.source or rule.destination
                if address:
                    return 6 if ":" in address else 4
                if rule.target == "DNAT" and rule.argument:
                    return 6 if _TO.match(rule.argument) else 4
                if rule.argument and "icmp6-" in rule.argument:
                    return 6
    return 4
