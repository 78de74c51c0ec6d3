"""Extraction: from video files to rows of the feature store."""
