"""How a network learns from cached features."""
