"""Networks that turn a window of features into logits."""
