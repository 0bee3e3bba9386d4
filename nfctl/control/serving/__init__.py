"""Virtual services kept at work: endpoints that come and go, and what becomes of their flows."""
