"""Heed's training half: an export in, a model folder out. Never imports Django or `labeling`."""
