"""Metrics of predictions, their confidence intervals, and calibration."""
