"""How a list of services is read: YAML, or the JSON that ``nfctl service list --json`` prints.

What stands in a list is in the docstring of the package: ``python -m pydoc nfctl.services``.
JSON of a large list is read many times quicker than YAML; only to say where a mistake is, it is
read again as YAML, which JSON is a part of.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

from nfctl import document
from nfctl.document import Kind, shown
from nfctl.errors import BadInput
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
    family_of,
)
from nfctl.services.names import PREFIX, check_prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from nfctl.document import Node

STDIN: Final = "-"
NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,179}"
_NAME: Final = re.compile(NAME)
_MAX_WEIGHT: Final = 65535
_MAX_AFFINITY: Final = 86400
_LIST: Final = ("version", "prefix", "cluster", "masquerade", "node-addresses", "services")
_SERVICE: Final = (
    "name", "port", "protocol", "cluster-ips", "external-ips", "node-port", "endpoints",
    "affinity", "source-ranges", "internal-traffic", "external-traffic", "masquerade",
)  # fmt: skip
_ENDPOINT: Final = ("address", "port", "weight", "ready", "local", "draining")
_T = TypeVar("_T")
#: What the quick ways raise for a document that is not what nfctl writes.
UNUSUAL: Final = (ValueError, TypeError, LookupError, AttributeError)
_UNIT: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


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
    if data[:1] == b"{":
        try:
            return of_document(json.loads(data, object_pairs_hook=_once))
        except (*UNUSUAL, RecursionError, BadInput):
            pass  # what is wrong, and where, is said below
    return _Reader().list(document.load(data, source))


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


def endpoint(text: str) -> Endpoint:
    """Read ``10.0.0.5:80`` or ``[fd00::5]:80``, as typed; ``*3`` behind it is its weight."""
    body, star, weight = text.partition("*")
    address, colon, port = body.rpartition(":")
    if address[:1] == "[" and address[-1:] == "]":
        address = address[1:-1]
    elif ":" in address:
        colon = ""
    try:
        found = Endpoint(
            _address(address),
            _within(int(port), 1, 65535),
            _within(int(weight), 1, _MAX_WEIGHT) if star else 1,
        )
    except ValueError:
        colon = ""
    if not (colon and body.isascii() and port.isdigit() and (not star or _is_number(weight))):
        msg = f"{shown(text)} is no endpoint"
        hint = "address:port, with IPv6 [address]:port: 10.0.0.5:8080; a weight behind: *2"
        raise BadInput(msg, hint=hint)
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


# --- values --------------------------------------------------------------------------------------


def _address(text: str) -> str:
    """Return an address of a host in the kernel's spelling; ValueError."""
    found = ipaddress.ip_address(text)
    mapped = found.version == 6 and found.ipv4_mapped is not None
    if found.is_unspecified or found.is_multicast or "%" in text or mapped:
        raise ValueError(text)
    return str(found)


def _net(text: str) -> str:
    if "%" in _is(text, str):
        raise ValueError(text)
    return str(ipaddress.ip_network(text))


def _within(number: int, low: int, high: int) -> int:
    if not low <= number <= high:
        raise ValueError(number)
    return number


def _seconds(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})([smhd]?)", text)
    if found is None:
        raise ValueError(text)
    return _within(int(found[1]) * _UNIT[found[2]], 0, _MAX_AFFINITY)


def _unique(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


# --- quickly, from a document --------------------------------------------------------------------


class _Quick:
    """Reads the document that nfctl writes; one of ``UNUSUAL`` otherwise."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}

    def list(self, found: dict[str, Any], alone: bool) -> ServiceList:
        _only(found, _LIST)
        if found["version"] != VERSION:
            raise ValueError
        masquerade = found.get("masquerade", {})
        _only(masquerade, ("mode", "mark", "mask"))
        mark = _within(_is(masquerade.get("mark", MARK), int), 1, 0xFFFFFFFF)
        services = tuple(map(self.service, found["services"]))
        made = ServiceList(
            services,
            check_prefix(_is(found.get("prefix", PREFIX), str)),
            tuple(_net(net) for net in found.get("cluster", ())),
            _one_of(masquerade.get("mode", OFF_CLUSTER), MASQUERADE),
            mark,
            _within(_is(masquerade.get("mask", mark), int), 1, 0xFFFFFFFF),
            tuple(_net(net) for net in found.get("node-addresses", ())),
        )
        if alone and next(iter(problems(made)), None) is not None:
            raise ValueError
        return made

    def service(self, found: dict[str, Any]) -> Service:
        get = found.get
        _only(found, _SERVICE)
        name = found["name"]
        if _NAME.fullmatch(name) is None:
            raise ValueError
        return Service(
            name,
            _within(_is(found["port"], int), 1, 65535),
            _one_of(get("protocol", "tcp"), PROTOCOLS),
            tuple(map(self.address, get("cluster-ips", ()))),
            tuple(map(self.address, get("external-ips", ()))),
            _within(_is(get("node-port", 0), int), 0, 65535),
            tuple(map(self.endpoint, found["endpoints"])),
            _within(_is(get("affinity", 0), int), 0, _MAX_AFFINITY),
            tuple(map(_net, get("source-ranges", ()))),
            _one_of(get("internal-traffic", CLUSTER), (CLUSTER, LOCAL)) == LOCAL,
            _one_of(get("external-traffic", CLUSTER), (CLUSTER, LOCAL)) == LOCAL,
            _one_of(get("masquerade", ""), ("", *MASQUERADE)),
        )

    def endpoint(self, found: dict[str, Any]) -> Endpoint:
        _only(found, _ENDPOINT)
        get = found.get
        return Endpoint(
            self.address(found["address"]),
            _within(_is(found["port"], int), 1, 65535),
            _within(_is(get("weight", 1), int), 1, _MAX_WEIGHT),
            _is(get("ready", True), bool),
            _is(get("local", False), bool),
            _is(get("draining", False), bool),
        )

    def address(self, text: str) -> str:
        known = self._addresses.get(text)
        if known is None:
            known = self._addresses[text] = _address(_is(text, str))
        return known


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


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


# --- with places, from YAML ----------------------------------------------------------------------


class _Reader:
    """Reads a list, and says where it is wrong."""

    def list(self, root: Node) -> ServiceList:
        fields = root.mapping(required=("services",), optional=_LIST)
        if "version" in fields and fields["version"].integer() != VERSION:
            raise fields["version"].error(f"there is only version {VERSION}")
        prefix = PREFIX
        if "prefix" in fields:
            prefix = _checked(fields["prefix"], check_prefix)
        mode, mark, mask = self._masquerade(fields.get("masquerade"))
        nodes = fields["services"].list() if fields["services"].kind != Kind.NULL else []
        made = ServiceList(
            tuple(map(self._service, nodes)),
            prefix,
            self._nets(fields.get("cluster")),
            mode,
            mark,
            mask,
            self._nets(fields.get("node-addresses")),
        )
        for index, message, hint in problems(made):
            where = nodes[index] if index is not None else fields.get("cluster", root)
            raise where.error(message, hint)
        return made

    def _masquerade(self, node: Node | None) -> tuple[str, int, int]:
        if node is None:
            return OFF_CLUSTER, MARK, MARK
        if node.kind != Kind.MAPPING:
            return node.choice(*MASQUERADE), MARK, MARK
        fields = node.mapping(optional=("mode", "mark", "mask"))
        mode = fields["mode"].choice(*MASQUERADE) if "mode" in fields else OFF_CLUSTER
        mark = fields["mark"].integer(1, 0xFFFFFFFF) if "mark" in fields else MARK
        mask = fields["mask"].integer(1, 0xFFFFFFFF) if "mask" in fields else mark
        if mark & ~mask:
            raise fields["mark"].error(
                f"the mark {mark:#x} has bits that are not in the mask {mask:#x}"
            )
        return mode, mark, mask

    def _service(self, node: Node) -> Service:
        fields = node.mapping(required=("name", "port"), optional=_SERVICE)
        get = fields.get
        hint = "letters, digits and . _ / : - (not first), 180 at most, such as shop/web:http"
        return Service(
            fields["name"].text(NAME, "name of a service", hint),
            fields["port"].integer(1, 65535),
            fields["protocol"].choice(*PROTOCOLS) if "protocol" in fields else "tcp",
            self._addresses(get("cluster-ips")),
            self._addresses(get("external-ips")),
            fields["node-port"].integer(1, 65535) if "node-port" in fields else 0,
            self._endpoints(get("endpoints")),
            self._affinity(get("affinity")),
            self._nets(get("source-ranges")),
            self._is_local(get("internal-traffic")),
            self._is_local(get("external-traffic")),
            fields["masquerade"].choice(*MASQUERADE) if "masquerade" in fields else "",
        )

    def _endpoints(self, node: Node | None) -> tuple[Endpoint, ...]:
        if node is None or node.kind == Kind.NULL:
            return ()
        found: dict[tuple[str, int], Endpoint] = {}
        for item in node.list():
            one = self._endpoint(item)
            if found.setdefault(one[:2], one) is not one:
                raise item.error(f"endpoint {one} is there twice")
        return tuple(found.values())

    def _endpoint(self, node: Node) -> Endpoint:
        if node.kind != Kind.MAPPING:
            return _checked(node, endpoint)
        fields = node.mapping(required=("address", "port"), optional=_ENDPOINT)
        return Endpoint(
            _checked(fields["address"], _host),
            fields["port"].integer(1, 65535),
            fields["weight"].integer(1, _MAX_WEIGHT) if "weight" in fields else 1,
            fields["ready"].boolean() if "ready" in fields else True,
            fields["local"].boolean() if "local" in fields else False,
            fields["draining"].boolean() if "draining" in fields else False,
        )

    def _affinity(self, node: Node | None) -> int:
        if node is None or node.kind == Kind.NULL:
            return 0
        return _checked(node, _time)

    def _is_local(self, node: Node | None) -> bool:
        return node is not None and node.choice(CLUSTER, LOCAL) == LOCAL

    def _addresses(self, node: Node | None) -> tuple[str, ...]:
        return _unique(_checked(item, _host) for item in _items(node))

    def _nets(self, node: Node | None) -> tuple[str, ...]:
        return _unique(_checked(item, _range) for item in _items(node))


def _items(node: Node | None) -> Sequence[Node]:
    return () if node is None or node.kind == Kind.NULL else node.one_or_many()


def _checked(node: Node, read: Callable[[str], _T]) -> _T:
    """Read a scalar; what is wrong with it has its place."""
    try:
        return read(node.scalar())
    except BadInput as error:
        if error.where is not None:
            raise
        raise node.error(error.message, error.hint) from None


def _host(text: str) -> str:
    try:
        return _address(text)
    except ValueError:
        msg = f"{shown(text)} is no address of a host"
        raise BadInput(msg, hint="such as 10.96.0.10 or fd00::10") from None


def _range(text: str) -> str:
    try:
        return _net(text)
    except ValueError:
        msg = f"{shown(text)} is no range of addresses"
        raise BadInput(msg, hint="such as 10.0.0.0/8 or fd00::/64, with no bits behind") from None


def _time(text: str) -> int:
    try:
        return _seconds(text)
    except ValueError:
        msg = f"{shown(text)} is no time for an affinity"
        raise BadInput(msg, hint="seconds, or such as 30m or 3h; a day at most") from None


# --- what does not go together -------------------------------------------------------------------


def problems(made: ServiceList) -> Iterable[tuple[int | None, str, str]]:
    """Yield what is wrong between services: index of the service, message, hint."""
    for family in (4, 6):
        if sum(family_of(net) == family for net in made.cluster) > 1:
            yield None, f"there is more than one cluster range of IPv{family}", "take one for both"
    if made.mark & ~made.mask:
        yield None, "the mark has bits that are not in the mask", ""
    names: dict[tuple[str, str], int] = {}
    taken: dict[tuple[str, int, str], str] = {}
    for index, service in enumerate(made.services):
        if names.setdefault(service.key, index) != index:
            yield index, f"there are two services {service.name} ({service.protocol})", ""
        if not (service.cluster_ips or service.external_ips or service.node_port):
            hint = "cluster-ips, external-ips or node-port"
            yield index, f"service {service.name} has no address", hint
        places = [(ip, service.port) for ip in (*service.cluster_ips, *service.external_ips)]
        if service.node_port:
            places.append(("node-port", service.node_port))
        if len(set(places)) != len(places):
            twice = next(place for place in places if places.count(place) > 1)
            yield index, f"service {service.name} has {twice[0]} twice", ""
        if len({one[:2] for one in service.endpoints}) != len(service.endpoints):
            yield index, f"service {service.name} has an endpoint twice", ""
        for address, port in places:
            other = taken.setdefault((address, port, service.protocol), service.name)
            if other != service.name:
                where = f"{address} {port}" if address == "node-port" else f"{address}:{port}"
                msg = f"service {service.name} has {where}/{service.protocol} as {other} has"
                yield index, msg, ""
