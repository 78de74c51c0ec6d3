"""The Optuna study: storage, workers, checkpoints and plots."""
