"""What a session writes."""
