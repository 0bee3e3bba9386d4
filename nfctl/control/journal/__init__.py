"""The journal: who changed the firewall, what was there before, and what policies own."""
