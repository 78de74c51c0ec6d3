"""Decoding and sampling of video frames."""
