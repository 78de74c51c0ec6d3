"""A run without torch."""
