"""Disposable networks out of network namespaces, and traffic between their hosts.

Read ``lab`` first (what a lab promises, with an example), then ``host`` (how to run things
inside one) and ``traffic`` (what a packet's sender can tell). Below them: ``namespaces`` and
``wiring`` make what a lab is made of, ``records`` knows who owns it, ``fork`` runs the
children. ``demo`` is the first user. To look into a lab that is up: ``ip netns``.
"""

from nfctl.lab.host import Host, Port
from nfctl.lab.lab import Lab
from nfctl.lab.records import sweep
from nfctl.lab.service import Arrival, Service
from nfctl.lab.traffic import Answer, Verdict
from nfctl.lab.worker import Worker

__all__ = ["Lab", "Host", "Port", "Service", "Worker", "Arrival", "Answer", "Verdict", "sweep"]
