"""Checkpoint in, smaller checkpoint out: on torch and transformers."""
