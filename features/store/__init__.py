"""What a store holds on disk, and who may write it."""
