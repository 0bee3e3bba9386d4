"""Readers of packets against bytes of any kind: ``python -m tests.fuzz.decode``."""
