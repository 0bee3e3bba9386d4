"""``nfctl demo``: a real firewall between real hosts, and which rule decided what.

Read ``firewall`` (the rules) and ``probes`` (what is sent) first, then ``runner``.
``nfctl.lab.explain`` turns two readings of the counters into the rules that a packet met.
"""

from nfctl.lab.demo.report import Outcome, Report
from nfctl.lab.demo.runner import run
from nfctl.lab.explain import Step, story

__all__ = ["run", "Report", "Outcome", "Step", "story"]
