"""Run directories: card, weights, split, calibration and predictions of a trained model."""
