"""What every training stage is told about the machine it runs on and about its output: fields that their configs share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training import cpu, models, precision
from training.config import option, require, require_out, require_seed
from training.parallel import Parallel
from training.precision import Precision
from training.trackers import Track


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The base of each training stage's config."""

    device: str = option("auto", help="auto, cpu or cuda")
    threads: int = option(0, help="CPU threads of torch; 0: its default")
    dtype: Precision = option("float32", help="what forward passes compute in: float32, or bf16 over float32 weights")
    parallel: Parallel = option("ddp", help="how several processes share a model (accelerate launch): ddp or fsdp")
    overwrite: bool = option(False, help="replace an existing output of another run")
    track: Track = option("none", help="also send the log to TensorBoard or MLflow, beside out in OUT.tracking/")
    dry_run: bool = option(False, help="say what would be trained, with memory and time, and write nothing")

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work in any stage that has such a field."""
        for name in ("clip_norm", "adam_epsilon", "prompt_tokens", "response_tokens"):
            require(getattr(self, name, 1) > 0, name, "must be positive")
        for name in ("threads", "weight_decay", "warmup_steps", "warmup_iterations", "valid_episodes", "log_samples"):
            require(getattr(self, name, 0) >= 0, name, "must not be negative")
        require_out(getattr(self, "out", "out"), "folder")
        require_seed(getattr(self, "seed", 0))

    def set_up(self) -> torch.device:
        """Threads, memory and precision of this process as the run wants them; returns the device. Raises FieldError for a model that is
        nowhere."""
        models.check_given(self)
        cpu.use(self.threads)
        device = models.pick_device(self.device)
        precision.use(self.dtype, device)
        return device
