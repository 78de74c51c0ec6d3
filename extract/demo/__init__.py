"""Generator of the synthetic demo data set."""
