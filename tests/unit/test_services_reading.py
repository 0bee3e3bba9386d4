"""Lists of services: how they are read, and what is said about mistakes."""

from __future__ import annotations

import json
import pydoc
import textwrap
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfctl.services
from nfctl.errors import BadInput
from nfctl.services import placed, reading, values
from nfctl.services.model import Endpoint, Service, ServiceList
from tests.unit import serving
from tests.unit.strategies import refusal

if TYPE_CHECKING:
    from pathlib import Path

WEB = '{"name": "web", "port": 80, "cluster-ips": ["10.96.0.10"], "endpoints": []}'


def parse(text: str) -> ServiceList:
    return reading.parse(textwrap.dedent(text).encode(), "list.yaml")


def refused(text: str) -> BadInput:
    with pytest.raises(BadInput) as caught:
        parse(text)
    return caught.value


def one(more: str) -> str:
    """Return a list of one service with some more keys."""
    return f"services:\n- {{name: web, port: 80, {more}}}\n"


# --- what is read ---------------------------------------------------------------------------------


def example() -> str:
    doc = nfctl.services.__doc__ or ""
    begin = doc.index("    version: 1")
    return textwrap.dedent(doc[begin : doc.index("\nWhere a list of values")])


def test_the_example_of_the_docstring_means_what_is_said_there() -> None:
    """The reference's own example is a list with weights, times, both families and all keys."""
    assert parse(example()) == ServiceList(
        (
            Service(
                "shop/web:http", 80, "tcp", ("10.96.0.10", "fd00::10"), ("198.51.100.7",), 30080,
                (
                    Endpoint("10.0.0.5", 8080),
                    Endpoint("10.0.0.6", 8080, 2),
                    Endpoint("fd00::5", 8080, local=True),
                ),
                3 * 3600, ("192.0.2.0/24",), False, True,
            ),
            Service("dns", 53, "udp", ("10.96.0.53",), endpoints=(Endpoint("10.0.0.9", 53),)),
        ),
        "NFCTL-", ("10.0.0.0/9", "fd00::/48"), "off-cluster", 0x4000, 0x4000, ("192.0.2.0/24",),
    )  # fmt: skip


def test_the_reference_names_every_key() -> None:
    """What pydoc shows has every key of a list, a service and an endpoint."""
    page = pydoc.plain(pydoc.render_doc(nfctl.services))
    keys = {*placed.LIST, *placed.SERVICE, *placed.ENDPOINT, "mode", "mark", "mask"}
    missing = [key for key in keys if f"``{key}``" not in page and f"{key}:" not in page]
    assert not missing


def test_what_is_not_said_holds_by_default() -> None:
    """The shortest service is tcp, has no affinity and no policies, and kube-proxy's mark."""
    found = parse(one("node-port: 30080"))
    assert found == ServiceList((Service("web", 80, node_port=30080),))
    assert (found.mark, found.mask, found.prefix) == (0x4000, 0x4000, "NFCTL-")
    assert found.services[0].protocol == "tcp"


@pytest.mark.parametrize(
    ("said", "seconds"), [("0", 0), ("90", 90), ("30m", 1800), ("3h", 10800), ("1d", 86400)]
)
def test_affinity_in_units(said: str, seconds: int) -> None:
    """An affinity is in seconds, or has a unit."""
    assert parse(one(f"node-port: 1, affinity: {said}")).services[0].affinity == seconds


@pytest.mark.parametrize(
    ("said", "mark", "mask"),
    [
        ("always", 0x4000, 0x4000),
        ("{mode: always, mark: 0x8}", 8, 8),
        ("{mode: always, mark: 0x8, mask: 0xff}", 8, 255),
    ],
)
def test_masquerading_as_a_word_or_with_its_mark(said: str, mark: int, mask: int) -> None:
    """The mask is the mark's own bits where it is not said."""
    found = parse(f"masquerade: {said}\nservices: []\n")
    assert (found.masquerade, found.mark, found.mask) == ("always", mark, mask)


def test_json_without_a_mask_means_what_yaml_means() -> None:
    """The quick way of JSON takes the same mask as the way of YAML."""
    text = '{"version": 1, "masquerade": {"mark": 8}, "services": []}'
    assert parse(text) == parse(text.replace("{", " {", 1))
    assert parse(text).mask == 8


def test_addresses_are_spelled_as_the_kernel_does() -> None:
    """However an address is written, its names of chains are those of its shortest form."""
    found = parse(one('cluster-ips: "fd00:0::0010", endpoints: ["[FD00::0:5]:80"]')).services[0]
    assert found.cluster_ips == ("fd00::10",)
    assert found.endpoints[0].address == "fd00::5"


def test_a_file_and_its_digest(tmp_path: Path) -> None:
    """Loading returns the file's name and SHA-256, as the journal keeps them."""
    path = tmp_path / "list.yaml"
    path.write_bytes(b"services: []\n")
    assert reading.load(str(path)) == (
        ServiceList(),
        [(str(path), "a163d50c2e1cc570bf3f1da6033e37fd6154cc9ea2a9197574a17e3a11b43618")],
    )


def test_a_file_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be read is bad input, and is named."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"none\.yaml"):
        reading.read("none.yaml")


@pytest.mark.parametrize("data", [b"", b" \n\n"])
def test_an_empty_file(data: bytes) -> None:
    """What was truncated is no list without services, which would delete them all."""
    with pytest.raises(BadInput, match=r"list\.yaml is empty") as caught:
        reading.parse(data, "list.yaml")
    assert "services: []" in caught.value.hint


# --- mistakes -------------------------------------------------------------------------------------

MISTAKES = [
    ("services: 5\n", "1:11", "a list is expected"),
    ("{}\n", "1:1", "services"),
    ("version: 2\nservices: []\n", "1:10", "version 1"),
    ("prefix: KUBE\nservices: []\n", "1:9", "no prefix"),
    ("cluster: [10.0.0.0/8, 11.0.0.0/8]\nservices: []\n", "1:10", "more than one"),
    ("cluster: 10.0.0.1/8\nservices: []\n", "1:10", "no range"),
    ("masquerade: {mark: 3, mask: 1}\nservices: []\n", "1:20", "not in the mask"),
    ("masquerade: {mark: 0}\nservices: []\n", "1:20", "out of range"),
    ("masquerade: maybe\nservices: []\n", "1:13", "not possible"),
    ("version: 1\nservices:\n", "2:10", "nothing behind"),
    (one(""), "2:3", "no address"),
    (one("node-port: 70000"), "2:36", "out of range"),
    (one("nodeport: 7"), "2:25", "no key"),
    (one("protocol: icmp, node-port: 1"), "2:35", "not possible"),
    (one("cluster-ips: 10.96.0.300"), "2:38", "no address of a host"),
    (one("cluster-ips: 0.0.0.0"), "2:38", "no address of a host"),
    (one("cluster-ips: 224.0.0.1"), "2:38", "no address of a host"),
    (one('cluster-ips: "::ffff:10.0.0.1"'), "2:38", "no address of a host"),
    (one('cluster-ips: "fe80::1%eth0"'), "2:38", "no address of a host"),
    (one("cluster-ips: 10.0.0.1, external-ips: 10.0.0.1"), "2:3", "10.0.0.1 twice"),
    (one("node-port: 1, endpoints: 10.0.0.5:80"), "2:50", "a list is expected"),
    (one('node-port: 1, endpoints: ["10.0.0.5"]'), "2:51", "no endpoint"),
    (one('node-port: 1, endpoints: ["10.0.0.5:80", "10.0.0.5:80*2"]'), "2:66", "twice"),
    (one("node-port: 1, endpoints: [{address: 10.0.0.5}]"), "2:51", '"port" is missing'),
    (one('node-port: 1, endpoints: [{address: 10.0.0.5, port: "80"}]'), "2:77", "an integer"),
    (one("node-port: 1, affinity: 2d"), "2:49", "no time"),
    (one("node-port: 1, affinity: never"), "2:49", "no time"),
    (one("node-port: 1, source-ranges: [everybody]"), "2:55", "no range"),
    (one("node-port: 1, external-traffic: yes"), "2:57", "not possible"),
    ("services:\n- {name: 'a b', port: 1, node-port: 1}\n", "2:10", "no name of a service"),
    ("services:\n- {name: web, node-port: 1}\n", "2:3", '"port" is missing'),
]


@pytest.mark.parametrize(("text", "place", "message"), MISTAKES)
def test_a_mistake_has_its_place(text: str, place: str, message: str) -> None:
    """Every mistake is told with file, line and column, and what is wrong there."""
    error = refused(text)
    assert str(error.where) == f"list.yaml:{place}"
    assert message in error.message


def test_two_services_at_one_place() -> None:
    """Two services at one address and port are refused, unless their protocols differ."""
    text = """\
    services:
    - {name: a, port: 53, cluster-ips: 10.96.0.53}
    - {name: b, port: 53, protocol: PROTOCOL, cluster-ips: 10.96.0.53}
    """
    assert len(parse(text.replace("PROTOCOL", "udp")).services) == 2
    error = refused(text.replace("PROTOCOL", "tcp"))
    assert "10.96.0.53:53/tcp as a has" in error.message
    assert str(error.where) == "list.yaml:3:3"


def test_a_service_that_is_there_twice() -> None:
    """Name and protocol tell services apart: the same two are refused, one name alone is not."""
    text = "services:\n- {name: a, port: 1, node-port: 1}\n- {name: a, port: 1, node-port: 2%s}\n"
    assert len(parse(text % ", protocol: udp").services) == 2
    assert "two services a (tcp)" in refused(text % "").message


def of(*services: str) -> str:
    """Return a list of services as JSON on one line."""
    return f'{{"version": 1, "services": [{", ".join(services)}]}}'


JSON_MISTAKES = [
    of(WEB, WEB),
    '{"version": 1, "services": [], "services": []}',
    '{"version": 1, "services": "none"}',
    of('"web"'),
    of("5"),
    '{"version": true, "services": 0}',
    '{"version": 1, "masquerade": ["always"], "services": []}',
    '{"version": 1, "cluster": [5], "services": []}',
    of(WEB.replace("80", "true")),
    of(WEB.replace("[]", "[[]]")),
    of(WEB.replace("[]", '[{"address": "10.0.0.5"}]')),
    of(WEB.replace("[]", '["10.0.0.5:80", {"address": "10.0.0.5", "port": 80}]')),
    "{" * 5000,
    '{"version": 1',
]


@pytest.mark.parametrize("text", JSON_MISTAKES)
def test_a_mistake_in_json_has_its_place_too(text: str) -> None:
    """The quick way of JSON takes nothing that YAML's way does not, and leaves it the telling."""
    error = refused(text)
    assert error.where is not None
    assert error.where.line == 1


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("10.0.0.5:80", Endpoint("10.0.0.5", 80)),
        ("10.0.0.5:80*3", Endpoint("10.0.0.5", 80, 3)),
        ("[fd00::5]:80", Endpoint("fd00::5", 80)),
        ("[fd00::5]:65535*65535", Endpoint("fd00::5", 65535, 65535)),
    ],
)
def test_an_endpoint_as_typed(typed: str, found: Endpoint) -> None:
    """An endpoint is an address and a port, IPv6 in brackets, a weight behind a star."""
    assert values.endpoint(typed) == found


@pytest.mark.parametrize(
    ("typed", "wrong", "hint"),
    [
        *(
            (typed, "", "10.0.0.5:8080")
            for typed in ("", "10.0.0.5", "10.0.0.5:", ":80", "fd00::5:80", "[fd00::5]", "[]:80",
                          "10.0.0.5:80:90")
        ),
        ("10.0.0.5:80,10.0.0.6:80", "", "blanks between"),
        *(
            (f"10.0.0.5:{port}", f'"{port}" is no port', "65535 at most")
            for port in ("0", "65536", "http", "8_0", "+80", "\uff18\uff10", "80 ", "9" * 50)
        ),
        *(
            (f"10.0.0.5:80*{weight}", f'"{weight}" is no weight', "65535 at most")
            for weight in ("", "0", "65536", "+3", "1_0", "2*2")
        ),
        *(
            (f"{host}:80", f'"{host.strip("[]")}" is no address of a host', "10.0.0.5:8080")
            for host in ("224.0.0.1", "[::]", "10.0.0.256", "010.0.0.5", "[fe80::1%eth0]")
        ),
        ("web.example:80", '"web.example" is no address of a host', "names are not looked up"),
    ],
)  # fmt: skip
def test_what_is_no_endpoint(typed: str, wrong: str, hint: str) -> None:
    """What is no endpoint is refused with the part that is wrong, or the form of one."""
    with pytest.raises(BadInput, match="is no endpoint") as caught:
        values.endpoint(typed)
    assert caught.value.message.endswith(f": {wrong}" if wrong else "is no endpoint")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "line", ["- [fd00::5]:80", "  [[fd00::5]:80]", "  [10.0.0.5:80, [fd00::5]:80]"]
)
def test_an_endpoint_of_ipv6_without_quotes(line: str) -> None:
    """YAML takes its brackets for a list: whatever the parser says of it, the hint is to quote."""
    text = f"services:\n- name: web\n  port: 80\n  node-port: 1\n  endpoints:\n  {line}\n"
    assert refused(text).hint == 'quote an endpoint of IPv6: "[fd00::5]:80"'
    assert parse(text.replace("[fd00::5]:80", '"[fd00::5]:80"')).services[0].endpoints
    assert (
        "quote an endpoint" not in refused(text.replace("[fd00::5]:80", '"[fd00::5]:80": ]')).hint
    )


def test_hints_of_what_was_meant() -> None:
    """A key is told once among those that are known; a range with bits behind it has its own."""
    keys = refused(one("nodeport: 7")).hint.partition("known are ")[2].split(", ")
    assert keys[:2] == ["name", "port"]
    assert len(set(keys)) == len(keys)
    assert refused("cluster: 10.1.2.3/8\nservices: []\n").hint.endswith(": 10.0.0.0/8")


# --- round trips ----------------------------------------------------------------------------------


@given(serving.lists())
def test_a_document_is_the_list_again(settings: ServiceList) -> None:
    """JSON read quickly, and taken from a record, is the list that was written."""
    text = json.dumps(settings.document())
    assert reading.of_document(json.loads(text)) == settings
    assert reading.recorded(json.loads(text)) == settings
    assert reading.parse(text.encode(), "list.json") == settings


@given(serving.lists().filter(lambda one: len(one.services) < 3))
def test_yaml_reads_the_document_as_json_does(settings: ServiceList) -> None:
    """Behind a comment it is YAML's way that reads, and to the same list."""
    text = "# by hand\n" + json.dumps(settings.document())
    assert reading.parse(text.encode(), "list.yaml") == settings


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in a document with each of its keys."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        found.append((value, key))
        if isinstance(inner, dict | list):
            found += _places(inner)
    return found


@given(serving.lists(), st.data())
def test_whatever_is_written_there_is_a_list_or_an_error(
    settings: ServiceList, data: st.DataObject
) -> None:
    """A document in which something is replaced by rubbish is read, or refused with a place."""
    document = settings.document()
    where, key = data.draw(st.sampled_from(_places(document)))
    where[key] = data.draw(serving.rubbish)
    found: list[ServiceList] = []
    error = refusal(lambda: found.append(reading.parse(json.dumps(document).encode(), "list")))
    if error is not None:
        assert error.where is not None
    else:
        assert reading.of_document(found[0].document()) == found[0]
