"""The four models of PPO: a policy and a critic that are trained, a reference and a reward model that are asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from training import models
from training.errors import StageError

if TYPE_CHECKING:
    from training.ppo import Config


class Players(NamedTuple):
    """The four models of PPO and the tokenizer they share. Only policy and critic are trained."""

    policy: torch.nn.Module
    critic: torch.nn.Module
    reference: torch.nn.Module
    reward_model: torch.nn.Module
    tokenizer: Any


def load_players(config: Config, device: torch.device) -> Players:
    """Policy and reference from the same folder, critic and reward model from the same folder, all in evaluation mode.

    Evaluation mode throughout, training included: dropout would make two forward passes differ and the ratio meaningless.
    """
    tokenizer = models.load_tokenizer(config.policy)
    if models.load_tokenizer(config.reward_model).get_vocab() != tokenizer.get_vocab():
        raise StageError(f"{config.reward_model}: its tokenizer differs from that of {config.policy}")
    reference = models.load_policy(config.policy, device).requires_grad_(False)
    reward_model = models.load_reward_model(config.reward_model, device).requires_grad_(False)
    policy, critic = models.load_policy(config.policy, device), models.load_reward_model(config.reward_model, device)
    return Players(policy, critic, reference, reward_model, tokenizer)


def share_frozen_weights(policy: torch.nn.Module, reference: torch.nn.Module) -> None:
    """Let what an adapter leaves as it is in the policy be the reference's own tensors: one model in memory, not two.

    Both must come from one folder. Merging the adapter changes the reference as well, so it is done last.
    """
    base = dict(reference.named_parameters())
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            parameter.data = base[name.replace(".base_layer", "")].data
