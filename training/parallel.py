"""Models that several processes train together, by DistributedDataParallel or by FSDP2 (`fully_shard`).

    parallel.spread(model, "fsdp")            # before the optimiser is made
    with parallel.step(model):                # weights whole, gradients this process's own
        loss.backward()                       # once, often or never
    apply_step(optimizer, model, …)           # the gradients are the sums over all processes
    model = parallel.collect(model)           # a plain model again, whole in every process

A stage's step is a function of its whole batch, which every process knows. Each runs its share of the rows and divides by the
*global* counts of tokens or rankings, so the sum of the processes' gradients is the gradient that one process would have: sums,
where DDP and FSDP2 would take means over processes. How many passes a share takes depends on its lengths, so processes must not
wait for each other within a pass. Therefore the passes run on the model itself, and gradients are summed in one pass through the
`Door` at the end of the step, the same in every process, whatever its share was.

The price: communication does not overlap with computing; and under FSDP2 a step holds whole weights and gradients, while the
trained weights, AdamW's state and weight averages are sharded throughout. A process that is alone wraps nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training import processes
from training.compiling import layers_of
from training.errors import StageError

Parallel = Literal["ddp", "fsdp"]


class Door(torch.nn.Module):
    """What DDP and FSDP2 stand around. Its forward pass runs nothing: it is 0 · every trained weight, so each gets a gradient."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, touch: bool) -> torch.Tensor | None:
        """0, with a gradient of 0 for each trained weight; nothing where they are not to be touched."""
        trained = [p for p in self.model.parameters() if p.requires_grad]
        return 0.0 * sum((p.sum() for p in trained), torch.zeros(())) if touch else None


# ---- wrapping -------------------------------------------------------------------------------------------------------


def spread(model: torch.nn.Module, kind: Parallel) -> None:
    """Let all processes train this model; in place. Under FSDP2 its parameters become DTensors, each process with a shard.

    The weights are the main process's. A model without trained weights stays whole. Raises StageError for an adapter under
    FSDP2.
    """
    if processes.count() == 1 or not any(p.requires_grad for p in model.parameters()):
        return
    if kind == "fsdp" and not all(p.requires_grad for p in model.parameters()):
        raise StageError("parallel fsdp: not for a model with frozen weights, such as one with an adapter; use ddp")
    processes.join()
    wrapper = _sharded(model) if kind == "fsdp" else _replicated(model)
    model.__dict__["_wrapper"] = wrapper  # past Module's own bookkeeping: a child that holds its parent would never end


def wrapper_of(model: torch.nn.Module) -> Any:
    """The DistributedDataParallel or FSDPModule around a model that was spread; None around others."""
    return model.__dict__.get("_wrapper")


def _replicated(model: torch.nn.Module) -> DistributedDataParallel:
    wrapper = DistributedDataParallel(Door(model))
    wrapper.register_comm_hook(None, _sum_bucket)
    return wrapper


def _sum_bucket(state, bucket):  # DDP refuses annotations that are text
    """The sum over processes, where DDP by itself would take the mean."""
    done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
    return done.then(lambda future: future.value()[0])


def _sharded(model: torch.nn.Module) -> Any:
    """FSDP2 with a group for each of the model's layers and one for the rest, so that no copy of it all is made at once."""
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    skeleton = _skeleton(model)
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count(),))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=False)
    door: Any = fully_shard(Door(model), mesh=mesh, reshard_after_forward=False)  # a Door and an FSDPModule
    for group in _groups(door):
        group.set_gradient_divide_factor(1.0)
        group.set_force_sum_reduction_for_comms(True)  # gloo has no other; with the factor of 1, a plain sum
    door(False)  # the first forward pass decides which module is the root
    door.reshard()
    model.__dict__["_skeleton"] = skeleton
    return door


def _groups(door: Any) -> list[FSDPModule]:
    return [module for module in door.modules() if isinstance(module, FSDPModule)]


def _skeleton(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the model without its weights: meta tensors in their place, ties kept."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = torch.nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)
    return copy.deepcopy(model, memo)


def collect(model: torch.nn.Module) -> Any:
    """A plain model with the trained weights, whole in every process. Under DDP and alone, the model itself."""
    wrapper, skeleton = model.__dict__.pop("_wrapper", None), model.__dict__.pop("_skeleton", None)
    if wrapper is None or skeleton is None:
        return model
    whole = {name: torch.nn.Parameter(_full(p.detach()), p.requires_grad) for name, p in model.named_parameters()}
    places = {id(p): whole[name] for name, p in skeleton.named_parameters()}
    for module in skeleton.modules():
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            setattr(module, name, places[id(p)])
    return skeleton.train(model.training)


# ---- training -------------------------------------------------------------------------------------------------------


@contextmanager
def step(*models: torch.nn.Module) -> Iterator[None]:
    """Within the block the weights are whole; after it, gradients made in it are sums over all processes.

    Gradients from before the block do not survive it under FSDP2.
    """
    wrappers = [wrapper for model in models if (wrapper := wrapper_of(model)) is not None]
    sharded = [wrapper for wrapper in wrappers if isinstance(wrapper, FSDPModule)]
    for door in sharded:
        door.set_requires_gradient_sync(False)
        door.set_reshard_after_backward(False)
        _unshard(door)
    yield
    for door in sharded:
        door.set_requires_gradient_sync(True)
        door.set_reshard_after_backward(True)
    for wrapper in wrappers:
        wrapper(True).backward()


@contextmanager
def whole(*models: torch.nn.Module) -> Iterator[None]:
    """Within the block the weights are whole, to be read: for sampling and measuring, however often and in any order."""
    doors = [door for model in models if isinstance(door := wrapper_of(model), FSDPModule)]
    for door in doors:
        _unshard(door)
    yield
    for door in doors:
        for group in _groups(door):
            group.reshard()


def _unshard(door: Any) -> None:
    for group in _groups(door):
        group.unshard()


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def gathered(state: Any) -> Any:
    """A state_dict as the main process writes it: shards put together, on the CPU. In the others its shards become None."""
    if processes.count() == 1:
        return state
    if isinstance(state, Mapping):
        return {name: gathered(value) for name, value in state.items()}
    if isinstance(state, DTensor):
        tensor = _full(state)
        return tensor.cpu() if processes.is_main() else None
    return state


def fitted(part: Any, saved: Any) -> Any:
    """What `gathered` gave, as `part` takes it in this process: each tensor cut to a shard, where part's own are sharded."""
    if processes.count() == 1:
        return saved
    if isinstance(part, torch.optim.Optimizer):
        weights = [p for group in part.param_groups for p in group["params"]]
        states = {i: {k: _like(weights[i], v) for k, v in state.items()} for i, state in saved["state"].items()}
        return {**saved, "state": states}
    now = part.state_dict()
    return {name: _like(now.get(name), value) for name, value in saved.items()}


def _like(present: Any, value: Any) -> Any:
    if isinstance(present, DTensor) and isinstance(value, torch.Tensor) and value.shape == present.shape:
        mesh = present.device_mesh
        return distribute_tensor(value.to(mesh.device_type), mesh, present.placements, src_data_rank=None)
    return value


@torch.no_grad()
def put(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter, sharded or not, this whole value."""
    parameter.copy_(_like(parameter, value))


def _full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def number(value: torch.Tensor) -> float:
    """A scalar that may be a DTensor, as a float."""
    return float(_full(value))
