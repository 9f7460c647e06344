"""Model folders: made, loaded and published. A folder is `save_pretrained` + tokenizer + manifest.json.

A reward model is the causal model with its unembedding replaced by a scalar head (InstructGPT, section 3.5), saved as
`AutoModelForSequenceClassification` with one label. transformers gives that head no bias, so the bias that makes
demonstrations score 0 on average stands in the folder's config as `reward_bias`, and every score here adds it.

Shapes: B rows, T tokens. Masks True = keep.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from training import adapters, hub, processes
from training.config import FieldError
from training.contract import (
    ExportRef,
    ParentRef,
    Stage,
    atomic_folder,
    find_code_version,
    hash_file,
    library_versions,
    parent_ref,
    read_model_manifest,
    utc_now,
    write_model_manifest,
)
from training.data import CHAT_TEMPLATE
from training.errors import StageError
from training.model_card import model_card
from training.precision import in_precision
from training.report import Samples, write_report

END, PAD = "<|endoftext|>", "<|pad|>"
ROLE_TOKENS = ["<|user|>", "<|assistant|>", "<|system|>"]

transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()  # it reports the head that a reward model rightly starts without


def pick_device(name: str) -> torch.device:
    """The device named, or for "auto" the GPU where there is one; each of several processes has a GPU of its own.

    Raises StageError for a name that means none, and for a GPU where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise StageError(f"device {name}: expected auto, cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise StageError(f"device {name}: there is no GPU here that torch can use")
    return torch.device(name, processes.local_index()) if name == "cuda" and processes.count() > 1 else device


# ---- making ---------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with our chat template; any text encodes and decodes to itself, and nothing is unknown."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [END, PAD, *ROLE_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=ROLE_TOKENS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
    )


def new_model(
    tokenizer, *, width: int, layers: int, heads: int, mlp_width: int, max_tokens: int, init_std: float
) -> LlamaForCausalLM:
    """A Llama-style model with random normal weights and tied embeddings, sized for the tokenizer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=mlp_width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_tokens,
        initializer_range=init_std,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def reward_model_from(policy_folder: str | os.PathLike[str], seed: int):
    """A reward model on a policy's body, with a fresh scalar head: normal, standard deviation 1/√(d+1).

    Source of the deviation: Stiennon et al. 2020, appendix B.1 (as in lm-human-preferences). Raises StageError for a reward model's
    folder: its head would be lost.
    """
    with adapters.whole_model(policy_folder) as folder:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    _check_policy(model, policy_folder)
    generator = torch.Generator().manual_seed(seed)
    weight = head_of(model).weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[1] + 1))
    model.config.reward_bias = 0.0
    return model


# ---- loading --------------------------------------------------------------------------------------------------------


def check_is_there(model: str | os.PathLike[str]) -> None:
    """Raise StageError when there is no such folder, and nothing to be had by that name: "gpt2" or "org/name" may be on the hub."""
    name = os.fspath(model)
    if Path(name).is_dir():
        return
    if Path(name).exists():
        raise StageError(f"{name}: not a folder")
    if not isinstance(model, str) or name.startswith(("/", ".", "~")) or name.count("/") > 1 or name.endswith("/"):
        raise StageError(f"{name}: there is no such folder")
    if reason := hub.why_not(name):
        raise StageError(f"{name}: there is no such folder, and {reason}")


def check_given(config: Any) -> None:
    """`check_is_there` for each model that a stage's config names. Raises FieldError, which names the setting."""
    for name in ("base_model", "sft_model", "policy", "reward_model"):
        if folder := getattr(config, name, None):
            try:
                check_is_there(folder)
            except StageError as error:
                raise FieldError(name, str(error)) from None


def load_tokenizer(folder: str | os.PathLike[str]):
    """The folder's tokenizer. One without a pad token pads with EOS: nothing here tells ends by token.

    Raises StageError when there is none, or it has no chat template.
    """
    check_is_there(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except OSError as error:  # its advice runs over many lines, and is about the hub
        where = "no tokenizer in this folder" if Path(folder).is_dir() else "no folder here, and no model to be fetched"
        raise StageError(f"{folder}: {where} ({str(error).splitlines()[0]})") from error
    if tokenizer.chat_template is None:
        raise StageError(f"{folder}: the tokenizer has no chat template, so prompts have no defined form")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_policy(folder: str | os.PathLike[str], device: torch.device | str = "cpu"):
    """A causal language model in float32, in evaluation mode (dropout off); an adapter merged into its base.

    Raises StageError for a reward model's folder: transformers would load its body and make up what stands above it.
    """
    check_is_there(folder)
    model: torch.nn.Module
    if adapters.is_adapter(folder):
        model = adapters.load_merged(folder)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    _check_policy(model, folder)
    return model.to(device).eval()


def _check_policy(model, folder: str | os.PathLike[str]) -> None:
    if getattr(model.config, "reward_bias", None) is not None:
        raise StageError(f"{folder}: a reward model, where a policy is needed")


def load_reward_model(folder: str | os.PathLike[str], device: torch.device | str = "cpu"):
    """A reward model in float32, in evaluation mode. Raises StageError when the folder holds none."""
    check_is_there(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    if model.config.num_labels != 1 or getattr(model.config, "reward_bias", None) is None:
        raise StageError(f"{folder}: not a reward model (needs one label and a reward_bias in config.json)")
    return model.to(device).eval()


def context_of(folder: str | os.PathLike[str]) -> int | None:
    """The most tokens that the model in a folder, or an adapter's base, reads at once; None where it sets no limit."""
    config = AutoConfig.from_pretrained(adapters.base_of(folder) if adapters.is_adapter(folder) else folder)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_context(folder: str | os.PathLike[str], tokens: int, what: str) -> None:
    """Raise StageError when `what`, so many tokens, is more than the model's context: learned positions end there, and no others
    were ever trained on.
    """
    context = context_of(folder)
    if context is not None and tokens > context:
        raise StageError(
            f"{folder}: {what}: {tokens} tokens, more than the model's context of {context}; "
            "lower prompt_tokens and response_tokens (on_too_long says what becomes of longer records)"
        )


def parent_of(folder: str | os.PathLike[str]) -> ParentRef:
    """How a manifest names a parent: by its own manifest, or, for a model from elsewhere, by a hash over its files.

    A name on the Hugging Face hub has no files here; its hash is over the name alone. Raises ContractError for a folder whose
    files are not those of its manifest: what is made from it would have a lineage that is not its own.
    """
    return processes.from_main(lambda: _parent_of(folder))


def _parent_of(folder: str | os.PathLike[str]) -> ParentRef:
    path = Path(folder)
    if (path / "manifest.json").exists():
        read_model_manifest(path)  # with its files
        return parent_ref(path)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else []
    listing = "".join(f"{file.relative_to(path).as_posix()} {hash_file(file)}\n" for file in files) or str(folder)
    return ParentRef(
        name=path.name if files else str(folder), manifest_sha256=hashlib.sha256(listing.encode()).hexdigest()
    )


def head_of(model) -> torch.nn.Linear:
    """The scalar head, whatever transformers calls it for this architecture."""
    for name in ("score", "classifier"):
        if isinstance(head := getattr(model, name, None), torch.nn.Linear):
            return head
    raise StageError(f"{type(model).__name__} has no linear scalar head; use a decoder such as Llama, Qwen or GPT-2")


def score_hidden(model, hidden: torch.Tensor) -> torch.Tensor:
    """The scalar head's output on hidden states (…, d), bias included, in float32 whatever the body computed in → (…)."""
    with torch.autocast(hidden.device.type, enabled=False):
        return head_of(model)(hidden.float()).squeeze(-1) + model.config.reward_bias


@in_precision
def token_scores(
    model, ids_BT: torch.Tensor, keep_BT: torch.Tensor | None, positions_BT: torch.Tensor | None
) -> torch.Tensor:
    """The scalar head's output at every token, bias included → (B, T). The critic's values and the reward alike.

    Rows padded on the right need neither mask nor positions (None): nothing kept comes after a pad.
    """
    hidden = model.base_model(ids_BT, attention_mask=keep_BT, position_ids=positions_BT, use_cache=False)
    return score_hidden(model, hidden.last_hidden_state)


def scores_at_end(scores_BT: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
    """The score on the last token of right-padded rows, found by length, never by token id → (B,)."""
    return scores_BT.gather(1, (lengths_B - 1)[:, None]).squeeze(1)


def positions_of(keep_BT: torch.Tensor) -> torch.Tensor:
    """Position ids that start at 0 on the first kept token of each row, wherever the padding is."""
    return (keep_BT.long().cumsum(1) - 1).clamp(min=0)


# ---- publishing -----------------------------------------------------------------------------------------------------


def publish(
    folder: str | os.PathLike[str],
    model,
    tokenizer,
    *,
    stage: Stage,
    parents: dict[str, ParentRef],
    export: ExportRef | None,
    config: dict[str, Any],
    metrics: dict[str, Any],
    log: list[dict[str, Any]],
    seed: int,
    samples: Samples = (),
) -> Path:
    """Write a model folder whole or not at all, manifest last. `log` becomes training_log.jsonl, `samples`, where there are any,
    samples.json; report.html shows both. Raises FileExistsError, unless `config` says overwrite: then what is there gives way. Of
    several processes only the main one writes; the others wait.
    """
    facts: dict[str, Any] = {
        "name": Path(folder).name,
        "stage": stage,
        "parents": parents,
        "export": export,
        "config": config,
        "metrics": metrics,
        "seed": seed,
        "code_version": find_code_version(),
        "created_at": utc_now(),
    }
    processes.from_main(lambda: _write_folder(Path(folder), model, tokenizer, log, samples, facts))
    return Path(folder)


def _write_folder(folder: Path, model, tokenizer, log: list[dict[str, Any]], samples: Samples, facts) -> None:
    import msgspec

    with atomic_folder(folder, overwrite=bool(facts["config"].get("overwrite"))) as building:
        is_policy = hasattr(model, "lm_head") or model.can_generate()
        if is_policy:
            # transformers serve ignores a request's temperature unless do_sample stands here: K equal responses
            model.generation_config = GenerationConfig(
                do_sample=True,
                temperature=1.0,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        try:
            model.save_pretrained(building)
        except SafetensorError as error:  # such as a full disk
            raise StageError(f"{folder}: {error}; the run's last checkpoint, if any, still stands") from error
        tokenizer.save_pretrained(building)
        (building / "training_log.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in log))
        if samples:
            (building / "samples.json").write_bytes(msgspec.json.format(msgspec.json.encode(samples), indent=1))
        page = msgspec.to_builtins(facts | {"libraries": library_versions()})
        (building / "README.md").write_text(model_card(page), encoding="utf-8")
        write_report(building / "report.html", facts=page, log=log, samples=samples)
        write_model_manifest(building, **facts)
