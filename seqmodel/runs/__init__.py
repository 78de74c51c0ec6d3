"""A run directory: what a trained model needs."""
