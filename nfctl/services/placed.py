"""A list of services read from a document whose parts know their places, to say what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from nfctl.document import Kind
from nfctl.errors import BadInput
from nfctl.services import conflicts, values
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

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nfctl.document import Node

# Of each the keys; those without which it is none come first.
LIST: Final = ("services", "version", "prefix", "cluster", "masquerade", "node-addresses")
SERVICE: Final = (
    "name", "port", "protocol", "cluster-ips", "external-ips", "node-port", "endpoints",
    "affinity", "source-ranges", "internal-traffic", "external-traffic", "masquerade",
)  # fmt: skip
ENDPOINT: Final = ("address", "port", "weight", "ready", "local", "draining")
_T = TypeVar("_T")


class Reader:
    """Reads a list, and says where it is wrong."""

    def list(self, root: Node) -> ServiceList:
        """Return the list that a document is; BadInput with the place of what is wrong."""
        fields = root.mapping(required=LIST[:1], optional=LIST[1:])
        if "version" in fields and fields["version"].integer() != VERSION:
            raise fields["version"].error(f"there is only version {VERSION}")
        prefix = PREFIX
        if "prefix" in fields:
            prefix = _checked(fields["prefix"], check_prefix)
        mode, mark, mask = self._masquerade(fields.get("masquerade"))
        if fields["services"].kind is Kind.NULL:  # a list that was cut off would delete all
            msg = "there is nothing behind services:"
            raise fields["services"].error(msg, hint="a list without services is: services: []")
        nodes = fields["services"].list()
        made = ServiceList(
            tuple(map(self._service, nodes)),
            prefix,
            self._nets(fields.get("cluster")),
            mode,
            mark,
            mask,
            self._nets(fields.get("node-addresses")),
        )
        for index, message, hint in conflicts.of(made):
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
        fields = node.mapping(required=SERVICE[:2], optional=SERVICE[2:])
        get = fields.get
        hint = "letters, digits and . _ / : - (not first), 180 at most, such as shop/web:http"
        return Service(
            fields["name"].text(values.NAME, "name of a service", hint),
            fields["port"].integer(1, values.MAX_PORT),
            fields["protocol"].choice(*PROTOCOLS) if "protocol" in fields else "tcp",
            self._addresses(get("cluster-ips")),
            self._addresses(get("external-ips")),
            fields["node-port"].integer(1, values.MAX_PORT) if "node-port" in fields else 0,
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
            return _checked(node, values.endpoint)
        fields = node.mapping(required=ENDPOINT[:2], optional=ENDPOINT[2:])
        return Endpoint(
            _checked(fields["address"], values.host),
            fields["port"].integer(1, values.MAX_PORT),
            fields["weight"].integer(1, values.MAX_WEIGHT) if "weight" in fields else 1,
            fields["ready"].boolean() if "ready" in fields else True,
            fields["local"].boolean() if "local" in fields else False,
            fields["draining"].boolean() if "draining" in fields else False,
        )

    def _affinity(self, node: Node | None) -> int:
        if node is None or node.kind == Kind.NULL:
            return 0
        return _checked(node, values.time)

    def _is_local(self, node: Node | None) -> bool:
        return node is not None and node.choice(CLUSTER, LOCAL) == LOCAL

    def _addresses(self, node: Node | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_checked(item, values.host) for item in _items(node)))

    def _nets(self, node: Node | None) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_checked(item, values.source) for item in _items(node)))


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
