"""Checkpoint in, smaller checkpoint out: the parts of `toolkit train`, on torch and transformers."""
