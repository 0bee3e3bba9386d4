"""The servers of a lab's hosts: a TCP echo, HTTP, UDP and DNS.

Read ``service`` first (how one is started, and what it reports), then ``server`` (the loop, and
what each kind answers). ``streams`` is a TCP connection, ``talks`` and ``httpd`` what is said on
one; ``nfctl.lab.dns`` has the messages of DNS.
"""

from nfctl.lab.services.service import Arrival, Service, stand

__all__ = ["Arrival", "Service", "stand"]
