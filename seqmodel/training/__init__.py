"""Training of networks: the learning task, the losses and the training loop."""
