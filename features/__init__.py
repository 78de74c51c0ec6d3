"""Data about clips: recipes, manifests, the feature store, splits, data sets. No pixels, no networks."""
