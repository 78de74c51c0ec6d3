"""Encoder and head trained end to end."""
