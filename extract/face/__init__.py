"""Faces in a frame: found, cropped, measured."""
