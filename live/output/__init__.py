"""Outputs of a session: log, recordings, summary and report."""
