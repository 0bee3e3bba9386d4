"""The jump graph of a table: which chain leads to which, on what condition.

Pure functions of iptables-save text or of tables that were read; no C library, no root. Read
``graph`` first: it holds the chains and their rules; ``families`` tells IPv4 from IPv6 in a file.
``fold`` makes of them what is drawn: a node a chain, or a node for many chains that are alike, for
which ``layers`` puts chains in order. ``tree`` draws it for a terminal, ``dot`` for
Graphviz, ``mermaid`` for Markdown. ``condition`` says a rule's matches in few words.
"""
