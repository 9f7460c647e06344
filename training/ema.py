"""An exponential moving average of a model's weights, beside the weights that are trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class WeightAverage:
    """average ← decay · average + (1 − decay) · weights, at each `update`; begins as the weights it was made from.

    Float32 whatever the model's precision: with decay 0.992 a step is less than bfloat16 can hold. Trained parameters only, tied
    ones once. The paper says "with a decay rate of 0.992" (InstructGPT, appendix C.4) and not how often; PPO updates it after each
    optimiser step, so a decay of 0.992 looks back over some 125 steps.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and less than 1, not {decay}")
        self.decay = decay
        self._average = {name: p.detach().float().clone() for name, p in _trained(model)}

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Take in the model's present weights."""
        for name, parameter in _trained(model):
            self._average[name].lerp_(parameter.detach().float(), 1 - self.decay)

    @torch.no_grad()
    def copy_into(self, model: torch.nn.Module) -> None:
        """Put the average in place of the model's weights."""
        for name, parameter in _trained(model):
            parameter.copy_(self._average[name])

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The averaged weights by parameter name."""
        return dict(self._average)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Put back what `state_dict` gave. Raises ValueError when it is of another model."""
        if set(state) != set(self._average):
            raise ValueError("the saved average has other parameters than the model")
        for name, average in self._average.items():
            average.copy_(state[name])


def _trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]
