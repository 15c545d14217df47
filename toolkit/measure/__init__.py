"""Engines side by side: each in a process of its own, timed in turn."""
