"""Prediction from frames: model, sliding window, display state, calibration."""
