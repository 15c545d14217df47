"""The export folder: how it is written, read back, and proved to compute the same."""
