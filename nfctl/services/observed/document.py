"""Services read back, as one document.

The document of ``nfctl kube show --json``:

- ``prefix``: of the chains, "KUBE-";
- ``families``: a list of ``family`` (4 or 6), ``mark`` and ``mask`` (numbers: the packet mark that
  asks for masquerading), ``node_addresses`` (for node ports; [] for all local ones) and
  ``counters`` (whether the rules have them);
- ``services``, by name, each with
  ``name``, ``family``, ``protocol``, ``port`` (null where only a node port is known);
  ``addresses``: each with ``kind`` (cluster, external, load-balancer, node), ``address`` (null for
  a node port), ``port``, ``chain`` of nat that it leads to (null: none), ``refused`` (the target of
  filter's rule, REJECT or DROP, or null) and ``source_ranges`` ([] for all);
  ``endpoints``: each with ``address`` and ``port`` (null where no rule says it), ``chain``,
  ``share`` of what comes to any endpoint and ``local_share`` of what is for those on this node
  (0 to 1; null for none), ``weight`` (the smallest whole weights that give these shares; null),
  ``hairpin`` (whether its connections to itself are masqueraded), and of counters (null without)
  ``connections``, all that were translated, ``chosen`` and ``local_chosen``, by chance;
  ``affinity`` in seconds, 0 for none; ``internal_policy`` and ``external_policy``: cluster, local,
  or null without such addresses;
  ``masquerade``: ``cluster`` (always, off-cluster, never, null: for cluster IPs), ``inside`` (off
  which cluster: a network, or "-i INTERFACE"), ``external`` (always, local, never, null);
  ``refused``: whether it has no endpoints and is rejected;
  ``spread`` and ``local_spread``: null without counters, or ``connections``, ``chi_square``,
  ``probability`` (null where there are too few) and ``off``: whether that is below 0.001;
- ``problems``: each with ``kind``, ``message``, ``family``, ``table``, ``chain``, ``rule`` (its
  number in the chain, null for the whole chain), ``text`` of the rule, ``service`` and ``protocol``
  (null for what is no single service's).

Kinds of problems: shares, probability, unreached, left-out, gone, unused, no-dnat, unreadable,
no-endpoints, conflict, affinity, firewall, entrance, postrouting, mark, foreign.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfctl.services.observed import spread
from nfctl.services.observed.shares import weights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nfctl.services.observed.model import Cluster, Problem, Service
    from nfctl.services.observed.spread import Spread


def document(
    clusters: Sequence[Cluster], services: Sequence[Service], problems: Sequence[Problem]
) -> dict[str, Any]:
    """Return the document of ``--json``; what it holds says the module's docstring."""
    families = {id(problem): c.family for c in clusters for problem in c.problems}
    return {
        "prefix": clusters[0].prefix,
        "families": [
            {
                "family": cluster.family,
                "mark": cluster.mark,
                "mask": cluster.mask,
                "node_addresses": list(cluster.node_addresses),
                "counters": cluster.counted,
            }
            for cluster in clusters
        ],
        "services": [_service(service) for service in services],
        "problems": [
            {
                "kind": problem.kind,
                "message": problem.message,
                "family": families[id(problem)],
                "table": problem.table,
                "chain": problem.chain or None,
                "rule": problem.rule or None,
                "text": problem.text or None,
                "service": problem.service or None,
                "protocol": problem.protocol or None,
            }
            for problem in problems
        ],
    }


def _service(service: Service) -> dict[str, Any]:
    local = bool(service.svl)
    return {
        "name": service.name,
        "family": service.family,
        "protocol": service.protocol,
        "port": service.port or None,
        "addresses": [
            {
                "kind": address.kind,
                "address": address.address or None,
                "port": address.port,
                "chain": address.chain or None,
                "refused": address.refused or None,
                "source_ranges": list(address.source_ranges),
            }
            for address in service.addresses
        ],
        "endpoints": _endpoints(service),
        "affinity": service.affinity,
        "internal_policy": service.internal or None,
        "external_policy": service.external or None,
        "masquerade": {
            "cluster": service.masquerade or None,
            "inside": list(service.inside),
            "external": service.external_masquerade or None,
        },
        "refused": service.refused,
        "spread": _spread(spread.of_service(service)),
        "local_spread": _spread(spread.of_service(service, local=True)) if local else None,
    }


def _endpoints(service: Service) -> list[dict[str, Any]]:
    heavy = _weights(service)
    return [
        {
            "address": endpoint.address or None,
            "port": endpoint.port or None,
            "chain": endpoint.chain,
            "share": _rounded(endpoint.share),
            "local_share": _rounded(endpoint.local_share),
            "weight": heavy.get(endpoint.chain),
            "hairpin": endpoint.hairpin,
            "connections": endpoint.connections,
            "chosen": endpoint.chosen,
            "local_chosen": endpoint.local_chosen,
        }
        for endpoint in service.endpoints
    ]


def _weights(service: Service) -> dict[str, int]:
    """Return the weight of each endpoint by its chain, of those whose shares tell."""
    everyone = [(e.chain, e.share) for e in service.endpoints if e.share is not None]
    if len(everyone) < len(service.endpoints):
        everyone = [
            (e.chain, e.local_share) for e in service.endpoints if e.local_share is not None
        ]
    found = weights(tuple([share for _, share in everyone]))
    return dict(zip([chain for chain, _ in everyone], found, strict=True)) if found else {}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 8)


def _spread(found: Spread | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "connections": found.connections,
        "chi_square": found.chi_square,
        "probability": found.probability,
        "off": found.off,
    }
