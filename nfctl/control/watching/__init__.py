"""Keeping a host at its policy: what drifted, who it was, and when to repair it."""
