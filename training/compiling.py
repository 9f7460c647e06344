"""torch.compile for a model's layers, on request: one compilation serves all of them, for any batch and length.

Layer by layer, as FSDP2 shards them: what stands between the layers, and all that the stages do with hidden states, stays eager.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

from training import cpu

Given = ParamSpec("Given")
Result = TypeVar("Result")

_is_used = False


def layers_of(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers that a model repeats, by what transformers says must not be split; none where it says nothing."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    return [module for module in model.modules() if type(module).__name__ in kinds]


def compile_layers(*models: torch.nn.Module, backend: str = "inductor") -> None:
    """Compile the models' layers in place, at their first pass. Results stay the same but for rounding; sampling stays eager."""
    global _is_used
    _is_used = True
    options = with_own_products() if cpu.has_onednn() and backend == "inductor" else None
    for layer in itertools.chain.from_iterable(map(layers_of, models)):
        layer.compile(dynamic=True, backend=backend, options=options)


def with_own_products() -> dict[str, Any]:
    """Options of inductor with which compiled layers multiply by `cpu.product`: what `cpu.use` put into torch they pass by."""
    from torch._dynamo.decorators import skip
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class OwnProducts(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default):
                node.target = torch.ops.heed.product.default
            for node in graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default):
                if not node.kwargs:  # no factors
                    node.target = torch.ops.heed.biased_product.default

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

    # Where a layer's own frame is not compiled, these are called as they are, and must not be compiled alone.
    for kernel in (cpu.product, cpu.biased_product, cpu.pays, cpu.copied):
        skip(kernel)
    return {"post_grad_custom_pre_pass": OwnProducts()}


def uncompiled(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Let nothing run compiled in the function: a sampling loop's cache grows at each step, which would compile ever again."""

    @wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if not _is_used:
            return function(*args, **kwargs)
        with torch.compiler.set_stance("force_eager"):
            return function(*args, **kwargs)

    return run
