"""Choosing hyperparameters with Optuna."""
