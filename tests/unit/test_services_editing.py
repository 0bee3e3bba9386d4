"""Lists compared and changed by hand, and the flows that a change leaves behind."""

from __future__ import annotations

import pytest
from hypothesis import given

from nfctl.control.serving import gone
from nfctl.control.serving.ending import Flows
from nfctl.errors import AnswerNo, BadInput
from nfctl.services import difference, editing
from nfctl.services.model import Endpoint, Service, ServiceList
from tests.unit import serving

A, B, C = (Endpoint(f"10.0.0.{number}", 80) for number in (1, 2, 3))
SIX = Endpoint("fd00::1", 80)
WEB = Service("shop/web:http", 80, "tcp", ("10.96.0.1",), (), 30080, (A, B))
DNS = Service("dns", 53, "udp", ("10.96.0.53", "fd00::53"), endpoints=(A,))
DNS_TCP = DNS._replace(protocol="tcp")
LIST = ServiceList((WEB, DNS, DNS_TCP))


def endpoints(settings: ServiceList, word: str = "shop/web:http") -> tuple[Endpoint, ...]:
    return editing.find(settings, word).endpoints


def edited(*typed: str, how: str = editing.SET, local: bool = False) -> tuple[Endpoint, ...]:
    """Return the endpoints of web after an edit; first there are A of weight 5, and B draining."""
    first = WEB._replace(endpoints=(A._replace(weight=5, local=True), B._replace(draining=True)))
    listed = editing.with_endpoints(
        ServiceList((DNS, first)), WEB.name, editing.endpoints(typed), how, local=local
    )
    assert listed.services[0] == DNS
    return listed.services[1].endpoints


# --- names ----------------------------------------------------------------------------------------


def test_a_service_is_its_name() -> None:
    """A name that is there once needs no more; the protocol may be said all the same."""
    assert editing.find(LIST, "shop/web:http") == WEB
    assert editing.find(LIST, "shop/web:http/tcp") == WEB
    assert editing.find(LIST, "dns/udp") == DNS
    assert editing.find(LIST, "dns/tcp") == DNS_TCP


def test_a_name_that_ends_as_a_protocol() -> None:
    """A service that is called so comes before one of that protocol."""
    odd = Service("dns/udp", 53, "tcp", node_port=1)
    assert editing.find(LIST._replace(services=(DNS, odd)), "dns/udp") == odd


def test_a_name_that_is_there_twice() -> None:
    """Where there are two protocols, both ways to say which are told."""
    with pytest.raises(BadInput, match="2 services called dns") as caught:
        editing.find(LIST, "dns")
    assert "dns/udp or dns/tcp" in caught.value.hint


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("web", "did you mean shop/web:http?"),
        ("WEB", "did you mean shop/web:http?"),
        ("dnss", "did you mean dns/udp or dns/tcp?"),
        ("dns/icmp", "did you mean dns/udp or dns/tcp?"),
        ("zzz", "there are shop/web:http, dns/udp, dns/tcp"),
        ("shop/web:http/udp", "did you mean shop/web:http?"),
    ],
)
def test_an_unknown_name_has_a_suggestion(word: str, hint: str) -> None:
    """A name that is not there is answered with the one that was probably meant."""
    with pytest.raises(AnswerNo, match="there is no service") as caught:
        editing.find(LIST, word)
    assert caught.value.hint == hint


def test_an_unknown_name_where_there_is_none() -> None:
    """Without services the hint is how there are some."""
    with pytest.raises(AnswerNo) as caught:
        editing.find(ServiceList(), "web")
    assert "nfctl service apply" in caught.value.hint


# --- endpoints ------------------------------------------------------------------------------------


def test_set_endpoints_keeps_what_is_known_of_those_that_stay() -> None:
    """Weight and flags stay, in the order there was; others go, new ones come behind."""
    kept = A._replace(weight=5, local=True)
    assert edited("10.0.0.3:80", "10.0.0.1:80") == (kept, C)
    assert edited("10.0.0.2:80") == (B._replace(draining=True),)


def test_a_weight_that_is_said_holds() -> None:
    """*1 is a weight, too, though it is the one that holds by default."""
    assert edited("10.0.0.1:80*1") == (A._replace(local=True),)
    assert edited("10.0.0.1:80*2", "10.0.0.3:80*7") == (
        A._replace(local=True, weight=2),
        C._replace(weight=7),
    )


def test_endpoints_added_and_removed() -> None:
    """--add leaves the others, --remove too; one that is added again gets its new weight."""
    first = (A._replace(weight=5, local=True), B._replace(draining=True))
    assert edited("10.0.0.3:80", how=editing.ADD) == (*first, C)
    assert edited("10.0.0.1:80*2", how=editing.ADD) == (first[0]._replace(weight=2), first[1])
    assert edited("10.0.0.1:80", how=editing.REMOVE) == first[1:]
    assert edited("10.0.0.3:80", how=editing.ADD, local=True)[2].local


def test_an_endpoint_that_is_not_there_cannot_be_removed() -> None:
    """What is there is told."""
    with pytest.raises(AnswerNo, match=r"has no endpoint 10\.0\.0\.3:80") as caught:
        edited("10.0.0.3:80", how=editing.REMOVE)
    assert "10.0.0.1:80, 10.0.0.2:80" in caught.value.hint


def test_an_endpoint_typed_twice() -> None:
    """The same endpoint with two weights is a mistake."""
    with pytest.raises(BadInput, match="twice"):
        editing.endpoints(["10.0.0.1:80", "10.0.0.1:80*2"])


def test_services_deleted() -> None:
    """The named ones go; where one of them is not there, none does."""
    assert editing.without(LIST, ["dns/udp"]).services == (WEB, DNS_TCP)
    with pytest.raises(AnswerNo):
        editing.without(LIST, ["dns/udp", "nobody"])


# --- differences ----------------------------------------------------------------------------------


@given(serving.lists())
def test_a_list_does_not_differ_from_itself(settings: ServiceList) -> None:
    """No difference is false, and has no lines; against nothing, all services come."""
    assert not difference.compare(settings, settings)
    assert not difference.lines(difference.compare(settings, settings))
    assert difference.compare(None, settings).come == list(settings.services)


@given(serving.lists(), serving.lists())
def test_a_difference_says_all(before: ServiceList, after: ServiceList) -> None:
    """What comes, goes and differs makes the one list from the other; so do endpoints."""
    found = difference.compare(before, after)
    keys = {service.key for service in before.services}
    keys -= {service.key for service in found.gone}
    keys |= {service.key for service in found.come}
    assert keys == {service.key for service in after.services}
    for change in found.differ:
        come, gone_, differ = change.endpoints()
        left = {e[:2] for e in change.before.endpoints} - {e[:2] for e in gone_}
        assert left | {e[:2] for e in come} == {e[:2] for e in change.after.endpoints}
        assert bool(come or gone_ or differ or change.settings()) or (
            change.before.endpoints != change.after.endpoints
        )


def test_the_lines_of_a_difference() -> None:
    """A service that comes, one that goes, one that differs, and what the list says for all."""
    after = LIST._replace(
        services=(
            WEB._replace(endpoints=(A._replace(weight=2), C), affinity=60, internal_local=True),
            DNS._replace(name="dns2", endpoints=(A, B._replace(ready=False))),
        ),
        cluster=("10.0.0.0/9",),
    )
    assert difference.lines(difference.compare(LIST, after)) == [
        ("*", "cluster: none -> 10.0.0.0/9"),
        ("+", "dns2 (udp): 10.96.0.53:53, [fd00::53]:53; 2 endpoints, of which 1 serves"),
        ("-", "dns (udp): 1 endpoint"),
        ("-", "dns (tcp): 1 endpoint"),
        (
            "*",
            "shop/web:http (tcp): affinity 0 -> 60; internal-traffic cluster -> local; "
            "+ 10.0.0.3:80; - 10.0.0.2:80; * 10.0.0.1:80 weight 1 -> 2",
        ),
    ]
    moved = LIST._replace(services=(DNS, WEB, DNS_TCP))
    assert difference.lines(difference.compare(LIST, moved)) == [("*", "services in another order")]


def test_many_services_are_not_told_one_by_one() -> None:
    """Of thousands that come the first are told, and the number of the others."""
    many = ServiceList(tuple(WEB._replace(name=f"s{n}") for n in range(1000)))
    found = difference.lines(difference.compare(None, many))
    assert len(found) == 51
    assert found[-1] == ("+", "... and 950 more services")


@pytest.mark.parametrize(
    ("service", "said"),
    [
        (WEB, []),
        (WEB._replace(endpoints=()), ["has no endpoint that serves: connections are rejected"]),
        (
            WEB._replace(endpoints=(A._replace(ready=False), B._replace(draining=True))),
            ["has no endpoint that serves: connections are rejected"],
        ),
        (DNS, ["has no endpoint of IPv6 that serves: connections are rejected"]),
        (
            WEB._replace(external_local=True),
            ["has no local endpoint: external connections are dropped"],
        ),
        (
            WEB._replace(external_local=True, internal_local=True),
            ["has no local endpoint: internal and external connections are dropped"],
        ),
        (WEB._replace(external_local=True, endpoints=(A._replace(local=True),)), []),
    ],
)
def test_what_refuses_connections_is_told(service: Service, said: list[str]) -> None:
    """Who serves nobody, in a family or by its policies, is known before the first client is."""
    found = list(difference.unserved(ServiceList((service,))))
    assert [what for _, what in found] == said


# --- flows left behind ----------------------------------------------------------------------------


def left(before: Service | None, after: Service | None) -> list[Flows]:
    """Return the flows that a change of a service leaves behind."""
    lists = [ServiceList((one,) if one is not None else ()) for one in (before, after)]
    return list(gone.left_behind(difference.compare(*lists)))


WEB_PLACES = (("10.96.0.1", 80), (None, 30080))
DNS_PLACES = (("10.96.0.53", 53), ("fd00::53", 53))


def test_flows_to_an_endpoint_that_is_gone() -> None:
    """They are those to each of the service's addresses, and to this endpoint alone."""
    assert left(WEB, WEB._replace(endpoints=(A,))) == [Flows("tcp", WEB_PLACES, B[:2])]
    assert left(WEB, None) == [Flows("tcp", WEB_PLACES, e[:2]) for e in (A, B)]


def test_flows_to_an_address_that_is_gone() -> None:
    """Where the service lost an address, its endpoints' flows by that one are left behind."""
    after = WEB._replace(node_port=0)
    assert left(WEB, after) == [Flows("tcp", WEB_PLACES[1:], e[:2]) for e in (A, B)]


def test_an_endpoint_that_is_not_ready_loses_its_udp_flows() -> None:
    """UDP goes elsewhere at once, TCP may go on; who is draining keeps both."""
    for service, lost in ((DNS._replace(endpoints=(A, B)), 1), (WEB, 0)):
        unready = (A._replace(ready=False), B)
        assert len(left(service, service._replace(endpoints=unready))) == lost
        draining = (A._replace(draining=True), B)
        assert left(service, service._replace(endpoints=draining)) == []


def test_udp_flows_from_before_there_was_an_endpoint() -> None:
    """They are not translated, and would never be: those to addresses that are served now go."""
    four = (Flows("udp", DNS_PLACES[:1], None, 4),)
    assert left(None, DNS) == [*four]
    assert left(DNS._replace(endpoints=()), DNS) == [*four]
    assert left(DNS._replace(endpoints=(A._replace(ready=False),)), DNS) == [*four]
    assert left(DNS, DNS._replace(endpoints=(A, SIX))) == [Flows("udp", DNS_PLACES[1:], None, 6)]
    assert left(DNS, DNS._replace(node_port=30053)) == [Flows("udp", ((None, 30053),), None, 4)]
    assert left(DNS, DNS._replace(endpoints=(A, B))) == []
    assert left(None, WEB) == []


@given(serving.lists())
def test_nothing_is_left_behind_by_no_change(settings: ServiceList) -> None:
    """The same list again ends no flow, and all of it being deleted those of every endpoint."""
    assert not list(gone.left_behind(difference.compare(settings, settings)))
    every = {
        (service.protocol, endpoint[:2])
        for service in settings.services
        for endpoint in service.endpoints
    }
    nothing = settings._replace(services=())
    found = gone.left_behind(difference.compare(settings, nothing))
    assert {(one.protocol, one.endpoint) for one in found} == every
