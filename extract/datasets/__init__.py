"""Readers of data set formats: DAiSEE, EngageNet, AIHub 71715, CSV, folders."""
