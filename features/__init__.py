"""What we know about clips: recipes, manifests, the store, splits and data sets. No pixels' origin, no networks."""
