"""A rule's condition in few words, and what many conditions have in common.

The words are those of iptables-save, without what goes without saying: ``-m tcp``, the mask of a
single address, the dashes of long options. Comments stand at the end, as in ``iptables -L``.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nfctl.errors import BadInput
from nfctl.ruleset.words import split
from nfctl.text import visible

if TYPE_CHECKING:
    from collections.abc import Collection

_COMMENT = re.compile(r'(?:^| )-m comment --comment (?:"(?:[^"\\]|\\.)*"|[^ "]+)(?![^ ])')
_CHANCE = re.compile(r"(?:^| )-m statistic --mode random( !)? --probability ([0-9.]+)(?![^ ])")
_BEGINS = '-m comment --comment "'
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_KINDS = re.compile(r"(?<![^ ])(?:-[mp] [^ ]+|-[^ ]+|!)")
_PROTOCOLS = frozenset("tcp udp icmp icmp6 sctp udplite dccp esp ah".split())
_ADDRESSES = {"-s", "-d"}


def without_comment(condition: str) -> str:
    """Return a condition without its comments, which no packet meets."""
    if "-m comment" not in condition:
        return condition
    at = condition.find(_BEGINS)
    end = condition.find('"', at + len(_BEGINS))
    if at < 0 or condition.find('"', 0, at) >= 0 or condition.count("-m comment") > 1:
        return _COMMENT.sub("", condition).strip(" ")
    if "\\" in condition:  # it may protect a quote
        return _COMMENT.sub("", condition).strip(" ")
    # what nearly every comment is like; a pattern takes three times as long
    return (condition[:at] + condition[end + 2 :]).rstrip(" ")


def without_chance(condition: str) -> str:
    """Return a condition, comments apart already, without the dice that are thrown in it."""
    if "--mode random" not in condition:
        return condition
    return _CHANCE.sub("", condition).lstrip(" ")


def kinds(condition: str) -> str:
    """Return what a condition looks at: its matches, options and protocol, without the values."""
    if '"' in condition:
        condition = _QUOTED.sub('""', condition)
    return " ".join(_KINDS.findall(condition))


def probability(condition: str) -> float | None:
    """Return the probability (0 to 1) with which a rule that throws dice matches, or None."""
    found = None
    if "--mode random" in condition:
        found = _CHANCE.search(without_comment(condition))
    if found is None:
        return None
    try:
        value = float(found[2])
    except ValueError:
        return None
    return 1 - value if found[1] else value


def label(condition: str) -> str:
    """Return a condition in few words; "" where every packet meets it."""
    try:
        words = [word.text for word in split(condition)]
    except BadInput:
        return visible(condition)
    said: list[str] = []
    comments: list[str] = []
    inverted = ""
    at = 0
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        at += 2
        if word == "!":
            inverted, at = "! ", at - 1
            continue
        if word == "-m":
            # a match is told by its options; one without any has but its name
            alone = at >= len(words) or not (words[at].startswith("--") or words[at] == "!")
            said += [value] * (alone and value not in _PROTOCOLS)
        elif word == "-p":
            said.append(inverted + value)
        elif word in _ADDRESSES:
            said.append(f"{inverted}{word} {_host(value)}")
        elif word == "--comment":
            comments.append(value)
        elif word == "--mode" and value == "random":
            pass
        elif word == "--probability":
            said.append(inverted + percentage(value))
        elif word.startswith("--"):
            said.append(inverted + word[2:])
            at -= 1
        else:
            said.append(inverted + word)
            at -= 1
        inverted = ""
    said += [f"/* {comment} */" for comment in comments]
    return visible(" ".join(said))


def percentage(text: str) -> str:
    """Return a probability from 0 to 1 as a percentage: 0.33333333349 is 33.33%."""
    try:
        return f"{float(text) * 100:.4g}%"
    except ValueError:
        return text


def _host(address: str) -> str:
    for everything in ("/32", "/128"):
        if address.endswith(everything) and (everything == "/128") == (":" in address):
            return address[: -len(everything)]
    return address


def common(texts: Collection[str]) -> str:
    """Return what texts of the same kind have in common, with * for what differs."""
    if len(texts) == 1:
        return next(iter(texts))
    blanks = {text.count(" ") for text in texts}
    if len(blanks) > 1:
        return kinds(next(iter(texts)))
    count = blanks.pop() + 1
    words = " ".join(texts).split(" ")
    return " ".join(_common_word(set(words[at::count])) for at in range(count))


def _common_word(words: set[str]) -> str:
    if len(words) == 1:
        return next(iter(words))
    start = beginning(words)
    # half a number has no meaning; of addresses whole parts are kept
    pattern = r"[0-9A-Za-z]*$" if "." in start or ":" in start else r"[0-9]*$"
    return re.sub(pattern, "", start) + "*"


def beginning(words: Collection[str]) -> str:
    """Return what all words begin with."""
    first, last = min(words), max(words)
    for at, char in enumerate(first):
        if char != last[at : at + 1]:
            return first[:at]
    return first
