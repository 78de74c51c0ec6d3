"""Commands of python -m seqmodel, one module each."""
