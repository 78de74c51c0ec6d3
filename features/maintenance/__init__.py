"""What is done to a store after extraction."""
