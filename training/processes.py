"""The processes of one run: how many they are, which one this is, and what they tell each other.

`accelerate launch` and torchrun start them and say so in the environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR); the first
question that needs an answer from another process joins them, over gloo for tensors on the CPU and NCCL for those on a GPU. A
process that is alone never gets there: every function here then gives back what it was given. Where processes talk, all of them
must ask the same questions in the same order.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Any_T = TypeVar("Any_T")
Item = TypeVar("Item")
Result = TypeVar("Result")

PATIENCE = timedelta(hours=1)
"""How long a process waits for the others: the main one may be writing a large checkpoint."""


def count() -> int:
    """Processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def index() -> int:
    """Which of them this is, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0


def local_index() -> int:
    """Which of those on this machine this is, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return index() == 0


def bar_is_off() -> bool | None:
    """tqdm's `disable`: None (off where there is no terminal) in the main process, True in the others."""
    return None if is_main() else True


@lru_cache(maxsize=1)
def join() -> None:
    """Meet the other processes, once; they part when the process ends."""
    if local_index() < torch.cuda.device_count():  # fewer GPUs than processes is well with --device cpu
        torch.cuda.set_device(local_index())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


def from_main(make: Callable[[], Any_T]) -> Any_T:
    """What `make` gives in the main process, which alone calls it; what it raises there is raised everywhere."""
    if count() == 1:
        return make()
    join()
    told: list[Any] = [None, None]
    if is_main():
        try:
            told[0] = make()
        except Exception as error:  # whatever it is, the others must not wait for an answer
            told[1] = error
    dist.broadcast_object_list(told, device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]


def any_of(claim: bool) -> bool:
    """Whether it holds in any process."""
    return total({"": claim})[""] > 0


def gather(value: Any_T) -> list[Any_T]:
    """Every process's value, in the order of processes. Tensors among them must be on the CPU."""
    if count() == 1:
        return [value]
    join()
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def total(figures: Mapping[str, float]) -> dict[str, float]:
    """Each figure summed over the processes."""
    if count() == 1:
        return dict(figures)
    join()
    sums = torch.tensor(list(figures.values()), dtype=torch.float64)
    dist.all_reduce(sums)
    return dict(zip(figures, sums.tolist(), strict=True))


def share(costs: Sequence[float]) -> list[int]:
    """The indices of a batch's rows that are this process's, ascending; every row is one process's, and costs come out about even.

    A function of the costs and the process: all know the whole batch, none needs to be told. May be empty.
    """
    if count() == 1:
        return list(range(len(costs)))
    dearest_first = sorted(range(len(costs)), key=lambda i: -costs[i])
    round_trip = 2 * count()  # dealt forth and back, so that nobody always gets the dearer one
    return sorted(
        i for n, i in enumerate(dearest_first) if min(n % round_trip, round_trip - 1 - n % round_trip) == index()
    )


def gather_rows(rows: Sequence[int], values: torch.Tensor) -> torch.Tensor:
    """The whole batch's values from each process's own: `values[n]` belongs to row `rows[n]`; on the device they came from."""
    if count() == 1:
        return values
    parts = gather((list(rows), values.cpu()))
    order = torch.tensor([row for part, _ in parts for row in part], dtype=torch.long)
    return torch.cat([part for _, part in parts])[order.argsort()].to(values.device)


def in_shares(
    items: Sequence[Item], costs: Sequence[float], work: Callable[[list[Item]], list[Result]]
) -> list[Result]:
    """`work(items)`, one result per item, with each process working on its share; all get all results, in the order of the items."""
    if count() == 1:
        return work(list(items))
    mine = share(costs)
    own = work([items[i] for i in mine]) if mine else []
    found = {i: result for part in gather(dict(zip(mine, own, strict=True))) for i, result in part.items()}
    return [found[i] for i in range(len(items))]


def reseed(seed: int, step: int) -> None:
    """With several processes, set torch's generators (dropout draws from them) for this step, differently in each.

    So a resumed run draws the same again, and no two processes drop the same units. Alone, nothing changes.
    """
    if count() > 1:
        torch.manual_seed((seed * 1_000_003 + step) * 1_009 + index())
