"""The commands that scripts start in loops, taken apart without typer.

typer takes 45 ms to import, which is more than these commands have to do. Only plain lines are
understood here; for all others (help, completion, options written together, anything that is
wrong) the answer is None, and typer says what it has to say. What options there are and what they
are for is typer's to know as well: the tests hold the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class _Command(NamedTuple):
    """A function and how words become its arguments.

    ``words`` are its arguments for words that are no options, of which ``needed`` have to be
    there; ``options`` have the argument and its value, None if the next word is that. All that
    follows the ``words`` is for the argument ``rest``, verbatim, where there is one.
    """

    module: str
    function: str
    words: tuple[str, ...] = ()
    needed: int = 0
    options: dict[str, tuple[str, bool | None]] = {}  # noqa: RUF012 - nobody changes it
    rest: str = ""


_JSON = {"--json": ("json", True)}
_QUIET = {"--quiet": ("quiet", True), "-q": ("quiet", True)}
_LAB = {"--lab": ("lab", None), "-l": ("lab", None)}

_COMMANDS = {
    ("lab", "up"): _Command(
        "lab_standing",
        "up",
        ("topology",),
        0,
        {
            "--name": ("name", None),
            "-n": ("name", None),
            "--no-services": ("services", False),
            **_JSON,
            **_QUIET,
        },
    ),
    ("lab", "down"): _Command(
        "lab_standing",
        "down",
        ("name",),
        0,
        {"--all": ("every", True), "-a": ("every", True), **_QUIET},
    ),
    ("lab", "list"): _Command("lab_standing", "list_labs", options={**_JSON}),
    ("lab", "exec"): _Command("lab_inside", "execute", ("host",), 1, {**_LAB}, "command"),
    ("lab", "shell"): _Command("lab_inside", "shell", ("host",), 1, {**_LAB}),
}


def plain(line: Sequence[str]) -> Callable[[], int] | None:
    """Return what is to be done for a plain line, or None for one that is typer's to read."""
    command = _COMMANDS.get((line[0], line[1])) if len(line) > 1 else None
    arguments = _arguments(command, line[2:]) if command else None
    if command is None or arguments is None:
        return None

    def action() -> int:
        import importlib

        module = importlib.import_module(f"nfctl.cli.{command.module}")
        getattr(module, command.function)(**arguments)
        return 0

    return action


def _arguments(command: _Command, line: Sequence[str]) -> dict[str, object] | None:
    found: dict[str, object] = {}
    places = iter(command.words)
    words = iter(line)
    for word in words:
        if word[:1] == "-" and (word != "-" or command.needed):  # no host is called "-"
            option, equals, value = word.partition("=")
            argument, constant = command.options.get(option, ("", None))
            if not argument or (equals and (constant is not None or option[:2] != "--")):
                return None
            if constant is None and not equals:
                value = next(words, "-")
                if value[:1] == "-":
                    return None
            found[argument] = value if constant is None else constant
            continue
        place = next(places, "")
        if not place:
            return None
        found[place] = word
        if command.rest and place == command.words[-1]:
            found[command.rest] = list(words)
    return found if all(place in found for place in command.words[: command.needed]) else None
