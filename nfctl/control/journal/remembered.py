"""A change as the journal keeps it: the document of ``show``, made a Change again."""

from __future__ import annotations

from typing import Any

from nfctl.control.change import ChainChange, Change, Line, Run, SetChange, TableChange
from nfctl.control.journal.records import Damaged


def change_of(document: dict[str, Any]) -> Change:
    """Return the change that :func:`nfctl.control.show.document` described.

    Chains in which nothing happened are not in a document, and the places of added rules are
    only text there. Raises Damaged for what is no such document.
    """
    try:
        return Change(
            document["policy"],
            [
                TableChange(
                    table["family"],
                    table["table"],
                    [_chain(chain) for chain in table["chains"]],
                    table["digest"],
                )
                for table in document["tables"]
            ],
            [
                SetChange(
                    one["action"],
                    one["name"],
                    one["type"],
                    one["added"],
                    one["removed"],
                    tuple(one["entries"]),
                    one["note"] or "",
                )
                for one in document["sets"]
            ],
            [(one["file"], one["sha256"]) for one in document["files"]],
            list(document["notes"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"what the journal says of the change makes no sense: {error!r}"
        raise Damaged(msg, hint="another version of nfctl may have written it") from None


def _chain(chain: dict[str, Any]) -> ChainChange:
    policy = chain["policy"]
    return ChainChange(
        chain["name"],
        chain["created"],
        chain["deleted"],
        (policy["before"], policy["after"]) if policy else None,
        [Run(*run) for run in chain["runs"]],
        [_line(line) for line in chain["lines"]],
        chain["rules"]["before"],
        chain["rules"]["after"],
        chain["note"] or "",
    )


def _line(line: dict[str, Any]) -> Line:
    counted = line["packets"] is not None
    return Line(
        line["op"],
        line["number"],
        line["rule"],
        (line["packets"], line["bytes"]) if counted else None,
        line["owner"] or "",
        None,
        line["moved"],
    )
