"""Heads: networks from a window of features to logits."""
