"""The command line: ``nfctl COMMAND ...``.

One file a command group. Starting is quick because only the file of the command that was asked
for is imported; all of them only for ``nfctl --help`` and for completion. Plain lines of some
commands are read without typer: see ``quick``.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

#: command: (module, what to add, help panel), in the order of ``nfctl --help``.
_COMMANDS = {
    "rule": ("rule", "app", "Rules and chains"),
    "chain": ("chain", "app", "Rules and chains"),
    "save": ("save", "save", "Whole tables"),
    "restore": ("restore", "restore", "Whole tables"),
    "policy": ("policy", "app", "Changing safely"),
    "plan": ("plan", "plan", "Changing safely"),
    "apply": ("apply", "apply", "Changing safely"),
    "confirm": ("apply", "confirm", "Changing safely"),
    "history": ("history", "app", "Changing safely"),
    "rollback": ("history", "rollback", "Changing safely"),
    "persist": ("persist", "app", "Changing safely"),
    "watch": ("watch", "watch", "Changing safely"),
    "service": ("service", "app", "Services"),
    "map": ("map", "map_command", "Looking"),
    "graph": ("graph", "graph", "Looking"),
    "kube": ("kube", "app", "Looking"),
    "inspect": ("inspect", "inspect", "Looking"),
    "doctor": ("doctor", "doctor", "Looking"),
    "demo": ("demo", "demo", "Trying"),
    "lab": ("lab", "app", "Trying"),
}

_EPILOG = "IPv4 unless -6 is given. nfctl COMMAND --help has an example for every command."


def application(names: list[str], *, brief: bool = False) -> Any:
    """Return the typer application with these commands; ``brief``, without what these take."""
    import typer
    from typer.core import TyperGroup

    class InOrder(TyperGroup):
        """Lists the commands in our order; typer would put the groups last."""

        def list_commands(self, ctx: Any) -> list[str]:
            known = super().list_commands(ctx)
            return [command for command in _COMMANDS if command in known]

    app = typer.Typer(
        name="nfctl",
        cls=InOrder,
        help="A userspace controller for netfilter: the kernel's iptables tables, safely.",
        epilog=_EPILOG,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=names == list(_COMMANDS),
    )

    @app.callback()
    def nfctl(
        version: bool = typer.Option(
            False, "--version", "-V", is_eager=True, callback=_version, help="Print the version."
        ),
    ) -> None:
        pass

    for name in names:
        module, attribute, panel = _COMMANDS[name]
        member = getattr(importlib.import_module(f"nfctl.cli.{module}"), attribute)
        if brief:
            member = _brief(member)
        if isinstance(member, typer.Typer):
            for command in member.registered_commands:
                command.help = _paragraphs(command.callback)
            app.add_typer(member, name=name, rich_help_panel=panel)
        else:
            settings = getattr(member, "settings", None)
            app.command(
                name, help=_paragraphs(member), rich_help_panel=panel, context_settings=settings
            )(member)
    return app


def _brief(member: Any) -> Any:
    """Return what has the same line in ``nfctl --help``: options are slow to make."""
    import typer

    if isinstance(member, typer.Typer):
        return typer.Typer(help=member.info.help)

    def command() -> None: ...

    command.__doc__ = member.__doc__
    return command


def _paragraphs(function: Any) -> str:
    """Return a docstring with its lines joined: typer would break them where the source does."""
    import inspect

    text = inspect.getdoc(function) or ""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _version(value: bool) -> None:
    if value:
        import typer

        from nfctl import __version__

        typer.echo(f"nfctl {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line and exit with its code (0 done, 1 no, 2 bad, 3 cannot, 4, 5)."""
    # rules and names are bytes to the kernel; a tracing collector run among them only costs
    import gc

    gc.disable()
    # Python has no stream where the descriptor is closed. The descriptor is taken by one that
    # cannot be written to, so that a table saved to nowhere is an error.
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_RDONLY), number)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
    from nfctl.cli.answer import run

    first = sys.argv[1] if len(sys.argv) > 1 else ""
    completing = any(name.startswith("_NFCTL_COMPLETE") for name in os.environ)
    action = None
    if first == "lab" and not completing:
        from nfctl.cli.quick import plain

        action = plain(sys.argv[1:])
    names = [first] if first in _COMMANDS and not completing else list(_COMMANDS)
    brief = not completing and sys.argv[1:] in ([], ["--help"], ["-h"])
    code = run(action or (lambda: _run(application(names, brief=brief))))
    sys.stderr.flush()
    # Nothing is left to be done at exit, and taking 50,000 rules apart object by object is slow.
    os._exit(code)


def _run(app: Any) -> int:
    try:
        app(prog_name="nfctl")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer makes an exit code of 1 of it
            raise end.__context__ from None
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
