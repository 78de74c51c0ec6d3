"""Evaluation of runs: metrics, baselines, folds and subgroups."""
