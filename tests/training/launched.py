"""What test_parallel.py lets torchrun start in several processes: `launched.py PLAN.json`.

The plan is a list of jobs, done one after the other: {"run": words of `python -m training`}, with {"stop_at": N} killed at its
checkpoint after N steps, or {"gradients": KIND, …} (see `compare_gradients`). Each process writes what it saw to PLAN.RANK.json.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from training import __main__, models, parallel, processes, rankings, response_loss, rm
from training.__main__ import main
from training.checkpoints import RunState
from training.contract import read_export
from training.data import LengthLimits, encode_demonstrations, read_comparisons, read_demonstrations

LIMITS = LengthLimits(200, 200, "raise")
CPU = torch.device("cpu")


class Stopped(Exception):
    """A run is cut off here, as by a kill."""


def run_stage(words: list[str], stop_at: int | None) -> dict:
    """Run a stage; what was wrapped how."""
    seen, spread, save = [], parallel.spread, RunState.save

    def watched(model, kind):
        spread(model, kind)
        wrapper = parallel.wrapper_of(model)
        kinds = [cls.__name__ for cls in type(wrapper).__mro__]
        seen.append({"kinds": kinds, "sharded": all(isinstance(p, DTensor) for p in model.parameters())})

    def save_and_stop(state, step, content):
        save(state, step, content)
        if step == stop_at:
            state._held = None  # what the lock holds goes with the process
            raise Stopped

    parallel.spread, RunState.save = watched, save_and_stop
    try:
        status = main(words)
    except Stopped:
        status = "stopped"
    finally:
        parallel.spread, RunState.save = spread, save
    return {"status": status, "wrapped": seen}


def compare_gradients(kind: str, base: str, sft_model: str, export: str) -> dict:
    """The largest difference between this run's summed gradients and those of one process, relative to the largest gradient.

    For SFT and the reward model, on a batch with work for all, and on a batch of one row, where others have none.
    """
    tokenizer, rows = models.load_tokenizer(base), read_export(export)
    demonstrations = encode_demonstrations(tokenizer, read_demonstrations(rows, "train", Counter()), LIMITS, Counter())
    comparisons = read_comparisons(rows, tokenizer, "train", LIMITS, Counter(), for_training=True)
    pad = tokenizer.pad_token_id

    def sft_gradients(model, count):
        return lambda: response_loss.backward_mean(model, demonstrations[:count], 3, pad, CPU)

    def rm_gradients(model, count):
        runner = rankings.Runner(model, "shared", pad)
        return lambda: rm.backward_mean(runner, comparisons[:count], 2)

    worst = {}
    for name, load, gradients in (
        ("sft", lambda: models.load_policy(base), sft_gradients),
        ("rm", lambda: models.reward_model_from(sft_model, 0), rm_gradients),
    ):
        for count in (7, 1):
            alone, together = load(), load()
            parallel.spread(together, kind)
            with parallel.step(together):
                gradients(together, count)()
            there = processes.count
            processes.count = lambda: 1
            gradients(alone, count)()
            processes.count = there
            expected = torch.cat([p.grad.flatten() for p in alone.parameters()])
            found = [parallel.gathered(p.grad) for p in together.parameters()]
            if not processes.is_main():
                continue
            found = torch.cat([gradient.flatten() for gradient in found])
            worst[f"{name} {count}"] = float((found - expected).abs().max() / expected.abs().max())
    return worst


def run_plan(path: Path) -> None:
    torch.set_num_threads(1)
    __main__.WAIT_SECONDS = 0  # a job that is refused is refused in every process, and the next one follows
    seen = []
    for job in json.loads(path.read_text()):
        if "run" in job:
            seen.append(run_stage(job["run"], job.get("stop_at")))
        else:
            seen.append(compare_gradients(**job["gradients"]))
    path.with_suffix(f".{processes.index()}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    run_plan(Path(sys.argv[1]))
