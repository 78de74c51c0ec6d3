"""A generated data set."""
