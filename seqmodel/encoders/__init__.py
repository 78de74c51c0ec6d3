"""Encoders: networks from face crops to embeddings, their compiled engines and model files."""
