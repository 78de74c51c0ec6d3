"""python -m seqmodel X is commands/X.py."""
