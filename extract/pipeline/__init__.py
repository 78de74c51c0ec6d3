"""One video to rows of the store."""
