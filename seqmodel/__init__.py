"""Models: encoders, heads, training, evaluation, fine-tuning and export."""
