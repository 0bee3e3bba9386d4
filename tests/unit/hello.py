"""What a real TLS client says first."""

from __future__ import annotations

import ssl
from functools import cache

import pytest


@cache
def client_hello(name: str, *alpn: str, newest: str = "TLSv1_3") -> bytes:
    """Return the ClientHello of OpenSSL to a server of that name, one record."""
    context = ssl.create_default_context()
    context.maximum_version = ssl.TLSVersion[newest]
    if alpn:
        context.set_alpn_protocols(list(alpn))
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()
