"""The shape of a policy file, for pydantic: what a document is checked by, and its JSON schema.

This module costs pydantic's import (80 ms): import it where a YAML policy is read, not before.
What needs more than a shape (names of chains, variables, addresses) is checked by the modules
that use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from nfctl.document import Kind
from nfctl.policy import mistakes

if TYPE_CHECKING:
    from nfctl.document import Node

VERSION: Final = 1
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_-]{0,63}$"
_MAX_U32: Final = (1 << 32) - 1

# Literal[1] would take true
_Version = Annotated[StrictInt, Field(ge=VERSION, le=VERSION), WithJsonSchema({"const": VERSION})]
FamilyWord = Literal["ipv4", "ipv6"]


def _shape(value: Any) -> str | None:
    """Say which kind of value stands where several kinds may."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "a value" if isinstance(value, str | int | float) else None


def _or_nothing(value: Any) -> str | None:
    return "nothing" if value is None else _shape(value)


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, title=None)


Scalar = Annotated[
    str | StrictBool | StrictInt | StrictFloat,
    WithJsonSchema({"type": ["string", "number", "boolean"]}),
]
Value = Annotated[
    Annotated[Scalar, Tag("a value")] | Annotated[list[Scalar], Tag("a list")],
    Discriminator(_shape),
]
Texts = Annotated[
    Annotated[str, Tag("a value")] | Annotated[list[str], Tag("a list")], Discriminator(_shape)
]
Families = Annotated[
    Annotated[FamilyWord, Tag("a value")]
    | Annotated[list[FamilyWord], Field(min_length=1), Tag("a list")],
    Discriminator(_shape),
]


class RuleItem(_Model):
    """A rule of one family."""

    rule: str = Field(
        description="iptables' own rule specification: what follows -A CHAIN.",
        examples=["-p ipv6-icmp -j ACCEPT"],
    )
    family: FamilyWord | None = Field(
        default=None, description="The one family that the rule is for; without it, all it fits."
    )


Rules = list[
    Annotated[
        Annotated[
            str,
            Field(
                title="rule",
                description="iptables' own rule specification: what follows -A CHAIN.",
                examples=["-i lo -j ACCEPT", "-p tcp --dport 22 -j ACCEPT"],
            ),
            Tag("a value"),
        ]
        | Annotated[RuleItem, Tag("a mapping")],
        Discriminator(_shape),
    ]
]


Verdict = Annotated[str, WithJsonSchema({"enum": ["accept", "drop", "ACCEPT", "DROP"]})]


class VerdictsItem(_Model):
    """A built-in chain's policy, where the families have each their own."""

    ipv4: Verdict | None = Field(default=None, description="The policy in IPv4.")
    ipv6: Verdict | None = Field(default=None, description="The policy in IPv6.")


class ChainItem(_Model):
    """A chain: its rules, in order, and a built-in chain's policy."""

    policy: Annotated[
        Annotated[Verdict, Tag("a value")]
        | Annotated[VerdictsItem, Tag("a mapping")]
        | Annotated[None, Tag("nothing")],
        Discriminator(_or_nothing),
    ] = Field(
        default=None,
        description="What a built-in chain does with a packet that no rule decided. Without it, "
        "the policy stays as it is. One for each family: {ipv4: drop, ipv6: accept}.",
    )
    family: FamilyWord | None = Field(
        default=None, description="The one family that has this chain; without it, all have."
    )
    rules: Rules | None = Field(default=None, description="The rules, in order.")


Chain = Annotated[
    Annotated[ChainItem, Tag("a mapping")]
    | Annotated[Rules, Tag("a list")]
    | Annotated[None, Tag("nothing")],
    Discriminator(_or_nothing),
]
Chains = dict[str, Chain]


class TablesItem(_Model):
    """The tables that the policy says something about, and in them its chains by name."""

    raw: Chains | None = Field(default=None, description="Before connection tracking.")
    mangle: Chains | None = Field(default=None, description="Marks and header fields.")
    nat: Chains | None = Field(
        default=None, description="The first packet of each connection: SNAT, DNAT, MASQUERADE."
    )
    filter: Chains | None = Field(default=None, description="What may pass.")
    security: Chains | None = Field(default=None, description="Marks of SELinux.")


Entry = Annotated[
    str | StrictInt,
    WithJsonSchema(
        {
            "type": ["string", "integer"],
            "examples": ["192.0.2.0/24", '10.0.0.1 timeout 30 comment "a host"', "${blocked}"],
        }
    ),
]
Number = Annotated[StrictInt, Field(ge=0, le=_MAX_U32)]


class SetItem(_Model):
    """An ipset. The options are those of ipset(8) when a set is created."""

    type: str = Field(
        description="The type, as ipset(8) calls it.",
        examples=["hash:net", "hash:ip", "hash:ip,port", "bitmap:port", "list:set"],
    )
    family: Families | None = Field(
        default=None,
        description="ipv4 (what ipset takes, too), ipv6, or both: then there are two sets, NAME "
        "and NAME-6, and rules of IPv6 get the second one.",
    )
    entries: list[Entry] | None = Field(
        default=None,
        description="All that is in the set. Without the key, others fill it.",
    )
    timeout: Annotated[StrictInt, Field(ge=0, le=2147483)] | None = Field(
        default=None, description="Seconds that an entry stays; 0: for ever, unless it says so."
    )
    hashsize: Number | None = Field(default=None, description="Buckets at first: hash types.")
    maxelem: Number | None = Field(default=None, description="Entries at most: hash types.")
    bucketsize: Annotated[StrictInt, Field(ge=2, le=14)] | None = Field(
        default=None, description="Entries of a bucket at most: hash types."
    )
    initval: Annotated[str | StrictInt, WithJsonSchema({"type": ["string", "integer"]})] | None = (
        Field(default=None, description="The seed of the hash: hash types.")
    )
    netmask: Annotated[StrictInt, Field(ge=1, le=128)] | None = Field(
        default=None, description="The prefix length that addresses are cut to: hash:ip, bitmap:ip."
    )
    bitmask: str | None = Field(
        default=None,
        description="The bits of addresses that count, as an address: hash:ip, hash:ip,port, "
        "hash:net,net.",
    )
    range: str | None = Field(
        default=None,
        description="What a bitmap type covers: addresses, a network, or ports.",
        examples=["192.168.0.0/16", "0-1024"],
    )
    markmask: Annotated[str | StrictInt, WithJsonSchema({"type": ["string", "integer"]})] | None = (
        Field(default=None, description="The bits of the mark that count: hash:ip,mark.")
    )
    size: Annotated[StrictInt, Field(ge=1, le=_MAX_U32)] | None = Field(
        default=None, description="Entries at first: list:set."
    )
    counters: StrictBool = Field(default=False, description="Entries count packets and bytes.")
    comment: StrictBool = Field(default=False, description="Entries may have comments.")
    skbinfo: StrictBool = Field(default=False, description="Entries may set marks and queues.")
    forceadd: StrictBool = Field(default=False, description="A full set loses an entry for a new.")


class KeepItem(_Model):
    """Rules or chains of other programs; exactly one key."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    chain: str | None = Field(
        default=None, description="A glob of chains' names; jumps to them are kept, too."
    )
    comment: str | None = Field(default=None, description="A glob of a rule's comment.")
    interface: str | None = Field(
        default=None, description="A glob of an interface that a rule names."
    )
    rule: str | None = Field(
        default=None, description="A glob of a rule's text, as iptables-save prints it."
    )


Keeps = list[
    Annotated[
        Annotated[str, Field(description="A glob of chains' names."), Tag("a value")]
        | Annotated[KeepItem, Tag("a mapping")],
        Discriminator(_shape),
    ]
]
Variables = dict[Annotated[str, Field(pattern=VARIABLE)], Value]


class IncludedItem(_Model):
    """What may stand in a file that another one includes."""

    version: _Version | None = Field(default=None, description="The version of the format: 1.")
    variables: Variables | None = Field(
        default=None,
        description="Words that stand for others: ${name} in rules and entries of sets.",
        examples=[{"admins": ["192.0.2.0/24", "2001:db8::/32"], "ssh": 22}],
    )
    include: Texts | None = Field(
        default=None,
        description="Paths or globs of other files, from this file's directory.",
        examples=["policy.d/*.yaml"],
    )
    sets: dict[str, SetItem] | None = Field(default=None, description="ipsets, by name.")
    keep: Keeps | None = Field(
        default=None,
        description="What is another program's and stays, beside what nfctl knows by itself.",
        examples=[["MY-VPN-*", {"comment": "added by hand*"}]],
    )
    tables: TablesItem | None = Field(
        default=None,
        description="The tables, in them chains, in them rules.",
        examples=[{"filter": {"INPUT": {"policy": "drop", "rules": ["-i lo -j ACCEPT"]}}}],
    )


class PolicyItem(IncludedItem):
    """A policy of nfctl: what the firewall of a host is to be, for IPv4 and IPv6."""

    version: _Version = Field(description="The version of the format: 1.")
    name: Annotated[str, Field(pattern=NAME)] = Field(
        default="default",
        description="The policy's name. Two policies of two names can share a host.",
    )
    families: Families | None = Field(
        default=None, description="The families it is for: ipv4, ipv6, or a list. Default: both."
    )


_TOP: Final = TypeAdapter(PolicyItem)
_INCLUDED: Final = TypeAdapter(IncludedItem)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a policy file."""
    made = _TOP.json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "nfctl policy",
    }


def check(root: Node, *, included: bool) -> None:
    """Raise BadInput, with its place, for a document that has not a policy's shape."""
    if root.kind is Kind.NULL and included:
        return
    if root.kind is not Kind.MAPPING:
        what = "nothing" if root.kind is Kind.NULL else root.kind
        raise root.error(f"a policy is a mapping, not {what}", 'it begins with "version: 1"')
    try:
        (_INCLUDED if included else _TOP).validate_python(root.plain())
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        findings = [(one["loc"], one["type"], one.get("ctx", {})) for one in found]
        raise mistakes.first(root, findings) from None
