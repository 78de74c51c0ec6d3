"""Where the jobs of an extraction run."""
