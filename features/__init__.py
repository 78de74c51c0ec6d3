"""What we know about clips: recipes, manifests, the store, splits, data sets. No pixels, no networks."""
