"""Fine-tuning: encoder and head trained together, end to end."""
