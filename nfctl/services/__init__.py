"""Virtual services as chains, the kube-proxy shape: rendered, and read back.

A list of services is a YAML file (JSON is YAML, too, and is read many times quicker; ``nfctl
service list --json`` writes it). ``nfctl service apply FILE`` makes the services of its prefix
those of the list::

    version: 1
    prefix: NFCTL-                  # how all chains of the list begin
    cluster: [10.0.0.0/9, fd00::/48]
    masquerade: off-cluster         # or {mode: off-cluster, mark: 0x4000, mask: 0x4000}
    node-addresses: 192.0.2.0/24
    services:
      - name: shop/web:http
        port: 80
        cluster-ips: [10.96.0.10, "fd00::10"]
        external-ips: 198.51.100.7
        node-port: 30080
        endpoints:
          - 10.0.0.5:8080
          - 10.0.0.6:8080*2         # gets twice as much as each of the others
          - {address: "fd00::5", port: 8080, ready: true, local: true}
        affinity: 3h
        source-ranges: [192.0.2.0/24]
        internal-traffic: cluster
        external-traffic: local
      - {name: dns, protocol: udp, port: 53, cluster-ips: 10.96.0.53, endpoints: ["10.0.0.9:53"]}

Where a list of values may stand, one value may stand alone. The keys, and what holds without them:

``version``
    1, the only one.
``prefix``
    Of the names of chains: a word with "-" behind it, 8 characters at most (NFCTL-). Lists of
    different prefixes live beside each other; KUBE- is kube-proxy's.
``cluster``
    The range in which endpoints and their like are, one of each family (none). What comes from
    there to a cluster IP is not masqueraded; without it, nothing is that comes to a cluster IP.
``masquerade``
    Whether endpoints see the node as the sender instead of the client: "always", "off-cluster"
    (what does not come from the cluster) or "never"; "off-cluster". What comes by external
    addresses is, unless it is "never" or ``external-traffic`` is local. An endpoint's connections
    to itself always are, or they would not come back. ``mark`` of ``mask`` is the packet mark
    that asks for it, until POSTROUTING takes it off (0x4000, kube-proxy's own; the mark).
``node-addresses``
    Ranges of this node's addresses on which node ports are served (all local addresses but
    loopback). Where they are of one family alone, the other one has no node ports; kube-proxy
    serves them at all addresses of that family (here: 0.0.0.0/0, "::/0").
``services``
    The services. Name and protocol tell them apart; two must not have the same address, port and
    protocol.

Of a service:

``name``
    Letters, digits and ``. _ / : -``, 180 at most; kube-proxy's are NAMESPACE/NAME:PORT.
``port``
    1 to 65535: at its cluster and external IPs.
``protocol``
    tcp, udp or sctp (tcp).
``cluster-ips``, ``external-ips``, ``node-port``
    Where it is reached, one of them at least; addresses of both families (none). External ones,
    and the node's port, are for those outside: source ranges and the external policy are about
    these alone.
``endpoints``
    Who serves it, each once (none): ``ADDRESS:PORT``, with IPv6 ``[ADDRESS]:PORT``, ``*WEIGHT``
    behind it; or with the keys ``address``, ``port``, ``weight`` (1 to 65535; 1), ``ready``
    (true), ``local``: it runs on this node (false), and ``draining`` (false). One that is not
    ready, or draining, gets no new connections. Connections go to endpoints of their own family.
    A service that has none is rejected; as with kube-proxy not what this node itself sends to
    external IPs that are not its own, which leaves the host untranslated.
``affinity``
    A client's connections go to one endpoint while it comes back within this time: seconds, or
    such as 30m or 3h, a day at most (0: none). The kernel remembers 100 clients an endpoint, if
    ip_list_tot of its module xt_recent is not set to more.
``source-ranges``
    Who may come in by external IPs and the node port (all). What others send is dropped, and so
    is all of a family of which there is no range.
``internal-traffic``, ``external-traffic``
    "local": what comes by cluster IPs, or by the others, goes to endpoints of this node alone,
    with the client's address, and is dropped without one ("cluster": to all).
``masquerade``
    As the list's, for this service (what the list says).

Flows of UDP to an endpoint that is gone are ended at once; those of TCP and SCTP go on, and are
what a drain waits for, as long as conntrack says that both ends may send. What was reset is not
waited for, though conntrack shows it some 10 seconds more (its state is CLOSE).

Where to look: ``reading`` reads a list (``placed`` says where it is wrong, ``values`` what is no
value, ``conflicts`` what does not go together), ``model`` is one, ``chains`` makes chains of it,
``names`` their names, ``difference`` compares two, ``editing`` changes one, ``health`` and
``checks`` ask endpoints how they are, ``observed`` reads chains back. ``nfctl.control.serving``
applies a list.
"""
