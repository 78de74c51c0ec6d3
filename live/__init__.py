"""Live predictions of a trained run, from a webcam or video files."""
