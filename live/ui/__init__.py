"""What a session shows."""
