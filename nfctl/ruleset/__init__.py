"""Tables, chains and rules as data: no I/O, no C, needs no root.

``names`` says what exists, ``words`` how a line is split, ``fields`` what an address or an
interface is, ``spec`` what one rule says, ``script`` how a file of iptables-save text is read,
``model`` the whole of it as objects that print themselves as such text, ``circles`` whether
jumps lead round.
"""

from nfctl.ruleset.model import Chain, Counters, Rule, Ruleset, Table
from nfctl.ruleset.spec import Setting, Spec, Use

__all__ = ["Chain", "Counters", "Rule", "Ruleset", "Setting", "Spec", "Table", "Use"]
