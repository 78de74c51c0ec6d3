"""Which clips a data set holds."""
