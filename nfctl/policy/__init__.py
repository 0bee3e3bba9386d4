"""Policy files: what a firewall is to be, for IPv4 and IPv6; no C, no root, no I/O but files.

:func:`nfctl.policy.reading.read` takes a YAML policy or iptables-save files and returns a
:class:`nfctl.policy.wanted.Wanted`; :mod:`nfctl.control` compares that with what the kernel has.
This is the reference of the YAML form. A policy with a bit of everything::

    version: 1
    name: gateway
    families: [ipv4, ipv6]
    variables:
      admins: [192.0.2.0/24, "2001:db8:1::/64"]
      web: [80, 443, "8000:8010"]
      uplink: wan0
    include: gateway.d/*.yaml
    sets:
      blocked:
        type: hash:net
        family: [ipv4, ipv6]
        timeout: 3600
        comment: true
        entries:
          - 198.51.100.0/24
          - 203.0.113.7 timeout 0 comment "the printer"
          - "2001:db8:bad::/48"
    keep:
      - MY-VPN-*
      - comment: "by hand*"
    tables:
      filter:
        INPUT:
          policy: drop
          rules:
            - -i lo -j ACCEPT
            - -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
            - -m set --match-set blocked src -j DROP
            - -p icmp -j ACCEPT
            - -p ipv6-icmp -j ACCEPT
            - -s ${admins} -p tcp --dport 22 -m comment --comment "ssh, for us" -j ACCEPT
            - -p tcp -m multiport --dports ${web} -j web
            - rule: -p udp --dport 546 -j ACCEPT
              family: ipv6
        FORWARD:
          policy: drop
        web:
          - -m connlimit --connlimit-above 100 -j DROP
          - -j ACCEPT
      nat:
        POSTROUTING:
          family: ipv4
          rules:
            - -o ${uplink} -j MASQUERADE

Keys of a file
--------------

``version``
    1. Required, but in included files.
``name``
    The policy's name (default: ``default``): letters, digits, ``.``, ``_`` and ``-``, 64 at most.
    Policies of two names can share a host. Only in the top file.
``families``
    ``ipv4``, ``ipv6``, or a list: those it is for; default both. Only in the top file.
``variables``
    Values by name: text, a number, true or false (as written), or a list of them. See below.
``include``
    A path or glob, or a list of them, from the directory of the file that has the key. Globs
    (``*``, ``?``, ``[``) are taken in sorted order and may match nothing. A file that several
    include is read once; a file that includes itself in the end is refused. An included file may
    have all keys but ``name`` and ``families``, or be empty.
``sets``
    ipsets by name. See below.
``keep``
    A list of what is another program's and stays, beside what nfctl knows by itself: globs of
    chains' names, or mappings of one key: ``chain``, ``comment``, ``interface`` or ``rule`` (the
    text of a rule in iptables-save), with a glob.
``tables``
    The tables (raw, mangle, nat, filter, security), in them chains by name. A chain is a list of
    rules, or a mapping with ``policy`` (``accept`` or ``drop``, in any case; built-in chains
    only; without it the policy stays as it is; ``{ipv4: drop, ipv6: accept}`` where the families
    differ), ``rules``, and ``family`` where only one family has the chain. A chain with nothing
    behind the colon is an empty one.

Where several files have a chain, its rules come in the order of the files: what is included
first, then the including file's own. The chain has one ``policy``, if any; two that differ are
refused, and so are two sets of one name. A variable of two files has the value of the one that
includes the other; two files that do not include each other must agree.

Rules
-----

A rule is text: iptables' own rule specification, what follows ``-A CHAIN``; nothing of iptables
is renamed. Or it is a mapping of that text, ``rule``, and ``family``: ``ipv4`` or ``ipv6``.

A rule goes to every family of the policy that it fits. It fits but one if it has a word of it:
an address, ``-p icmp`` or ``-p ipv6-icmp``, ``-m icmp``, ``icmp6``, ``ttl``, ``hl``, ``rt``,
``frag``, ``hbh``, ``dst``, ..., ``-j TTL`` or ``HL``, ``--reject-with icmp-...`` or
``icmp6-...``, ``-f``, a set or a chain that one family alone has. (A word behind ``!`` counts,
too: ``! -s 10.0.0.0/8`` is a rule of IPv4.) ``-4`` and ``-6``, ``--ipv4`` and ``--ipv6`` say it
outright, as in iptables-restore. Words of both families in one rule are refused. A rule of a
family that the policy does not have is left out. Nothing is looked up: where a host's name, or a
set that the policy does not declare, is of one family alone, give the rule its ``family``.

Variables
---------

``${name}`` in a rule or an entry of a set; ``$${`` stands for ``${`` itself. A value is never
more than one word, whatever is in it: no quotes are needed in rules. (YAML needs them around a
rule in braces: ``{family: ipv6, rule: "-s ${host} -j DROP"}``.) Values may refer to other
variables. A list does what fits the option in front of it:

- ``--dports``, ``--sports``, ``--ports``, ``--ctstate``, ``--ctstatus``, ``--state``,
  ``--weekdays``, ``--monthdays``: a list with commas; of ports, 15 a rule (a range counts two),
  and several rules if there are more. It may be a part: ``--dports 22,${web}``.
- ``--match-set ${admins} src``: an ipset of the addresses, hash:net, one of each family, named
  ``nfctl-POLICY-VARIABLE-4`` and ``-6``, made and kept as those under ``sets``.
- Everywhere else one rule an element, and with several lists one for each combination, 10,000 a
  line at most. Elements of the other family are left out: with addresses of both families,
  ``-s ${admins}`` makes rules of IPv4 and of IPv6. Behind ``!`` this would match everything; it
  is refused, and ``-m set ! --match-set ${admins} src`` says what is meant.

Where a list has nothing (for a family), the rule is absent (there). Table, chain, policy and
include know no variables.

Sets
----

``type``
    As in ipset(8): ``hash:ip``, ``hash:net``, ``hash:ip,port``, ``bitmap:port``, ``list:set``, ...
``family``
    ``ipv4`` (the default), ``ipv6``, or ``[ipv4, ipv6]``: then there are two sets, NAME and
    NAME-6, each with the entries of its family, and a rule that names NAME gets the right one.
``entries``
    All that is in the set: text as behind ``ipset add NAME``, with options where they are wanted
    (``10.0.0.1 timeout 30 comment "x"``). A list of a variable gives one entry an element.
    Without the key others fill the set, and its contents stay.
``timeout``, ``hashsize``, ``maxelem``, ``bucketsize``, ``initval``, ``netmask``,
``bitmask``, ``range``, ``markmask``, ``size``, and, true or false, ``counters``, ``comment``,
``skbinfo``, ``forceadd``
    The options of ``ipset create``, for types that have them.

iptables-save files
-------------------

``read(None, v4=FILE, v6=FILE)`` takes what iptables-save prints, or any file of declarations and
``-A`` lines. Such a table is wanted whole: chains that are not in the file go, unless they are
another program's. A built-in chain with the policy ``-`` keeps what it has; counters are ignored.
"""
