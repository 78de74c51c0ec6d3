"""How good a run is, and compared with what."""
