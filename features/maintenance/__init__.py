"""Maintenance of a store after extraction: describe, verify, relabel, import."""
