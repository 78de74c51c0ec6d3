"""The feature store: its format on disk, planning, reading and writing."""
