"""How a document is put together: from the events of PyYAML's parser to the nodes of ``document``.

Events, not PyYAML's own nodes: so what is nested too deep or refers to itself is seen when it
begins, and neither recursion nor memory is at the mercy of the text. Aliases share their node.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from nfctl.document import Kind, Node, Origin, known, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nfctl.errors import BadInput

_MAX_DEPTH: Final = 64  # levels of nesting, aliases written out
_MAX_ALIASED: Final = 100_000  # nodes that aliases may add
_LONGEST_NUMBER: Final = 64  # characters; Python refuses to read some thousands

# Beside what YAML forbids: line ends that only YAML 1.1 knows, and marks that nobody sees.
_FORBIDDEN: Final = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
    "|\r(?!\n)"
)
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")

# The core schema of YAML 1.2, in its order.
_SCHEMA: Final = (
    (Kind.NULL, re.compile(r"|~|null|Null|NULL")),
    (Kind.BOOLEAN, re.compile(r"true|True|TRUE|false|False|FALSE")),
    (Kind.INTEGER, re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    (
        Kind.FLOAT,
        re.compile(
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
    ),
)
_FIRST: Final = frozenset("-+.0123456789~nNtTfF")  # what a plain scalar that is no text begins with
_TAGS: Final = {
    "tag:yaml.org,2002:str": Kind.TEXT,
    "tag:yaml.org,2002:int": Kind.INTEGER,
    "tag:yaml.org,2002:float": Kind.FLOAT,
    "tag:yaml.org,2002:bool": Kind.BOOLEAN,
    "tag:yaml.org,2002:null": Kind.NULL,
    "tag:yaml.org,2002:map": Kind.MAPPING,
    "tag:yaml.org,2002:seq": Kind.LIST,
}
# What the parsers say, and what mostly is behind it.
_HINTS: Final = (
    ("tab character", "indent with blanks, not with tabs"),
    ("mapping values are not allowed", 'quote a text with ": " in it; keys of one mapping align'),
    ("could not find expected ':'", "a key is followed by a colon and a blank"),
    ("did not find expected key", "keys of one mapping align"),
    ("expected <block end>", "keys of one mapping align, and so do the dashes of a list"),
    ("did not find expected '-'", "the dashes of a list align"),
    ("unexpected end of stream", "a quote is never closed"),
    (
        "expected ',' or",
        "a bracket or brace is never closed, a comma is missing, or "
        'a text with { or [ in it is not quoted: "${name}"',
    ),
    ("node content", 'quote a word that begins with ":" or another sign of YAML'),
    ("expected the node content", 'quote a word that begins with ":" or another sign of YAML'),
    ("expected <document start>", "one document is one mapping, list or value"),
)


def compose(text: str | bytes, source: str) -> Node:
    """Read one document; see :func:`nfctl.document.load`."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    origin = Origin(source, text.removeprefix("\ufeff"))
    bad = _FORBIDDEN.search(origin.text)
    if bad is not None:
        raise _no_text(origin, bad)
    return _Composer(origin).run()


def _no_text(origin: Origin, bad: re.Match[str]) -> BadInput:
    char, hint = bad[0], ""
    if char == "\0":
        message, hint = "this is no text: there is a NUL byte", "a text is UTF-8"
    elif "\udc80" <= char <= "\udcff":
        message, hint = "this byte is no UTF-8", "save the file as UTF-8"
    elif "\ud800" <= char <= "\udfff":
        message = "half of a surrogate pair is no character"
    elif char == "\r":
        message = "here is a carriage return without a line feed"
    else:
        message = f"the character U+{ord(char):04X} must not stand in YAML"
        hint = f'in double quotes it is written "\\u{ord(char):04x}"'
    return origin.error(message, bad.start(), hint)


class _Frame:
    """A collection that has begun and not ended."""

    __slots__ = ("key", "merge", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.key: Node | None = None  # read, and its value not yet
        self.merge: tuple[Node, Node] | None = None  # the key << and its value


class _Composer:
    def __init__(self, origin: Origin) -> None:
        self.origin = origin
        self.root: Node | None = None
        self.stack: list[_Frame] = []
        self.anchors: dict[str, Node] = {}
        self.aliased = 0

    def run(self) -> Node:
        import yaml

        begin = {yaml.MappingStartEvent: Kind.MAPPING, yaml.SequenceStartEvent: Kind.LIST}
        for event in _events(self.origin):
            kind = type(event)
            if kind is yaml.ScalarEvent:
                self._add(self._scalar(event))
            elif kind in begin:
                self._begin(event, begin[kind])
            elif kind is yaml.AliasEvent:
                self._add(self._alias(event))
            elif kind in {yaml.MappingEndEvent, yaml.SequenceEndEvent}:
                self._end()
            elif kind is yaml.DocumentStartEvent:
                self._document(event)
        return self.root or Node(self.origin, 0, Kind.NULL)

    def _document(self, event: Any) -> None:
        index = event.start_mark.index
        if self.root is not None:
            raise self.origin.error("here begins a second document", index, "one document a file")
        if event.version not in {None, (1, 2)}:
            found = ".".join(map(str, event.version))
            raise self.origin.error(f"this is no YAML {found}", index, "it is read as YAML 1.2")

    def _add(self, node: Node) -> None:
        """Put a node that is complete where it belongs."""
        if not self.stack:
            self.root = node
            return
        frame = self.stack[-1]
        if frame.node.kind is Kind.LIST:
            frame.node.children.append(node)
        elif frame.key is None:
            frame.key = self._key(node)
        else:
            key, frame.key = frame.key, None
            pairs = frame.node.pairs
            if key.raw == "<<" and not key.style:
                frame.merge = self._once(key, frame.merge), node
            else:
                self._once(key, pairs.get(key.raw))
                pairs[key.raw] = key, node
        frame.node.size += node.size
        frame.node.height = max(frame.node.height, node.height + 1)

    def _key(self, node: Node) -> Node:
        if node.kind is not Kind.TEXT:
            hint = f'quote it: "{node.raw}"' if node.raw else ""
            raise node.error(f"a key is text, not {node.raw or node.kind}", hint)
        return node

    def _once(self, key: Node, before: tuple[Node, Node] | None) -> Node:
        if before is not None:
            line = before[0].where.line
            raise key.error(f"the key {shown(key.raw)} is there already, in line {line}")
        return key

    def _begin(self, event: Any, kind: Kind) -> None:
        index = event.start_mark.index
        frame = self.stack[-1] if self.stack else None
        if frame and frame.node.kind is Kind.MAPPING and frame.key is None:
            raise self.origin.error(f"a key is text, not {kind}", index)
        self._check_depth(len(self.stack) + 1, index)
        if event.tag not in {None, "!"} and _TAGS.get(event.tag) is not kind:
            raise self._bad_tag(event, kind)
        node = Node(self.origin, index, kind)
        if event.anchor:
            self.anchors[event.anchor] = node
        self.stack.append(_Frame(node))

    def _end(self) -> None:
        frame = self.stack.pop()
        if frame.merge is not None:
            self._merge(frame.node, frame.merge[1])
        self._add(frame.node)

    def _merge(self, node: Node, value: Node) -> None:
        """Add what the mapping lacks of those that ``<<`` names, the first one first."""
        merged: dict[str, tuple[Node, Node]] = {}
        for source in value.one_or_many():
            if source.kind is not Kind.MAPPING:
                raise source.error(f"<< takes a mapping or a list of them, not {source.kind}")
            merged = source.pairs | merged
        node.pairs = merged | node.pairs

    def _alias(self, event: Any) -> Node:
        index, name = event.start_mark.index, event.anchor
        node = self.anchors.get(name)
        if node is None:
            hint = known(name, self.anchors, "anchors are")
            raise self.origin.error(f"there is no anchor &{name} before this", index, hint)
        if any(frame.node is node for frame in self.stack):
            raise self.origin.error(f"the anchor &{name} holds itself", index)
        self.aliased += node.size
        if self.aliased > _MAX_ALIASED:
            raise self.origin.error(f"aliases make more than {_MAX_ALIASED} values", index)
        self._check_depth(len(self.stack) + node.height, index)
        return node

    def _scalar(self, event: Any) -> Node:
        raw, style, tag = event.value, event.style or "", event.tag
        index = event.start_mark.index
        if style == '"' and _NO_TEXT.search(raw):
            raise self.origin.error("an escape makes what is no character of a text", index)
        kind = Kind.TEXT
        if (tag is None and not style) or tag not in {None, "!", "tag:yaml.org,2002:str"}:
            kind = _resolve(raw)
        if tag not in {None, "!"} and _TAGS.get(tag) is not kind:
            raise self._bad_tag(event, kind)
        if kind in {Kind.INTEGER, Kind.FLOAT} and len(raw) > _LONGEST_NUMBER:
            hint = "quote it if it is a text"
            raise self.origin.error(f"a number of {len(raw)} characters is too long", index, hint)
        node = Node(self.origin, index, kind, raw, style)
        if event.anchor:
            self.anchors[event.anchor] = node
        return node

    def _bad_tag(self, event: Any, kind: Kind) -> BadInput:
        tag = event.tag.replace("tag:yaml.org,2002:", "!!")
        if event.tag in _TAGS:
            message = f"the tag {shown(tag)} does not fit {kind}"
        else:
            message = f"there is no tag {shown(tag)} here"
        return self.origin.error(message, event.start_mark.index, "leave the tag out")

    def _check_depth(self, depth: int, index: int) -> None:
        if depth > _MAX_DEPTH:
            raise self.origin.error(f"more than {_MAX_DEPTH} levels are too deep", index)


def _resolve(raw: str) -> Kind:
    if not raw or raw[0] in _FIRST:
        for kind, pattern in _SCHEMA:
            if pattern.fullmatch(raw):
                return kind
    return Kind.TEXT


def _events(origin: Origin) -> Iterator[Any]:
    """Yield PyYAML's events; libyaml's parser reads ten times as fast as the one in Python."""
    import yaml

    try:
        yield from yaml.parse(origin.text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(origin, error) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # escapes of characters that do not exist: the parser in Python says nothing of the place
        raise origin.error(f"this is no YAML: {error}", origin.where(0)._replace(line=0)) from None


def _syntax_error(origin: Origin, error: Any) -> BadInput:
    """Say what the parser says, at the better of its two places, and what to do about it."""
    problem, context = str(error.problem or error.context), str(error.context or "")
    mark = error.problem_mark or error.context_mark
    index = min(mark.index, len(origin.text)) if mark else 0
    at_end = not origin.text[index:].strip()
    if error.context_mark and (at_end or "simple key" in context):
        index = error.context_mark.index
    char = origin.text[index : index + 1]
    if "cannot start any token" in problem:
        if char == "\t":
            hint = "indent with blanks, not with tabs"
        else:
            hint = "quote a word that begins with a sign of YAML"
        return origin.error(f"nothing begins with {shown(char)} here", index, hint)
    hint = next((hint for words, hint in _HINTS if words in problem), "")
    message = f"{context}: {problem}" if context else problem
    return origin.error(message, index, hint)
