"""What will happen at the next boot, and whether the tables are now what they will be then."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfctl.control import persist
from nfctl.control.persist import closed as persist_closed
from nfctl.control.persist.order import policy_of
from nfctl.control.persist.unit import UNIT
from nfctl.control.watching import drift
from nfctl.errors import NfctlError

if TYPE_CHECKING:
    from nfctl.control.journal.records import Record
    from nfctl.control.journal.state import State
    from nfctl.control.persist.unit import Systemd

OK, DAMAGED, UNCONFIRMED = "ok", "damaged", "unconfirmed"

#: Services that load rules at boot, and what is to be done about each.
RIVALS = {
    "netfilter-persistent.service": "systemctl disable netfilter-persistent",
    "iptables.service": "systemctl disable iptables",
    "ip6tables.service": "systemctl disable ip6tables",
    "ufw.service": "ufw disable",
    "firewalld.service": "systemctl disable --now firewalld",
    "shorewall.service": "systemctl disable shorewall",
    "shorewall6.service": "systemctl disable shorewall6",
    "ferm.service": "systemctl disable ferm",
    "nftables.service": "systemctl disable nftables, unless its rules are meant to decide, too",
}
_UFW = Path("/etc/ufw/ufw.conf")
# What a rule names besides sets, and what may not be there yet when the machine boots.
_NAMED = {
    "control group": re.compile(r"-m cgroup [^\n]*?--path (\S+)"),
    "BPF program": re.compile(r"--object-pinned (\S+)"),
}


@dataclass(slots=True)
class Policy:
    """A policy: ``state`` is OK, DAMAGED or UNCONFIRMED; ``when`` it was applied (ISO 8601)."""

    name: str
    state: str
    when: str = ""
    rules: int = 0
    digest: str = ""
    problem: str = ""


@dataclass(slots=True)
class Status:
    """All of it. ``problems`` are what keeps the rules from coming back, or away from them.

    ``unit`` is what systemd knows of the unit; ``fail`` is "closed" or "open"; ``closed`` are the
    families that a failed restore left closed; ``differs`` are the places where the kernel is
    not what was confirmed; ``rivals`` are services that restore rules of their own.
    """

    directory: str
    fail: str = persist.DEFAULT
    enabled: bool = False
    unit: dict[str, str] = field(default_factory=dict)
    policies: list[Policy] = field(default_factory=list)
    waiting: int | None = None
    closed: list[int] = field(default_factory=list)
    differs: list[drift.Drift] = field(default_factory=list)
    rivals: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether what was confirmed is in the kernel, and will be after the next boot."""
        return not self.problems

    def document(self) -> dict[str, Any]:
        """Return the JSON document; see ``nfctl.cli.persist`` for its keys."""
        unit = {
            "name": UNIT,
            "load": self.unit.get("LoadState") or None,
            "active": self.unit.get("ActiveState") or None,
            "result": self.unit.get("Result") or None,
            "since": self.unit.get("ActiveEnterTimestamp") or None,
        }
        return {
            "ok": self.ok,
            "directory": self.directory,
            "enabled": self.enabled,
            "fail": self.fail,
            "unit": unit,
            "policies": [
                {
                    "name": one.name,
                    "state": one.state,
                    "when": one.when or None,
                    "rules": one.rules,
                    "digest": one.digest or None,
                    "problem": one.problem or None,
                }
                for one in self.policies
            ],
            "waiting": self.waiting,
            "closed": self.closed,
            "differs": [one.document() for one in self.differs],
            "others": [{"service": name, "hint": hint} for name, hint in self.rivals.items()],
            "problems": self.problems,
            "hints": self.hints,
        }

    def problem(self, text: str, hint: str = "") -> None:
        """Note what is wrong, and what would be right."""
        self.problems.append(text)
        if hint and hint not in self.hints:
            self.hints.append(hint)


def look(state: State, systemd: Systemd, *, ufw: Path = _UFW) -> Status:
    """Look at all of it; nothing is changed. Raises NotPermitted where that needs root."""
    status = Status(str(state.directory), persist.fail_mode(state))
    _look_at_unit(status, systemd)
    look_at_policies(status, state)
    look_at_rivals(status, systemd, ufw)
    return status


def _look_at_unit(status: Status, systemd: Systemd) -> None:
    if not systemd.is_there:
        status.problem(
            "systemd does not run here: nothing is restored at boot",
            "have your init run nfctl persist restore before it brings up the network",
        )
        return
    try:
        (unit,) = systemd.show(UNIT)
    except NfctlError as error:
        status.problem(error.message, error.hint)
        return
    status.unit = unit
    if unit.get("LoadState") in {"", "not-found", None}:
        status.problem("not enabled: at the next boot there are no rules", "nfctl persist enable")
        return
    status.enabled = unit.get("UnitFileState") == "enabled"
    again = "nfctl persist enable"
    if unit["LoadState"] != "loaded":
        status.problem(f"systemd does not take {systemd.file}: {unit['LoadState']}", again)
    elif not status.enabled:
        status.problem(f"{UNIT} is there, but {unit.get('UnitFileState')}", again)
    if unit.get("ActiveState") == "failed":
        status.problem(
            f"the last restore failed ({unit.get('Result')})", f"journalctl -b -u {UNIT}"
        )
    if unit.get("NeedDaemonReload") == "yes":
        status.problem(f"{systemd.file} was changed since systemd read it", again)
    interpreter = _interpreter(systemd.file)
    if interpreter and not Path(interpreter).exists():
        status.problem(f"{interpreter}, which {UNIT} starts, is gone", again)


def _interpreter(unit: Path) -> str:
    try:
        lines = unit.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        start = next(line for line in lines if line.startswith("ExecStart="))
        return shlex.split(start.partition("=")[2])[0].replace("%%", "%").replace("$$", "$")
    except (OSError, StopIteration, ValueError, IndexError):
        return ""


def look_at_policies(status: Status, state: State) -> None:
    """Read every record, and compare the kernel with all that would be restored."""
    records: list[Record] = []
    for name in state.policies():
        try:
            record = state.record(name, confirmed=True)
            rules = policy_of(record).rules if record is not None else 0
        except NfctlError as error:
            status.policies.append(Policy(name, DAMAGED, problem=error.message))
            status.problem(f"policy {name} is damaged: {error.message}", "apply that policy again")
            continue
        if record is None:
            status.policies.append(Policy(name, UNCONFIRMED))
            continue
        status.policies.append(Policy(name, OK, record.when, rules, record.digest))
        records.append(record)
    pending = state.pending()
    status.waiting = pending.number if pending is not None else None
    status.closed = persist_closed.closed()
    if status.closed:
        status.problem(
            "a restore has failed, so INPUT and FORWARD are closed", "nfctl persist restore"
        )
    if not records:
        if not any(one.state == DAMAGED for one in status.policies):
            status.problem("no policy is confirmed: there is nothing to restore", "nfctl apply")
        return
    if any(one.state == DAMAGED for one in status.policies):
        return
    _look_at_names(status, records)
    try:
        change = persist.compare(state, records)
    except NfctlError as error:
        status.problem(f"it cannot be restored: {error}", "apply the policy again")
        return
    status.differs = list(drift.find(change).values())
    if status.waiting is not None:
        status.hints.append("nfctl confirm keeps the change that waits, nfctl rollback undoes it")
    elif status.differs and not status.closed:
        status.problem(
            "the tables are not what was confirmed last",
            "nfctl apply of the policy, or nfctl persist restore",
        )


def _look_at_names(status: Status, records: list[Record]) -> None:
    """Find what rules name and no policy makes: the kernel refuses them without it."""
    from nfctl.control.rehearsal import sets

    texts = [text for record in records for text in record.text.values()]
    named = {"set": sets.named(texts) - {one["name"] for record in records for one in record.sets}}
    for what, pattern in _NAMED.items():
        named[what] = {name for text in texts for name in pattern.findall(text)}
    for what, names in named.items():
        for name in sorted(names)[:10]:
            status.problem(
                f"rules name the {what} {name}, which no policy makes: where it is not there yet "
                "at boot, nothing can be restored",
                "give the policy the sets it uses (sets:); leave rules that need others to what "
                "starts those",
            )


def look_at_rivals(status: Status, systemd: Systemd, ufw: Path = _UFW) -> None:
    """Find other services that load rules at boot."""
    if not systemd.is_there:
        return
    try:
        units = systemd.show(*RIVALS)
    except NfctlError:  # that it does not answer is said of our own
        return
    for unit in units:
        name = unit.get("Id", "")
        if name not in RIVALS or unit.get("UnitFileState") not in {"enabled", "enabled-runtime"}:
            continue
        if name == "ufw.service" and not _ufw_is_on(ufw):
            continue
        status.rivals[name] = RIVALS[name]
        if name != "nftables.service":  # its rules stand beside the legacy tables
            status.problem(f"{name} loads rules of its own at boot", RIVALS[name])


def _ufw_is_on(file: Path) -> bool:
    """Whether ufw is more than installed: its unit is enabled in any case."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.replace(" ", "").lower() == "enabled=yes" for line in lines)
