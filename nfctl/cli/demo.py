"""``nfctl demo``: see a firewall at work, without touching one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from nfctl.cli.answer import print_json
from nfctl.cli.common import Json  # noqa: TC001 - typer reads the annotation

if TYPE_CHECKING:
    from rich.console import Console

    from nfctl.lab.demo import Outcome, Report, Step

_PICTURE = """\
A client, a router and a server, each in a network namespace of its own:

  client ───────────── wan0 router lan0 ───────────── server
  192.0.2.10           192.0.2.1   10.77.0.1      10.77.0.10
  2001:db8:1::10   2001:db8:1::1     fd77::1        fd77::10
"""

_COLOURS = {"accepted": "green", "rejected": "yellow", "dropped": "red"}


def demo(json: Json = False) -> None:
    """Load a real firewall into a disposable network and show which rule decides what.

    A client, a router and a server are made out of network namespaces; the router gets a
    firewall (raw, mangle, nat, filter and security; IPv4 and IPv6), real packets go through
    it, and the counters that moved tell which rules they met. All of it is removed again,
    and the tables of this machine are never touched. It needs root and takes two seconds.

    Exit code 1 if anything came otherwise than expected.

    [bold]Example:[/bold] sudo nfctl demo
    """
    from nfctl.lab.demo import run

    if json:
        report = run()
        print_json(report.document())
    else:
        report = _show()
    if not report.ok:
        raise typer.Exit(1)


def _show() -> Report:
    """Run the demo and print each outcome as soon as it is known."""
    from rich.console import Console

    from nfctl.lab.demo import run

    printer = _Printer(Console(highlight=False, soft_wrap=True))
    report = run(printer.rules, printer.outcome)
    printer.summary(report)
    return report


class _Printer:
    """Prints a section a probe on a terminal, and one aligned line a probe into a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.pretty = console.is_terminal
        # Whoever reads a pipe looks for what a keyboard can type.
        self.unicode = self.pretty and console.encoding.lower().startswith("utf")

    def line(self, text: str, style: str = "", *, end: str = "\n") -> None:
        if not self.unicode:
            text = text.replace("─", "-").replace("→", "->")
        # A rule may hold square brackets, as ip6tables' DNAT does: no markup.
        self.console.print(text, style=style or None, markup=False, end=end)

    def rules(self, family: int, rules: dict[str, int]) -> None:
        if family == 4:
            self.line(_PICTURE)
        counts = ", ".join(f"{table} {number}" for table, number in rules.items())
        self.line(f"IPv{family}, rules on the router: {counts}", "bold")
        if self.pretty:
            self.line("")

    def outcome(self, outcome: Outcome) -> None:
        probe, verdict = outcome.probe, outcome.answer.verdict.value
        flow = f"{probe.source} → {probe.target} {probe.what}"
        if self.pretty:
            self.line(f"  {verdict:9} ", _COLOURS[verdict], end="")
            self.line(f"{probe.title}: {flow}{_remarks(outcome)}")
        else:
            decider = _rule(outcome.decided_by) if outcome.decided_by else "no rule"
            self.line(f"  {probe.title:18}  {flow:25}  {verdict:8}  {decider}{_remarks(outcome)}")
        self._steps(outcome)
        for problem in outcome.problems:
            self.line(f"  UNEXPECTED: {problem}", "bold red")
        if self.pretty:
            self.line("")

    def _steps(self, outcome: Outcome) -> None:
        """Print the rules in the order in which the packet met them."""
        from nfctl.lab.demo import story

        for step in story(outcome.steps):
            if step is not outcome.decided_by:
                self.line(f"            {_rule(step)}", "dim")
            elif self.pretty:
                self.line(f"            {_rule(step)}")

    def summary(self, report: Report) -> None:
        counts = ", ".join(f"{number} {what}" for what, number in report.count().items())
        wrong = sum(bool(outcome.problems) for outcome in report.outcomes)
        self.line(f"{len(report.outcomes)} probes: {counts}.")
        if wrong:
            self.line(f"{wrong} of them not as expected.", "bold red")
        else:
            self.line("All as expected.", "bold green")
        if report.left_behind:
            self.line(f"Left behind: {', '.join(report.left_behind)}", "bold red")
        else:
            self.line(f"Everything is removed again; it took {report.seconds:.1f} s.")


def _remarks(outcome: Outcome) -> str:
    """How it was refused, and what translation made of it."""
    answer = outcome.answer
    text = ""
    if answer.reason:
        sender = f" from {answer.sender}" if answer.sender else ""
        text += f"; {answer.reason}{sender}"
    if outcome.translated_by and outcome.arrived:
        text += f"; arrived at {outcome.arrived} as from {outcome.seen_as}"
    return text


def _rule(step: Step) -> str:
    """``filter:FORWARD -> SSH rule 2: -j ACCEPT (+1 packet)``."""
    number = f" rule {step.number}:" if step.number else ""
    unit = "packet" if step.packets == 1 else "packets"
    return f"{step.table}:{' → '.join(step.path)}{number} {step.text} (+{step.packets} {unit})"
