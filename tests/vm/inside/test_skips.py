"""Nothing of tests/kernel is skipped on a stock kernel that this kernel could have shown."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

# It needs a security module with labels, which Debian's default is not.
ALLOWED = frozenset({"SECMARK"})
_LACKING = re.compile(r"this kernel has no (.*)", re.DOTALL)
# What is gone from Linux altogether is left out.
_EXTENSION = re.compile(r"(?:^|, )([\w-]+) \((?!\w+ \(no longer in Linux\))")


def test_the_kernel_tests_skipped_nothing_else(pytestconfig: pytest.Config) -> None:
    """The report of tests/kernel, beside this run's own, has no skip but those of extensions."""
    own = pytestconfig.getoption("xmlpath", default=None)
    report = Path(own or "none").with_name("kernel.xml")
    if own is None or not report.is_file():
        pytest.skip("needs kernel.xml, the report of tests/kernel, beside its own (--junitxml)")
    tests = list(ElementTree.parse(report).getroot().iter("testcase"))  # noqa: S314 - our own
    assert tests
    wrong = []
    for test in tests:
        for skipped in test.iter("skipped"):
            reason = skipped.get("message", "")
            lacking = _LACKING.search(reason)
            if lacking is None or set(_EXTENSION.findall(lacking[1])) - ALLOWED:
                wrong.append(f"{test.get('classname')}.{test.get('name')}: {reason}")
    assert not wrong, "\n".join(wrong)
