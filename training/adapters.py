"""Cheap fine-tuning through peft: LoRA, AdaLoRA, IA3 and prefix tuning, and which stage supports which (`SUPPORTED`).

    adapter = adapters.attach(model, settings, stage="sft", steps=…, seed=…, base=folder)   # None for method "none"
    model = adapter.model                                                # what runs and is trained: only its adapter is
    adapter.backward_penalty()                                           # AdaLoRA's, beside the loss's own backward
    apply_step(optimizer, model, rate, clip, before_clear=lambda: adapter.allocate(step))
    publishable = adapter.finish(merge=False)                            # the adapter alone, or the merged model

An adapter folder is peft's own layout (`adapter_config.json`, `adapter_model.safetensors`) beside our manifest, which names
the base; peft loads it without us. `models.load_policy` loads it merged into its base.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from training.contract import hash_file, read_model_manifest
from training.errors import StageError
from training.optimizers import apply_step

Method = Literal["none", "lora", "adalora", "ia3", "prefix"]

ADAPTER_CONFIG = "adapter_config.json"

DENSE = frozenset({"lora", "adalora", "ia3"})
"""Methods that change weight matrices, so that they merge, go with any mask, and leave the model's own forward alone."""

SUPPORTED: dict[str, frozenset[str]] = {
    "sft": DENSE | {"prefix"},
    "rm": DENSE,
    "dpo": DENSE,
    "ppo": frozenset({"lora", "ia3"}),
}

REASONS = {
    (
        "rm",
        "prefix",
    ): "a prefix does not go with the 4-D masks of shared prefixes, and cannot be merged under the scalar head",
    ("dpo", "prefix"): "a prefix does not go with 4-D masks, and cannot be merged into the policy that is published",
    ("ppo", "prefix"): "sampling keeps a key/value cache of its own, and a prefix comes in as one",
    (
        "ppo",
        "adalora",
    ): "its budget is spread over a fixed number of steps by importance, which a policy gradient is too noisy for",
}


class AdapterError(StageError):
    """An adapter that this stage or model does not support, or whose base is not the one it was trained on."""


@dataclass(frozen=True)
class AdapterSettings:
    """The method and its size. `rank`: of LoRA's matrices, AdaLoRA's mean at the end, or tokens of the prefix (IA3: unused)."""

    method: Method
    rank: int = 8
    alpha: int = 16
    merge: bool = False


def check(stage: str, method: str) -> None:
    """Raise AdapterError, with the reason, unless the stage supports the method."""
    if method != "none" and method not in SUPPORTED[stage]:
        raise AdapterError(f"adapter {method} is not supported in {stage}: {REASONS[stage, method]}")


def attach(
    model: torch.nn.Module,
    settings: AdapterSettings,
    *,
    stage: str,
    steps: int,
    seed: int,
    base: str | os.PathLike[str],
) -> Adapter | None:
    """Put a fresh adapter on a model, in place, and freeze everything else; None for method "none".

    `base` is what the folder's adapter_config.json will name. Raises AdapterError where stage or architecture do not fit.
    """
    check(stage, settings.method)
    if settings.method == "none":
        return None
    if is_adapter(base) and not settings.merge:
        raise AdapterError(f"{base} is itself an adapter, and peft stacks none on another: set merge")
    config = _peft_config(settings, steps, is_scalar=stage == "rm")
    with torch.random.fork_rng(), _without_noise():
        warnings.simplefilter("ignore", UserWarning)  # that GPT-2's Conv1D stores its weights transposed
        torch.manual_seed(seed)
        try:
            wrapper = get_peft_model(model, config)
        except ValueError as error:
            raise AdapterError(f"adapter {settings.method}: {error}") from None
    # After peft, which puts there by what name the model was loaded: one that may be true in this working directory alone.
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else str(base)
    return Adapter(model, wrapper, settings)


@contextmanager
def _without_noise():
    """Without what peft warns of and no user can do anything about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names that peft asks for
        # AdaLoRA's rank_pattern is kept by parameter (…lora_E), and peft holds it against names of modules, as LoRA's is kept. It is
        # not ignored, as that warning says: it cuts the matrices when the weights come in.
        warnings.filterwarnings("ignore", r"The following rank_pattern keys did not match", RuntimeWarning)
        yield


def _peft_config(settings: AdapterSettings, steps: int, is_scalar: bool) -> PeftConfig:
    """What peft is asked for. Only a causal model gets a task type: with one, peft would wrap the scalar head as well."""
    task: dict[str, Any] = {} if is_scalar else {"task_type": "CAUSAL_LM"}
    linear: dict[str, Any] = {
        "target_modules": "all-linear",
        "exclude_modules": ["score", "classifier"] if is_scalar else None,
    }
    if settings.method == "lora":
        return LoraConfig(r=settings.rank, lora_alpha=settings.alpha, **linear, **task)
    if settings.method == "adalora":
        warm, settle = max(1, steps // 10), max(1, steps // 5)  # shares of the run: ours; the paper's vary by task
        if steps < 4:
            raise AdapterError(f"adapter adalora needs at least 4 steps to spread its budget over, not {steps}")
        return AdaLoraConfig(
            init_r=math.ceil(1.5 * settings.rank),  # the paper's start: 1.5 times the budget it ends with
            target_r=settings.rank,
            tinit=warm,
            tfinal=settle,
            deltaT=max(1, (steps - warm - settle) // 50),
            total_step=steps,
            lora_alpha=settings.alpha,
            **linear,
            **task,
        )
    if settings.method == "ia3":
        return IA3Config(**task)  # which layers: peft's table by architecture
    return PrefixTuningConfig(num_virtual_tokens=settings.rank, **task)


class Adapter:
    """An adapter on a model: `model` is what runs. Goes into checkpoints instead of the model, without the frozen weights."""

    def __init__(self, plain: torch.nn.Module, wrapper: PeftModel, settings: AdapterSettings):
        self.wrapper: Any = wrapper
        self.method, self.merge = settings.method, settings.merge
        # Dense adapters sit inside the model's own layers; a prefix comes in through the wrapper's forward.
        self.model: Any = plain if self.method in DENSE else wrapper

    def penalty(self) -> torch.Tensor | float:
        """AdaLoRA's orthogonality: weight · mean over factors of ‖PᵀP − I‖ (Zhang et al. 2023, eq. 4, as peft has it)."""
        if self.method != "adalora":
            return 0.0
        norms = []
        for name, p in self.wrapper.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                gram = p @ p.T if ".lora_A." in name else p.T @ p
                norms.append(torch.linalg.norm(gram - torch.eye(len(gram), device=p.device)))
        return self.wrapper.peft_config["default"].orth_reg_weight * torch.stack(norms).mean()

    def backward_penalty(self) -> None:
        """Add the gradient of `penalty`, once a step, beside that of the loss."""
        if isinstance(penalty := self.penalty(), torch.Tensor):
            penalty.backward()

    def allocate(self, step: int) -> None:
        """AdaLoRA's budget for this step (from 0), after the optimiser's step and before the gradients are cleared."""
        if self.method == "adalora":
            self.wrapper.base_model.update_and_allocate(step)

    def state_dict(self) -> dict[str, Any]:
        """The trained parameters and, of AdaLoRA, the importances so far: all that a resumed run needs."""
        state: dict[str, Any] = {name: p.detach() for name, p in self._trained()}
        if self.method == "adalora":
            ranks = self.wrapper.base_model.rankallocator
            state["adalora"] = {name: getattr(ranks, name) for name in IMPORTANCES}
            state["rank_pattern"] = self.ranks
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        with torch.no_grad():
            for name, p in self._trained():
                p.copy_(state[name])
        if self.method == "adalora":
            ranks = self.wrapper.base_model.rankallocator
            for name in IMPORTANCES:
                setattr(ranks, name, {key: value.to(p.device) for key, value in state["adalora"][name].items()})
            self.ranks = state["rank_pattern"]

    @property
    def ranks(self) -> Any:
        """Which of each matrix's ranks AdaLoRA has kept, None before it cut any; None of other methods. Saved weights are cut by it."""
        return getattr(self.wrapper.peft_config["default"], "rank_pattern", None)

    @ranks.setter
    def ranks(self, kept: Any) -> None:
        if self.method == "adalora":
            self.wrapper.peft_config["default"].rank_pattern = kept

    def _trained(self):
        return [(name, p) for name, p in self.wrapper.named_parameters() if p.requires_grad]

    def finish(self) -> Any:
        """What `models.publish` takes: the model with the adapter merged in, or the adapter alone. Call it last."""
        if not self.merge:
            return AdapterFolder(self.wrapper)
        if self.method not in DENSE:
            raise AdapterError(f"adapter {self.method} cannot be merged: it changes no weight matrix")
        return self.wrapper.merge_and_unload()


def apply_adapter_step(
    adapter: Adapter | None,
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module,
    learning_rate: float,
    clip_norm: float,
    step: int,
) -> float:
    """`apply_step`, with AdaLoRA's penalty before it and its allocation within. Returns the gradient norm before clipping."""
    if adapter is None:
        return apply_step(optimizer, model, learning_rate, clip_norm)
    adapter.backward_penalty()
    return apply_step(optimizer, model, learning_rate, clip_norm, before_clear=partial(adapter.allocate, step))


IMPORTANCES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What AdaLoRA's allocator has gathered about each parameter: importance now, smoothed, and its uncertainty."""


class AdapterFolder:
    """The adapter alone, as something that can be saved like a model."""

    def __init__(self, wrapper: PeftModel):
        self.wrapper = wrapper
        self.generation_config: Any = None

    def cpu(self) -> AdapterFolder:
        """On the CPU."""
        self.wrapper.cpu()
        return self

    def can_generate(self) -> bool:
        """It belongs to a policy."""
        return True

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """adapter_config.json and adapter_model.safetensors, in peft's layout; nothing is asked of the network."""
        self.wrapper.save_pretrained(str(folder), save_embedding_layers=False)
        (Path(folder) / "README.md").unlink(missing_ok=True)  # peft's template of a model card, with nothing in it
        self.generation_config.save_pretrained(folder)


# ---- loading --------------------------------------------------------------------------------------------------------


def is_adapter(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).exists()


def base_of(folder: str | os.PathLike[str]) -> str:
    """The folder or name of the model that an adapter stands on; where it is not there any more, that model beside the adapter."""
    base = json.loads((Path(folder) / ADAPTER_CONFIG).read_bytes())["base_model_name_or_path"]
    beside = Path(folder).resolve().parent / Path(base).name
    is_sure = Path(base).is_absolute() and Path(base).exists()
    if is_sure or not (beside / "manifest.json").is_file() or not (Path(folder) / "manifest.json").is_file():
        return base
    parents = read_model_manifest(folder, verify=False).parents.values()
    is_it = hash_file(beside / "manifest.json") in {parent.manifest_sha256 for parent in parents}
    return str(beside) if is_it else base


def load_merged(folder: str | os.PathLike[str]) -> Any:
    """A plain causal model in float32, all of it trainable: the adapter's base with the adapter merged in.

    Raises AdapterError for an adapter that cannot be merged, and when the base is not the one it was trained on.
    """
    settings = json.loads((Path(folder) / ADAPTER_CONFIG).read_bytes())
    if settings["peft_type"] == "PREFIX_TUNING":
        raise AdapterError(
            f"{folder}: a prefix cannot be merged, and nothing but SFT's own loss runs it here; peft's generate() does"
        )
    base = base_of(folder)
    _check_base(folder, base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with _without_noise():
        adapted: Any = PeftModel.from_pretrained(model, str(folder))
    return adapted.merge_and_unload().requires_grad_(True)  # peft froze the base, and a stage trains what it is given


def _check_base(folder: str | os.PathLike[str], base: str) -> None:
    from training.models import parent_of  # models loads adapters through here

    if not (Path(folder) / "manifest.json").exists():
        return
    parents = read_model_manifest(folder).parents.values()
    if parent_of(base).manifest_sha256 not in {parent.manifest_sha256 for parent in parents}:
        raise AdapterError(f"{folder}: its base {base} is not the model that it was trained on")


@contextmanager
def whole_model(folder: str | os.PathLike[str]):
    """The folder itself or, for an adapter, a temporary one with the merged model: for loaders that want another class."""
    if not is_adapter(folder):
        yield folder
        return
    with TemporaryDirectory() as temporary:
        load_merged(folder).save_pretrained(temporary)
        yield temporary
