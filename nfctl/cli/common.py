"""What the commands share: options. How they answer is in ``answer``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nfctl.cli import complete
from nfctl.errors import BadInput
from nfctl.kernel.lock import DEFAULT_WAIT

Ipv4 = Annotated[bool, typer.Option("-4", "--ipv4", help="IPv4 (the default).", show_default=False)]
Ipv6 = Annotated[bool, typer.Option("-6", "--ipv6", help="IPv6.", show_default=False)]
TableOption = Annotated[
    str,
    typer.Option(
        "-t", "--table", metavar="TABLE", autocompletion=complete.tables, help="The table."
    ),
]
Netns = Annotated[
    str | None,
    typer.Option(
        "--netns", metavar="NAME", autocompletion=complete.namespaces, show_default=False,
        help="Act in this network namespace (ip netns list).",
    ),
]  # fmt: skip
Wait = Annotated[
    float,
    typer.Option(
        "-w", "--wait", metavar="SECONDS", min=0, help="How long to wait for the xtables lock."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.", show_default=False)]
Resolve = Annotated[
    bool,
    typer.Option("--resolve", help="Look up host names in rules; they are refused otherwise.",
                 show_default=False),
]  # fmt: skip

#: For commands whose last words are a rule specification: everything after the chain is the
#: rule's, verbatim, dashes and all.
VERBATIM: dict[str, Any] = {"ignore_unknown_options": True, "allow_interspersed_args": False}

WAIT = DEFAULT_WAIT


def family(ipv4: bool, ipv6: bool) -> int:
    """Return 4 or 6 from the two options."""
    if ipv4 and ipv6:
        msg = "-4 and -6 exclude each other"
        raise BadInput(msg, hint="run the command once for each family")
    return 6 if ipv6 else 4
