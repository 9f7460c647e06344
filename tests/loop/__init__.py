"""The loop, its hidden preference and its gates."""

import training as training  # sets how torch's threads wait, before anything here loads torch
