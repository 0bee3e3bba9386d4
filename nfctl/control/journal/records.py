"""Records: what a policy owns, as it was applied last, and as it was confirmed last.

The record of policy NAME is the directory ``policies/NAME`` of the state. ``record.json`` (and
``confirmed.json``, of the last confirmed one) say everything but the rules; those are plain
iptables-save text in files that are named by their SHA-256, so that a record is changed by one
rename, and a copy of it costs a link.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nfctl.control.journal import durable
from nfctl.errors import AnswerNo, BadInput
from nfctl.policy import saved
from nfctl.policy.render import save_text
from nfctl.policy.wanted import (
    Keep,
    Wanted,
    WantedChain,
    WantedRule,
    WantedSet,
    WantedTable,
)
from nfctl.ruleset.names import BUILTIN_CHAINS
from nfctl.ruleset.words import split
from nfctl.services.names import FIXED

if TYPE_CHECKING:
    from collections.abc import Container, Iterable
    from pathlib import Path

CURRENT, CONFIRMED = "record.json", "confirmed.json"
_VERSION = 1
_SERVICES = "services"
_PREFIX = re.compile(r'\{"version": 1, "prefix": "([^"\\]+)"')
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SHA = re.compile("[0-9a-f]{64}")
_TEXT = re.compile(r"([0-9a-f]{64})\.(v[46]|services)")


class Damaged(AnswerNo):
    """A file of the state is not what nfctl wrote (exit 1)."""


def is_name(name: str) -> bool:
    """Whether a policy may be called so."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Return ``name`` if a policy may be called so; BadInput otherwise."""
    if not is_name(name):
        msg = f"{name!r} is no name for a policy"
        hint = "letters, digits, - _ and . (not first), 64 at most"
        raise BadInput(msg, hint=hint)
    return name


@dataclass(slots=True)
class Record:
    """What a policy owns. ``text`` is iptables-save text by family, ``whole`` names tables.

    ``raw`` are the families whose text is that of a file, as it was written. In the others a
    built-in chain whose policy the record leaves alone is ``:INPUT - [0:0]``. ``sets`` and
    ``keep`` are WantedSet and Keep as dictionaries. ``left`` are sets that the policy wants no
    more, and that others' rules still used. ``when`` is ISO 8601, UTC. ``services`` is the
    list of services (JSON) whose chains these are; ``text`` has only those that any list has.
    """

    name: str
    files: list[tuple[str, str]] = field(default_factory=list)
    when: str = ""
    exclusive: bool = False
    text: dict[int, str] = field(default_factory=dict)
    whole: dict[int, list[str]] = field(default_factory=dict)
    sets: list[dict[str, Any]] = field(default_factory=list)
    keep: list[dict[str, str]] = field(default_factory=list)
    raw: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    services: str = ""

    @classmethod
    def of(cls, wanted: Wanted, exclusive: bool) -> Record:
        """Return the record of a policy that is applied now."""
        return cls(
            check_name(wanted.name),
            list(wanted.files),
            now(),
            exclusive,
            _text_of(wanted),
            {
                family: sorted(name for name, table in tables.items() if table.whole)
                for family, tables in wanted.tables.items()
            },
            [
                {key: getattr(one, key) for key in ("name", "type", "family", "options", "entries")}
                for one in wanted.sets
            ],
            [keep._asdict() for keep in wanted.keep],
            sorted(wanted.raw),
            services=wanted.services.text if wanted.services is not None else "",
        )

    def only(self, families: Container[int]) -> Record:
        """Return the record of some families; the sets belong to it while it has all."""
        text = {family: text for family, text in self.text.items() if family in families}
        sets = self.sets if text.keys() == self.text.keys() else []
        return replace(self, text=text, sets=sets, raw=[f for f in self.raw if f in text])

    def beside(self, old: Record | None) -> Record:
        """Return the record of iptables-save files beside what there was of the other family.

        A file is about its own family alone, whatever the policy was before.
        """
        if old is None or not self.raw:
            return self
        for family in old.text.keys() - self.text.keys():
            self.text[family] = old.text[family]
            self.whole[family] = old.whole.get(family, [])
            self.raw = sorted({*self.raw, *({family} & set(old.raw))})
            self.sets, self.keep = old.sets, old.keep
        named = {file for file, _ in self.files}
        self.files += [each for each in old.files if each[0] not in named]
        return self

    def wanted(self) -> Wanted:
        """Return the policy again; its rules' places are lines of the record's text."""
        return Wanted(
            self.name,
            {family: self._parsed(family) for family in self.text},
            [WantedSet(**one) for one in self.sets],
            [Keep(**one) for one in self.keep],
            list(self.files),
            {family: self.text[family] for family in self.raw},
        )

    def _parsed(self, family: int) -> dict[str, WantedTable]:
        text, source = self.text[family], f"record of policy {self.name}"
        if family in self.raw:
            return saved.parse(_bytes(text), source, family)
        return _tables(text, self.whole.get(family, ()), source)

    @property
    def digest(self) -> str:
        """The SHA-256 of all that the policy wants: not of files, name, time, and what is left."""
        texts = {family: sha_of(text) for family, text in self.text.items()}
        return _digest(self._about(texts, sha_of(self.services)))

    @property
    def prefix(self) -> str:
        """What the names of services' chains begin with; "" if it has none."""
        found = _PREFIX.match(self.services)
        return found[1] if found is not None else ""

    def _about(self, texts: dict[int, str], services: str) -> dict[str, Any]:
        return {
            "exclusive": self.exclusive,
            "text": {str(family): sha for family, sha in texts.items()},
            "whole": {str(family): names for family, names in self.whole.items()},
            "sets": self.sets,
            "keep": self.keep,
            "raw": self.raw,
        } | ({"services": services} if self.services else {})


def now(clock: float | None = None) -> str:
    """Return a time (now) as the journal writes it: ISO 8601 in UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def sha_of(text: str) -> str:
    """Return the SHA-256 (hex) of a text."""
    return hashlib.sha256(_bytes(text)).hexdigest()


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


# --- files --------------------------------------------------------------------------------------


def prepare(directory: Path, record: Record) -> dict[str, str]:
    """Write a record's rules, which nobody refers to yet; return the files by family."""
    durable.make_directory(directory)
    new: dict[str, bytes] = {}
    names = {}
    texts = [(str(family), f"v{family}", text) for family, text in record.text.items()]
    texts += [(_SERVICES, _SERVICES, record.services)] if record.services else []
    for key, suffix, text in texts:
        data = _bytes(text)
        name = names[key] = f"{hashlib.sha256(data).hexdigest()}.{suffix}"
        with contextlib.suppress(FileNotFoundError):
            if (directory / name).read_bytes() == data:
                continue
        new[name] = data
    for name, data in new.items():
        durable.write(directory / name, data)
    return names


def write(directory: Path, record: Record, files: Iterable[str]) -> None:
    """Replace the record in ``files`` (CURRENT, CONFIRMED), each at once."""
    names = prepare(directory, record)
    services = names.pop(_SERVICES, "")[:64]
    about = record._about({int(family): name[:64] for family, name in names.items()}, services)
    document = {
        "version": _VERSION,
        "name": record.name,
        "files": record.files,
        "when": record.when,
        "left": record.left,
        **about,
        "digest": _digest(about),
    }
    data = json.dumps(document, indent=1).encode() + b"\n"
    for file in files:
        durable.write(directory / file, data)
    _clear(directory)


def _clear(directory: Path) -> None:
    """Remove the rules that no record refers to any more."""
    used: set[str] = set()
    for file in (CURRENT, CONFIRMED):
        with contextlib.suppress(FileNotFoundError):
            try:
                document = _document(directory / file)
                used |= {f"{sha}.v{family}" for family, sha in document["text"].items()}
                used.add(f"{document.get(_SERVICES)}.{_SERVICES}")
            except Damaged:
                return
    for path in directory.iterdir():
        if _TEXT.fullmatch(path.name) and path.name not in used:
            path.unlink(missing_ok=True)


def confirm(directory: Path) -> None:
    """Make the current record the confirmed one, too."""
    durable.write(directory / CONFIRMED, (directory / CURRENT).read_bytes())
    _clear(directory)


def read(directory: Path, file: str = CURRENT) -> Record | None:
    """Return the record, None if there is none; Damaged if it is not what was written."""
    for attempt in range(3):
        try:
            document = _document(directory / file)
        except FileNotFoundError:
            return None
        try:
            return _read(directory, document, directory / file)
        except FileNotFoundError as error:
            # another process replaced the record just now
            if attempt == 2:
                raise _damaged(error.filename, "is missing") from None
    return None


def _read(directory: Path, document: dict[str, Any], file: Path) -> Record:
    texts = {}
    for family, sha in document["text"].items():
        texts[int(family)] = _verified(directory / f"{sha}.v{family}", sha)
    listed = document.get(_SERVICES, "")
    record = Record(
        document["name"],
        [(name, sha) for name, sha in document["files"]],
        document["when"],
        document["exclusive"],
        texts,
        {int(family): names for family, names in document["whole"].items()},
        document["sets"],
        document["keep"],
        document["raw"],
        document.get("left", []),
        _verified(directory / f"{listed}.{_SERVICES}", listed) if listed else "",
    )
    shas = {int(family): sha for family, sha in document["text"].items()}
    about = record._about(shas, listed)
    if _digest(about) != document["digest"]:
        raise _damaged(file, "was changed by another hand")
    return record


def _document(file: Path) -> dict[str, Any]:
    """Return what a record says; its digest makes sure of all but these types."""
    try:
        found = json.loads(_bytes_of(file))
        if found["version"] != _VERSION:
            raise _damaged(file, "was written by another version of nfctl")
        well = (
            all(isinstance(found[key], str) for key in ("name", "when", "digest"))
            and isinstance(found["exclusive"], bool)
            and all(isinstance(found[key], list) for key in ("files", "sets", "keep", "raw"))
            and all(isinstance(name, str) and isinstance(sha, str) for name, sha in found["files"])
            and all(isinstance(name, str) for name in found.get("left", []))
            and (_SERVICES not in found or _SHA.fullmatch(found[_SERVICES]) is not None)
            and isinstance(found["whole"], dict)
            and all(family in {"4", "6"} for family in [*found["text"], *found["whole"]])
            and all(re.fullmatch("[0-9a-f]{64}", sha) for sha in found["text"].values())
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        well = False
    if not well:
        raise _damaged(file, "was changed by another hand")
    return found  # type: ignore[no-any-return]


def _verified(file: Path, sha: str) -> str:
    data = _bytes_of(file)
    if hashlib.sha256(data).hexdigest() != sha:
        raise _damaged(file, "was changed by another hand")
    return data.decode("utf-8", "surrogateescape")


def _bytes_of(file: Path) -> bytes:
    """Return what a file holds; FileNotFoundError, or Damaged where it cannot be read."""
    try:
        return durable.read(file)
    except (FileNotFoundError, PermissionError):
        raise
    except OSError as error:
        raise _damaged(file, f"cannot be read: {error.strerror}") from None


def _damaged(file: object, what: str) -> Damaged:
    return Damaged(f"{file} {what}", hint="nfctl apply of the policy writes it anew")


# --- text ---------------------------------------------------------------------------------------


def _text_of(wanted: Wanted) -> dict[int, str]:
    rendered = {f: tables for f, tables in wanted.tables.items() if f not in wanted.raw}
    if wanted.services is not None:
        prefix = wanted.services.prefix
        rendered = {family: _frame(tables, prefix) for family, tables in rendered.items()}
    texts = save_text(replace(wanted, tables=rendered))
    for family, tables in rendered.items():
        lines = sum(
            2 + len(table.chains) + sum(len(chain.rules) for chain in table.chains.values())
            for table in tables.values()
        )
        if texts[family].count("\n") != lines:
            msg = f"a rule of policy {wanted.name} holds a line break"
            raise BadInput(msg, hint="iptables-save text has a line for each rule")
    return texts | wanted.raw


def _frame(tables: dict[str, WantedTable], prefix: str) -> dict[str, WantedTable]:
    """Return the tables of services without what follows from the list: that is long."""
    frame = {}
    for name, table in tables.items():
        fixed = {f"{prefix}{chain}" for chain in FIXED[name]}
        chains = {
            chain: replace(what, rules=what.rules if chain not in fixed else [])
            for chain, what in table.chains.items()
            if chain in fixed or chain in BUILTIN_CHAINS[name]
        }
        frame[name] = replace(table, chains=chains)
    return frame


def _tables(text: str, whole: Iterable[str], source: str) -> dict[str, WantedTable]:
    """Read what ``save_text`` wrote: its digest was verified, so there is no other form.

    ``policy.saved`` would add the built-in chains that the policy does not name.
    """
    tables: dict[str, WantedTable] = {}
    table = WantedTable()
    for number, line in enumerate(text.split("\n"), 1):
        if line[:4] == '-A "':  # a name that iptables-restore would have to unquote
            words = split(line)
            chain, at = words[1].text, words[2].column if len(words) > 2 else len(line) + 1
            table.chains[chain].rules.append(WantedRule(line[at - 1 :], source, number, at))
        elif line[:1] == "-":
            _, chain, *spec = line.split(" ", 2)
            rule = WantedRule(spec[0] if spec else "", source, number, len(chain) + 5)
            table.chains[chain].rules.append(rule)
        elif line[:1] == ":":
            chain, policy, _ = line[1:].rsplit(" ", 2)
            table.chains[chain] = WantedChain([], None if policy == "-" else policy)
        elif line[:1] == "*":
            table = tables[line[1:]] = WantedTable(whole=line[1:] in whole)
    return tables
