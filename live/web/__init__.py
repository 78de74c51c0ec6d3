"""The session in a browser."""
