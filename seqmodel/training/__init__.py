"""Training of networks: the learning task and the training loop."""
