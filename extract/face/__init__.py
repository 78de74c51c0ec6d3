"""Face detection, cropping and geometry."""
