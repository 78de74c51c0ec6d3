"""Sources of frames: cameras, streams and video files."""
