"""What a run would do, without doing it: `--dry-run` prints counts, steps, parameters, memory and time, and writes nothing.

Data, models and settings are read as the run itself reads them, so what is wrong with them shows here. Memory and time come from
one step's forward and backward pass, run twice (the first warms up); no weight changes.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

import torch
from tqdm import tqdm

from training import processes
from training.errors import DryRun

ADAM_COPIES = 2
"""AdamW keeps two numbers per trained weight, in the weight's own type."""


def show_and_stop(
    stage: str,
    *,
    counts: Mapping[str, int],
    steps: int,
    unit: str,
    models: Mapping[str, torch.nn.Module],
    trained: Collection[str],
    step: Callable[[], object],
    device: torch.device,
) -> NoReturn:
    """Raise DryRun with the plan. `models` by role; `step` is one step's work, gradients included, without the update.

    `unit` names what one of `steps` is. The gradients that `step` leaves are cleared.
    """
    seconds, peak = _measure(step, device)
    for model in models.values():
        model.zero_grad(set_to_none=True)
    learned = sum(_size(p) for role in trained for p in models[role].parameters() if p.requires_grad)
    weights = {p.data_ptr(): _size(p) for model in models.values() for p in model.parameters()}  # shared ones once
    memory = {
        "weights": sum(weights.values()),
        "gradients": learned,
        "AdamW": ADAM_COPIES * learned,
        "activations": max(0, peak - learned),
    }
    rows = [(name.replace("_", " "), f"{count:,}") for name, count in counts.items()]
    rows += [(f"{unit}s", f"{steps:,}")]
    rows += [("processes", f"{processes.count()}, each with its share")] if processes.count() > 1 else []
    rows += [(f"{role}, {_kind(role in trained)}", _parameters(model)) for role, model in models.items()]
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in memory.items())
    rows += [("memory, about", f"{_bytes(sum(memory.values()))}: {parts}")]
    article = "an" if unit[0] in "aeiou" else "a"
    rows += [("time, about", f"{_duration(seconds * steps)}: {seconds:.3g} s {article} {unit} on {_where(device)}")]
    width = max(len(name) for name, _ in rows)
    lines = [f"{stage}: this would be trained; nothing was written.", *(f"  {n:<{width}}  {v}" for n, v in rows)]
    raise DryRun("\n".join(lines))


def _measure(step: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """(seconds of the second of two steps, bytes that the steps added at their peak, gradients among them)."""
    on_gpu = device.type == "cuda"
    before = torch.cuda.memory_allocated() if on_gpu else _resident()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = 0.0
    for _ in tqdm(range(2), desc="trying a step", disable=processes.bar_is_off()):
        start = time.perf_counter()
        step()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if on_gpu else _resident()
    return seconds, peak - before


def _resident() -> int:
    """The most memory that this process has held so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _kind(is_trained: bool) -> str:
    return "trained" if is_trained else "held"


def _size(parameter: torch.nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _parameters(model: torch.nn.Module) -> str:
    """How many there are; of a model with an adapter, also how many learn."""
    count = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    of_them = f", {_in_millions(learning)} of them in its adapter" if 0 < learning < count else ""
    return f"{_in_millions(count)} parameters{of_them}"


def _in_millions(count: int) -> str:
    return f"{count:,}" if count < 10**6 else f"{count / 10**6:,.1f} M"


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _where(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU with {torch.get_num_threads()} threads"
