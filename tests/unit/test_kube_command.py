from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from nfctl import cli
from nfctl.cli.answer import run
from tests.unit.kube import DATA, MODERN

if TYPE_CHECKING:
    from pathlib import Path

DUMP = str(DATA / "v1.30.rules")
BROKEN = MODERN.replace("--probability 0.50000000000", "--probability 0.40000000000", 1)
SIX = """*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-SERVICES -d fd00:96::1/128 -p tcp -m comment --comment "shop/web:http cluster IP" \
-m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination [fd00::5]:8080
COMMIT
"""


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test in this process reach the tables of the machine it runs on."""
    monkeypatch.setattr("nfctl.kernel.table.active_tables", lambda _family: [])


def call(*words: str, text: str = "") -> int:
    """Run a command line in this process, with a text in its pipe; return its exit code."""

    def action() -> int:
        app = cli.application(["kube"])
        done = CliRunner().invoke(app, ["kube", *words], prog_name="nfctl", input=text)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.exit_code

    return run(action)


def test_show_answers_yes(capfd: pytest.CaptureFixture[str]) -> None:
    """Rules that add up: a line a service, and exit code 0."""
    code = call("show", "--rules", DUMP)
    out = capfd.readouterr().out
    assert code == 0
    assert out.startswith("KUBE-* IPv4: 6 services, 7 endpoints; mark to masquerade 0x4000/0x4000")
    assert len(out.splitlines()) == 8
    assert "problem" not in out


def test_show_answers_no(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What does not add up is listed with its place and rule, and the exit code is 1."""
    (tmp_path / "dump").write_text(BROKEN)
    code = call("show", "--rules", str(tmp_path / "dump"))
    out = capfd.readouterr().out
    assert code == 1
    assert "1 problem:\n  nat KUBE-SVC-GNZBNJ2PO5MGZ6GT rule 4: shop/web:http/tcp: " in out
    assert "--probability 0.40000000000 -j KUBE-SEP-RS4RBKLTHTF2IUXJ" in out
    code = call("show", "kube-dns", "--rules", str(tmp_path / "dump"))
    assert code == 0  # another service's problem


def test_show_json(capfd: pytest.CaptureFixture[str]) -> None:
    """--json prints one document; a service that is named is alone in it."""
    code = call("show", "--json", "kube-dns", "--rules", DUMP)
    made = json.loads(capfd.readouterr().out)
    assert code == 0
    assert [s["name"] for s in made["services"]] == ["kube-system/kube-dns:dns"]
    assert (made["prefix"], made["problems"]) == ("KUBE-", [])


def test_both_families(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Two dumps, or one with both, show a service of both twice; -4 and -6 take one."""
    (tmp_path / "six").write_text(SIX)
    (tmp_path / "both").write_text(MODERN + SIX)
    for files in (["--rules", DUMP, "--rules", str(tmp_path / "six")],
                  ["--rules", str(tmp_path / "both")]):  # fmt: skip
        assert call("show", "--json", *files) == 0
        made = json.loads(capfd.readouterr().out)
        web = [s["family"] for s in made["services"] if s["name"] == "shop/web:http"]
        assert web == [4, 6]
        assert [f["family"] for f in made["families"]] == [4, 6]
        assert call("show", "--json", "-6", *files) == 0
        assert len(json.loads(capfd.readouterr().out)["services"]) == 1
        assert call("show", *files) == 0
        assert "IPv6" in capfd.readouterr().out
    assert call("show", "-6", "--rules", DUMP) == 1
    assert "there are no rules of IPv6" in capfd.readouterr().err


def test_standard_input(capfd: pytest.CaptureFixture[str]) -> None:
    """Rules come from a pipe, too; an error names it."""
    assert call("show", "--rules", "-", text=MODERN) == 0
    assert "6 services" in capfd.readouterr().out
    assert call("show", "--rules", "-", text="*nat\n") == 2
    assert "<stdin>:1:1: COMMIT is missing" in capfd.readouterr().err


def test_prefixes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Chains of nfctl's own prefix are found; beside kube-proxy's the prefix has to be said."""
    mine = MODERN.replace("KUBE-", "NFCTL-")
    (tmp_path / "mine").write_text(mine)
    assert call("show", "--rules", str(tmp_path / "mine")) == 0
    assert capfd.readouterr().out.startswith("NFCTL-* IPv4: 6 services")
    both = ["--rules", DUMP, "--rules", str(tmp_path / "mine")]
    assert call("show", *both) == 2
    assert "hint: say which: --prefix KUBE-" in capfd.readouterr().err
    assert call("show", "--prefix", "LB", *both) == 1


def test_the_spread_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With counters: connections of each endpoint, and a hint where they are far off."""
    lines = []
    for line in MODERN.split("\n"):
        count = 0
        if line.startswith("-A KUBE-SVC-TCOU7JCQXEZGVUNU"):
            count = {"A": 0, "B": 900, "C": 100}["B" if "statistic" in line else "A" if "MASQ" in
                                                 line else "C"]  # fmt: skip
        elif "DNAT" in line and "10.244.0.2:53" in line:
            count = 900
        elif "DNAT" in line and "10.244.1.2:53" in line:
            count = 100
        lines.append(f"[{count}:{count * 60}] {line}" if line.startswith("-A") else line)
    (tmp_path / "dump").write_text("\n".join(lines))
    assert call("show", "--rules", str(tmp_path / "dump")) == 0
    out = capfd.readouterr().out
    (dns,) = [line.split() for line in out.splitlines() if "kube-dns" in line]
    assert dns == ["kube-system/kube-dns:dns/udp", "10.96.0.10:53", "2", "x", "50", "%", "1.0k",
                   "spread", "is", "off"]  # fmt: skip
    assert call("show", "kube-dns", "--rules", str(tmp_path / "dump")) == 0
    out = capfd.readouterr().out
    assert "10.244.0.2:53  50 %, 900 connections (90 %)" in out
    assert "far off the shares: 1000 connections chosen by chance" in out
    assert call("show", "kube-dns", "--json", "--rules", str(tmp_path / "dump")) == 0
    (dns,) = json.loads(capfd.readouterr().out)["services"]
    assert [e["chosen"] for e in dns["endpoints"]] == [900, 100]
    assert dns["spread"]["off"] is True
    assert dns["spread"]["chi_square"] == pytest.approx(640)


def test_explain(capfd: pytest.CaptureFixture[str]) -> None:
    """The way to each endpoint; one who refuses is an answer, nobody at all is a no."""
    assert call("explain", "10.96.0.10:53/udp", "--from", "10.244.0.7", "--rules", DUMP) == 0
    assert "=> 50 %  10.244.1.2:53, not masqueraded" in capfd.readouterr().out
    assert call("explain", "10.96.0.66:80", "--rules", DUMP) == 0
    assert "refused: REJECT in filter KUBE-SERVICES rule 1" in capfd.readouterr().out
    assert call("explain", "10.96.0.10:54/udp", "--rules", DUMP) == 1
    err = capfd.readouterr().err
    assert "nobody serves 10.96.0.10:54/udp" in err
    assert "10.96.0.10 is served at 53/udp" in err
    assert call("explain", "10.96.0.66:80", "--json", "--rules", DUMP) == 0
    assert json.loads(capfd.readouterr().out)["families"][0]["service"] == "shop/empty:http"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("show", "nothing", "--rules", DUMP), 1, "there is no service 'nothing'"),
        (("show", "--rules", "/nowhere"), 2, "/nowhere: No such file"),
        (("show", "--rules", os.devnull), 2, "there is no table"),
        (("show",), 1, "there are no chains of services"),
        (("explain", "here", "--rules", DUMP), 2, "no ADDRESS:PORT/PROTOCOL"),
        (("explain", "[fd00::1]:80", "--rules", DUMP), 1, "no rules of IPv6"),
    ],
)
def test_errors(
    words: tuple[str, ...], code: int, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each error says what is wrong, with its exit code."""
    assert call(*words) == code
    assert message in capfd.readouterr().err


def test_bytes_that_are_no_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A comment that is not UTF-8 goes through; a NUL byte is no dump."""
    (tmp_path / "dump").write_bytes(MODERN.encode().replace(b"shop/web", b"shop/\xff\xfe"))
    assert call("show", "--rules", str(tmp_path / "dump")) == 0
    assert call("show", "--json", "--rules", str(tmp_path / "dump")) == 0
    (tmp_path / "dump").write_bytes(MODERN.encode() + b"\0")
    capfd.readouterr()
    assert call("show", "--rules", str(tmp_path / "dump")) == 2
    assert "NUL byte" in capfd.readouterr().err


def test_standard_input_that_is_closed() -> None:
    """Without a standard input it is said that it is closed, and not that there is no table."""
    word = 'exec 0<&-; exec "$0" -m nfctl kube show --rules -'
    done = subprocess.run(
        ["sh", "-c", word, sys.executable], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (
        2,
        "nfctl: error: cannot read standard input: it is closed\n",
    )


def test_many_problems_are_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Of hundreds of problems the first are shown, and how many there are besides."""
    letters = "ABCDEFGHIJ"
    names = [f"KUBE-SVC-{'A' * 13}{a}{b}A" for a in letters for b in letters]
    chains = "".join(f":{name} - [0:0]\n" for name in names)
    (tmp_path / "dump").write_text(MODERN.replace("*nat\n", f"*nat\n{chains}"))
    assert call("show", "--rules", str(tmp_path / "dump")) == 1
    out = capfd.readouterr().out
    assert "100 problems:" in out
    assert "and 60 more: --json has all" in out
