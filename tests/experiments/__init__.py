"""Experiments on the tiny world: longer than a test, and kept so that their figures can be had again."""
