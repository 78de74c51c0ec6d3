"""The extraction pipeline: planning, feature extraction, writing."""
