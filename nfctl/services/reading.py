"""How a list of services is read: YAML, or the JSON that ``nfctl service list --json`` prints.

What stands in a list is in the docstring of the package: ``python -m pydoc nfctl.services``.
JSON of a large list is read many times quicker than YAML; only to say where a mistake is, it is
read again as YAML, which JSON is a part of.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final

from nfctl import document
from nfctl.errors import BadInput
from nfctl.services import conflicts, placed, values
from nfctl.services.model import (
    CLUSTER,
    LOCAL,
    MARK,
    MASQUERADE,
    OFF_CLUSTER,
    PROTOCOLS,
    VERSION,
    Endpoint,
    Service,
    ServiceList,
)
from nfctl.services.names import PREFIX, check_prefix
from nfctl.services.values import within

if TYPE_CHECKING:
    from collections.abc import Sequence

STDIN: Final = "-"
#: What the quick ways raise for a document that is not what nfctl writes.
UNUSUAL: Final = (ValueError, TypeError, LookupError, AttributeError)
_NAME: Final = re.compile(values.NAME)
_UNQUOTED: Final = re.compile(r"""(?<!["'])\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\]:[0-9]+""")


def read(file: str) -> ServiceList:
    """Read a file, "-" for standard input; BadInput with the place of what is wrong."""
    return load(file)[0]


def load(file: str) -> tuple[ServiceList, list[tuple[str, str]]]:
    """Read a file, and return its name and SHA-256 (hex), too, as the journal keeps them."""
    stdin = file == STDIN
    data = document.standard_input() if stdin else document.contents(file)
    name = "<stdin>" if stdin else file
    return parse(data, name), [(name, hashlib.sha256(data).hexdigest())]


def parse(data: bytes, source: str) -> ServiceList:
    """Read the text of a list."""
    if not data.strip():
        raise BadInput(f"{source} is empty", hint="a list without services is: services: []")
    if data[:1] == b"{":
        try:
            return of_document(json.loads(data, object_pairs_hook=_once))
        except (*UNUSUAL, RecursionError, BadInput):
            pass  # what is wrong, and where, is said below
    try:
        root = document.load(data, source)
    except BadInput as error:
        if found := _UNQUOTED.search(error.excerpt):
            error.hint = f'quote an endpoint of IPv6: "{found[0]}"'
        raise
    return placed.Reader().list(root)


def of_document(found: dict[str, Any], *, alone: bool = True) -> ServiceList:
    """Return what :meth:`ServiceList.document` said; anything unusual raises one of ``UNUSUAL``.

    Everything is checked, but nothing said about: see :func:`parse`. Where the services are not
    ``alone``, a part of a list that was checked, what is between them is not looked at.
    """
    return _Quick().list(found, alone)


def recorded(found: dict[str, Any]) -> ServiceList:
    """Return what :meth:`ServiceList.document` said, of a record whose digest was verified.

    Nothing is checked, which takes a fifth of the time; ``UNUSUAL`` for what another version said.
    """
    if found["version"] != VERSION:
        raise ValueError
    masquerade = found["masquerade"]
    return ServiceList(
        tuple(map(_recorded_service, found["services"])),
        found["prefix"],
        tuple(found["cluster"]),
        masquerade["mode"],
        masquerade["mark"],
        masquerade["mask"],
        tuple(found["node-addresses"]),
    )


def _recorded_service(found: dict[str, Any]) -> Service:
    get = found.get
    return Service(
        found["name"],
        found["port"],
        found["protocol"],
        tuple(get("cluster-ips", ())),
        tuple(get("external-ips", ())),
        get("node-port", 0),
        tuple([Endpoint(**endpoint) for endpoint in found["endpoints"]]),
        get("affinity", 0),
        tuple(get("source-ranges", ())),
        get("internal-traffic") == LOCAL,
        get("external-traffic") == LOCAL,
        get("masquerade", ""),
    )


# --- quickly, from a document --------------------------------------------------------------------


class _Quick:
    """Reads the document that nfctl writes; one of ``UNUSUAL`` otherwise."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}

    def list(self, found: dict[str, Any], alone: bool) -> ServiceList:
        _only(found, placed.LIST)
        if found["version"] != VERSION:
            raise ValueError
        masquerade = found.get("masquerade", {})
        _only(masquerade, ("mode", "mark", "mask"))
        mark = within(_is(masquerade.get("mark", MARK), int), 1, 0xFFFFFFFF)
        services = tuple(map(self.service, found["services"]))
        made = ServiceList(
            services,
            check_prefix(_is(found.get("prefix", PREFIX), str)),
            tuple(map(_net, found.get("cluster", ()))),
            _one_of(masquerade.get("mode", OFF_CLUSTER), MASQUERADE),
            mark,
            within(_is(masquerade.get("mask", mark), int), 1, 0xFFFFFFFF),
            tuple(map(_net, found.get("node-addresses", ()))),
        )
        if alone and next(conflicts.of(made), None) is not None:
            raise ValueError
        return made

    def service(self, found: dict[str, Any]) -> Service:
        get = found.get
        _only(found, placed.SERVICE)
        name = found["name"]
        if _NAME.fullmatch(name) is None:
            raise ValueError
        return Service(
            name,
            within(_is(found["port"], int), 1, values.MAX_PORT),
            _one_of(get("protocol", "tcp"), PROTOCOLS),
            tuple(map(self.address, get("cluster-ips", ()))),
            tuple(map(self.address, get("external-ips", ()))),
            within(_is(get("node-port", 0), int), 0, values.MAX_PORT),
            tuple(map(self.endpoint, found["endpoints"])),
            within(_is(get("affinity", 0), int), 0, values.MAX_AFFINITY),
            tuple(map(_net, get("source-ranges", ()))),
            _one_of(get("internal-traffic", CLUSTER), (CLUSTER, LOCAL)) == LOCAL,
            _one_of(get("external-traffic", CLUSTER), (CLUSTER, LOCAL)) == LOCAL,
            _one_of(get("masquerade", ""), ("", *MASQUERADE)),
        )

    def endpoint(self, found: dict[str, Any]) -> Endpoint:
        _only(found, placed.ENDPOINT)
        get = found.get
        return Endpoint(
            self.address(found["address"]),
            within(_is(found["port"], int), 1, values.MAX_PORT),
            within(_is(get("weight", 1), int), 1, values.MAX_WEIGHT),
            _is(get("ready", True), bool),
            _is(get("local", False), bool),
            _is(get("draining", False), bool),
        )

    def address(self, text: str) -> str:
        known = self._addresses.get(text)
        if known is None:
            known = self._addresses[text] = values.address(_is(text, str))
        return known


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _net(text: str) -> str:
    return values.net(_is(text, str))


def _only(found: dict[str, Any], keys: Sequence[str]) -> None:
    if not found.keys() <= set(keys):
        raise ValueError


def _one_of(value: Any, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError
    return str(value)


def _is(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
