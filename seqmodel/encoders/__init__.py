"""Networks that turn face crops into embeddings."""
