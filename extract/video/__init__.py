"""Frames of video files, with their times."""
