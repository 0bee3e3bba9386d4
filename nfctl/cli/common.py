"""What the commands share: options, and how errors are shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nfctl.cli import complete
from nfctl.errors import BadInput, NfctlError
from nfctl.kernel.lock import DEFAULT_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable

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


def print_json(document: object) -> None:
    """Print one document, readable on a terminal and compact in a pipe."""
    import json

    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # a name that is not UTF-8; JSON has to be
            text = json.dumps(document, indent=indent)
    write(text + "\n")


def write(text: str) -> None:
    """Write to standard output the bytes that were read: names need not be UTF-8."""
    sys.stdout.flush()
    data = text.encode("utf-8", "surrogateescape")
    while data:
        data = data[os.write(1, data) :]


def run(action: Callable[[], int]) -> int:
    """Run a command; return the exit code. Errors go to standard error, never as a traceback."""
    try:
        code = action()
        sys.stdout.flush()
    except NfctlError as error:
        show(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("nfctl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever read our output has seen enough; keep Python from complaining at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"nfctl: {name}{error.strerror or error}", file=sys.stderr)
        return 2
    return code


def show(error: NfctlError) -> None:
    """Print an error: what is wrong, where, and what would be right."""
    where = f"{error.where}: " if error.where and error.where.source else ""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    word = "\033[1;31merror:\033[0m" if colour else "error:"
    text = f"nfctl: {word} {where}{error.message}"
    if error.excerpt:
        text += f"\n{error.excerpt}"
    if error.hint:
        text += f"\n  hint: {error.hint}"
    print(text.encode("utf-8", "replace").decode("utf-8", "replace"), file=sys.stderr)
