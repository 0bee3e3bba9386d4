"""Live packets: the kernel queues them, nfctl reads, shows and decides them (NFQUEUE).

How a packet goes, and the module that each step has to itself:

- ``placement`` puts the rules that queue packets into the table mangle, and takes them out again;
- ``queue`` receives packets from the kernel and sends verdicts back (nfnetlink_queue);
- ``headers`` decodes IPv4, IPv6, TCP, UDP and ICMP; ``payloads`` what they carry (DNS, TLS, HTTP,
  QUIC); ``flows`` keeps what is known of each flow, a ClientHello in pieces too;
- ``packet`` is one packet as rules, handlers and displays see it;
- ``rules`` are the verdict rules of a YAML file, ``handlers`` functions in Python;
  ``verdict`` is what they answer, ``rewrite`` how a packet is changed;
- ``inspector`` takes a packet through all of that; ``worker`` is the process that does so, without
  privileges; ``run`` starts and ends it all; ``replay`` does the same with a capture, without root;
- ``summary`` says in a line, ``record`` in a JSON object, what a packet is; ``show`` prints that
  without ever waiting; ``capture`` reads and writes capture files; ``figures`` are the queue's
  own counters.
"""
