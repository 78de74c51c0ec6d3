"""Hyperparameter search for heads, with Optuna."""
