"""The webcam: the trained model at work."""
