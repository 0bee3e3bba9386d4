"""Changing tables: one lock, one snapshot, edits, one commit; all tables or none."""
