"""The only room that touches C libraries, sockets, locks and namespaces.

Read ``libraries`` first (which shared objects, and how they are bound), then ``layout`` (the
bytes of an entry), ``extensions`` (libxtables), ``codec`` (rule text to bytes and back) and
``table`` (one table of one family through libiptc). To see what goes over the socket:
``strace -e setsockopt,getsockopt nfctl ...``.
"""
