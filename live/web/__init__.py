"""Browser view of a session."""
