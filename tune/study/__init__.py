"""The study: its storage, its workers, its pictures."""
