from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfctl.errors import BadInput
from nfctl.ruleset import fields

ALL = {4: b"\xff" * 4, 6: b"\xff" * 16}
numbers = {4: st.integers(0, 2**32 - 1), 6: st.integers(0, 2**128 - 1)}
families = st.sampled_from([4, 6])


def packed(number: int, family: int) -> bytes:
    return number.to_bytes(len(ALL[family]), "big")


def spelled(number: int, family: int) -> str:
    return str(ipaddress.IPv4Address(number) if family == 4 else ipaddress.IPv6Address(number))


# --- addresses ---------------------------------------------------------------------------------


@given(st.data(), families)
def test_a_prefix_is_what_ipaddress_makes_of_it(data: st.DataObject, family: int) -> None:
    """Any address with any prefix length is the network that Python's ipaddress computes."""
    number = data.draw(numbers[family])
    length = data.draw(st.integers(0, 32 if family == 4 else 128))
    text = f"{spelled(number, family)}/{length}"
    network = ipaddress.ip_network(text, strict=False)
    assert fields.addresses(text, family) == [
        (network.network_address.packed, network.netmask.packed)
    ]


@given(st.data(), families)
def test_a_mask_may_have_holes(data: st.DataObject, family: int) -> None:
    """A mask written out is taken bit by bit, whether it is a prefix or not."""
    number, mask = data.draw(numbers[family]), data.draw(numbers[family])
    text = f"{spelled(number, family)}/{spelled(mask, family)}"
    assert fields.addresses(text, family) == [(packed(number & mask, family), packed(mask, family))]


@given(st.data(), families)
def test_a_mask_is_printed_as_a_length_only_if_it_is_one(data: st.DataObject, family: int) -> None:
    """mask_text() gives the length of a prefix and the mask itself otherwise; both read back."""
    mask = packed(data.draw(numbers[family]), family)
    text = fields.mask_text(mask)
    bits = f"{int.from_bytes(mask, 'big'):0{len(mask) * 8}b}"
    assert text.isdecimal() == ("01" not in bits)
    zero = "0.0.0.0" if family == 4 else "::"  # noqa: S104 - an address in a rule
    assert fields.addresses(f"{zero}/{text}", family)[0][1] == mask


@given(families, st.data())
def test_every_prefix_length_prints_as_itself(family: int, data: st.DataObject) -> None:
    """prefix_mask() and mask_text() are each other's inverse."""
    length = data.draw(st.integers(0, 32 if family == 4 else 128))
    assert fields.mask_text(fields.prefix_mask(length, len(ALL[family]))) == str(length)


@given(st.lists(numbers[4], min_size=1, max_size=5))
def test_a_list_is_its_members_in_order(listed: list[int]) -> None:
    """Commas part several addresses, of which each keeps its place and its own mask."""
    text = ", ".join(f"{spelled(n, 4)}/{n % 33}" for n in listed)
    found = fields.addresses(text, 4)
    assert found == [fields.addresses(f"{spelled(n, 4)}/{n % 33}", 4)[0] for n in listed]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10", "10.0.0.0/32"),
        ("10/8", "10.0.0.0/8"),
        ("172.16/12", "172.16.0.0/12"),
        ("192.168.1/24", "192.168.1.0/24"),
        ("0x0a.010.0.1", "10.8.0.1/32"),
        ("10.1.2.3/0x18", "10.1.2.0/24"),
        ("10.1.2.3/010", "10.0.0.0/8"),
        ("10.1.2.3/255.255.0.0", "10.1.0.0/16"),
        ("anything at all/0", "0.0.0.0/0"),
        ("/0.0.0.0", "0.0.0.0/0"),
    ],
)
def test_ipv4_spellings_of_iptables(text: str, expected: str) -> None:
    """Addresses cut short, in any C base, with any mask; with mask 0 the address is not read."""
    network = ipaddress.ip_network(expected)
    assert fields.addresses(text, 4) == [(network.network_address.packed, network.netmask.packed)]


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("", 4),
        (",", 4),
        ("10.0.0.1,", 4),
        ("256.0.0.1", 4),
        ("10.0.0.0.1", 4),
        ("10..1", 4),
        ("10.0.0.08", 4),
        ("10.0.0.1/33", 4),
        ("10.0.0.1/-1", 4),
        ("10.0.0.1/", 4),
        ("10.0.0.1/255.255", 4),
        ("10.0.0.1/24/24", 4),
        ("1.2.3.4\0", 4),
        ("\udcff", 4),
        ("", 6),
        ("2001:db8::1::2", 6),
        ("2001:db8::/129", 6),
        ("2001:db8::/", 6),
        ("12345::", 6),
        ("fe80::1%lo", 6),
        ("\ud800", 6),
    ],
)
def test_what_is_no_address_is_refused(text: str, family: int) -> None:
    """Neither a wrong address nor a wrong mask becomes some address; the error is BadInput."""
    with pytest.raises(BadInput):
        fields.addresses(text, family)


@pytest.mark.parametrize(("text", "family"), [("::1", 4), ("10.0.0.1", 6)])
def test_an_address_of_the_other_family_is_named_as_such(text: str, family: int) -> None:
    """The hint for an address of the wrong family is the option that selects the right one."""
    with pytest.raises(BadInput) as caught:
        fields.addresses(text, family)
    assert f"-{10 - family}" in caught.value.hint


def test_names_are_not_looked_up_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without resolve no name server is asked, with it every address found is one."""
    asked: list[str] = []

    def getaddrinfo(name: str, *_rest: object) -> list[tuple[object, ...]]:
        asked.append(name)
        return [(0, 0, 0, "", (address, 0)) for address in ("192.0.2.1", "192.0.2.2", "192.0.2.1")]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(BadInput, match="host/network") as caught:
        fields.addresses("host.example", 4)
    assert "--resolve" in caught.value.hint
    assert asked == []
    found = fields.addresses("host.example/24", 4, resolve=True)
    assert found == [(bytes([192, 0, 2, 0]), b"\xff\xff\xff\0")] * 2
    assert asked == ["host.example"]


def test_a_name_that_nobody_knows_is_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed look-up, or a name that no resolver takes, is BadInput and no other exception."""

    def getaddrinfo(name: str, *_rest: object) -> list[tuple[object, ...]]:
        name.encode("idna")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name in ("nowhere.invalid", "a..b", "x" * 300, "\udcff"):
        with pytest.raises(BadInput, match="not found"):
            fields.addresses(name, 4, resolve=True)


@given(st.text(max_size=20), families)
def test_no_text_as_an_address_is_anything_but_bad_input(text: str, family: int) -> None:
    """Whatever the text, there is a list of pairs of the right length, or BadInput."""
    try:
        found = fields.addresses(text, family)
    except BadInput:
        return
    assert found
    assert {len(part) for pair in found for part in pair} == {len(ALL[family])}


# --- protocols ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("tcp", 6),
        ("TCP", 6),
        ("udp", 17),
        ("udplite", 136),
        ("icmpv6", 58),
        ("ipv6-icmp", 58),
        ("all", 0),
        ("0", 0),
        ("255", 255),
        ("0x11", 17),
        ("021", 17),
    ],
)
def test_protocols_by_name_and_number(text: str, number: int) -> None:
    """A protocol is one of libxtables' names in any case, or a number in any C base."""
    assert fields.protocol_number(text) == number


@pytest.mark.parametrize("text", ["256", "-1", "bogus", "", "tcp ", "0x", "08", "6.0", "t\0cp"])
def test_what_is_no_protocol_is_refused(text: str) -> None:
    """Numbers over 255, negative ones and unknown names are BadInput that quotes them."""
    with pytest.raises(BadInput) as caught:
        fields.protocol_number(text)
    assert f'"{text}"' in caught.value.message


def test_the_name_printed_for_a_number_is_the_first_one() -> None:
    """Of the several names of protocol 58 iptables-save prints ipv6-icmp, of 135 the long one."""
    assert fields.PROTOCOL_NAMES[58] == "ipv6-icmp"
    assert fields.PROTOCOL_NAMES[135] == "mobility-header"


@given(st.integers(0, 2**40))
def test_numbers_are_read_as_c_does(number: int) -> None:
    """Decimal, octal and hexadecimal spellings are the same number, as with strtoul(s, 0, 0)."""
    spellings = {str(number), f"0x{number:x}", f"0X{number:X}", f"0{number:o}"}
    assert {fields.c_integer(text) for text in spellings} == {number}


@pytest.mark.parametrize("text", ["", "0x", "08", "+1", "-1", " 1", "1 ", "1_0", "٣", "1e3"])
def test_what_python_would_take_for_a_number_and_c_would_not(text: str) -> None:
    """Signs, blanks, underscores and other scripts' digits are no numbers here."""
    assert fields.c_integer(text) is None


# --- interfaces --------------------------------------------------------------------------------

# "+" alone is any interface, for which iptables-save prints nothing.
names = st.binary(min_size=1, max_size=15).filter(lambda n: b"\0" not in n and n != b"+")


@given(names)
def test_an_interface_prints_as_it_was_given(name: bytes) -> None:
    """Any name of 1 to 15 bytes, with or without a + behind, comes back as it was."""
    text = name.decode("utf-8", "surrogateescape")
    encoded, mask = fields.interface(text)
    assert len(encoded) == len(mask) == 16
    assert encoded.rstrip(b"\0") == name
    assert fields.interface_text(encoded, mask) == text


def test_an_interface_s_mask_covers_the_end_of_the_name() -> None:
    """Eth0 must not match eth01, so that the NUL behind it is compared; eth+ matches all eth."""
    assert fields.interface("eth0")[1] == b"\xff" * 5 + b"\0" * 11
    assert fields.interface("eth+") == (b"eth+" + b"\0" * 12, b"\xff" * 3 + b"\0" * 13)
    assert fields.interface("+")[1] == b"\0" * 16


@pytest.mark.parametrize("name", ["", "x" * 16, "ä" * 8, "\udcff" * 16])
def test_interface_names_too_short_or_too_long(name: str) -> None:
    """A name needs a byte at least and may have fifteen."""
    with pytest.raises(BadInput):
        fields.interface(name)
