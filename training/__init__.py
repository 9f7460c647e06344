"""Heed's training half: an export in, a model folder out. Never imports Django or `labeling`."""

import os

# Before torch loads: its threads sleep while they wait for each other rather than spin. Spinning steals the cores from web, worker
# and other trainers; with two threads on two busy cores a PPO update took 10.9 s instead of 0.9 s.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
