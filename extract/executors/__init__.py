"""Executors that run extraction jobs: local processes, or a Ray cluster."""
