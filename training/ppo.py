"""PPO against a reward model (InstructGPT, section 3.5 and appendix C.4; Stiennon et al. 2020).

A bandit: one prompt, one response, the reward at its end; a per-token KL penalty to the policy it started from. The critic
starts as the reward model. Not in the paper, from lm-human-preferences' code: GAE λ 0.95, value clipping, whitened
advantages. Sampling is from the full distribution only: the KL under top-p or top-k is not defined. With `ptx_coef` it is
PPO-ptx (training/ptx.py).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from tqdm import tqdm

from training import compiling, corpus, models, parallel, plan, processes, ptx
from training.adapters import Adapter, AdapterSettings, Method, attach
from training.checkpoints import RunState, capture, restore, stop_request
from training.config import option, require, require_warmup, to_dict
from training.contract import read_export
from training.data import LengthLimits, OnTooLong, check_some, read_prompts, shuffled_batches
from training.ema import WeightAverage
from training.experience import Experience, Shaping, gain_experience
from training.generation import side_by_side, transcripts
from training.kl_control import KlController
from training.optimizers import adamw, apply_step, check_finite
from training.players import Players, load_players, share_frozen_weights
from training.ppo_checks import check_kl_is_zero, check_ratio_is_one
from training.ppo_gradients import add_gradients, minibatches
from training.report import SAMPLES
from training.rollouts import answers_to, measure, respond
from training.run_settings import RunSettings
from training.trackers import open_log


@dataclass(frozen=True)
class Config(RunSettings):
    """Optimise a policy against a reward model with PPO."""

    out: str = option(help="model folder to write")
    policy: str = option(help="policy folder to start from; also the KL reference")
    reward_model: str = option(help="reward model folder; the critic starts from it too")
    export: str = option(help="export folder whose prompts are used")
    iterations: int = option(500, help="rollouts (paper: 500 of 512 episodes)")
    episodes: int = option(512, help="episodes per iteration (paper: 512)")
    minibatch: int = option(64, help="episodes per optimiser step (paper: 64)")
    inner_epochs: int = option(1, help="passes over each rollout (paper: 1)")
    kl_coef: float = option(0.02, help="β: per-token KL penalty in units of reward per nat (paper: 0.02)")
    kl_target: float | None = option(None, help="nats per response that β is steered to; none: β is fixed (the paper)")
    clip: float = option(0.2, help="PPO clipping range of the ratio (paper: 0.2)")
    value_clip: float = option(0.0, help="clipping range of the value; 0: off (not in the paper)")
    discount: float = option(1.0, help="discount per token (paper: none)")
    gae_lambda: float = option(0.95, help="GAE λ (lm-human-preferences: 0.95)")
    temperature: float = option(1.0, help="sampling temperature (paper: 1)")
    no_eos_penalty: float = option(1.0, help="penalty for a response that never ends (reward units)")
    no_eos_mode: Literal["replace", "subtract"] = option(
        "replace", help="replace: its score is −penalty; subtract: score − penalty"
    )
    learning_rate: float = option(9.65e-6, help="learning rate of the policy (ours; the paper does not say)")
    value_learning_rate: float = option(9e-6, help="learning rate of the critic (paper: 9e-6; 5e-6 at 175B)")
    warmup_iterations: int = option(10, help="iterations over which rates grow from 0.1× (paper: 10)")
    adam_epsilon: float = option(1e-5, help="AdamW epsilon")
    clip_norm: float = option(1.0, help="gradient norm clipping, of policy (ptx included) and critic each")
    ema_decay: float = option(
        0.0, help="decay per optimiser step of the weight average published; 0: none (paper: 0.992)"
    )
    ptx_coef: float = option(0.0, help="γ: weight of the gradient on pretraining text; 0: none (paper: 27.8)")
    ptx_reduction: ptx.Reduction = option(
        "token_mean", help="loss on text: token_mean, or sequence_sum (sum over a packed row, mean over rows)"
    )
    ptx_examples: float = option(8.0, help="packed rows of text per episode (paper: 8 examples)")
    ptx_text: str | None = option(
        None,
        help='JSONL of {"text"} or {"messages"} rows, or tinyworld; held-out loss on it is measured before and after',
    )
    ptx_documents: int = option(40_000, help="documents that the tiny world writes for ptx_text=tinyworld")
    ptx_row_tokens: int = option(2048, help="tokens per packed row of text")
    ptx_valid_documents: int = option(500, help="documents of the text held out, to measure on")
    ptx_only: bool = option(False, help="only the gradient on text, no RL: the control beside PPO-ptx")
    parts: int = option(1, help="passes a minibatch is split into, to save memory; the gradient stays the same")
    prompt_tokens: int = option(1024, help="longest prompt (tokens)")
    response_tokens: int = option(1024, help="longest response, EOS included (tokens)")
    on_too_long: OnTooLong = option("raise", help="what to do with a prompt past this limit")
    log_samples: int = option(0, help="episodes per iteration whose texts go to the log")
    valid_episodes: int = option(512, help="validation prompts sampled before and after, at most")
    adapter: Method = option("none", help="train an adapter instead of all the policy's weights; its kind")
    adapter_rank: int = option(8, help="rank of LoRA")
    adapter_alpha: int = option(16, help="LoRA's α: the update is scaled by α/rank")
    merge: bool = option(False, help="publish the policy with the adapter merged in, instead of the adapter alone")
    seed: int = option(0, help="seed of order and sampling")
    checkpoint_every: int = option(10, help="iterations between checkpoints")
    compile: bool = option(
        False, help="compile the layers with torch.compile (minutes at the start; sampling stays eager)"
    )

    def validate(self) -> None:
        """Raise ConfigError for values that cannot work."""
        super().validate()
        for name in (
            "iterations",
            "episodes",
            "minibatch",
            "inner_epochs",
            "response_tokens",
            "checkpoint_every",
            "parts",
        ):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.parts <= self.minibatch, "parts", "must not exceed minibatch")
        require(self.episodes % self.minibatch == 0, "episodes", "must be a multiple of minibatch")
        require(self.valid_episodes != 1, "valid_episodes", "must be 0, or at least 2: one reward has no deviation")
        require(self.kl_coef >= 0, "kl_coef", "must not be negative")
        require(self.temperature > 0, "temperature", "must be positive")
        require_warmup(self, "warmup_iterations", self.iterations)
        require(0 < self.clip < 1, "clip", "must lie between 0 and 1")
        require(0 < self.discount <= 1, "discount", "must lie above 0 and at most at 1")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", "must lie between 0 and 1")
        require(self.no_eos_penalty >= 0, "no_eos_penalty", "must not be negative")
        for name in ("learning_rate", "value_learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, name, "must be positive")
        require(self.kl_target is None or self.kl_target > 0, "kl_target", "must be positive")
        require(0 <= self.ema_decay < 1, "ema_decay", "must be at least 0 and less than 1")
        require(self.adapter_rank > 0, "adapter_rank", "must be positive")
        require(self.adapter != "none" or not self.merge, "merge", "needs an adapter")
        self._validate_ptx()

    def _validate_ptx(self) -> None:
        require(self.ptx_coef >= 0, "ptx_coef", "must not be negative")
        require(self.ptx_coef == 0 or self.ptx_text is not None, "ptx_text", "needed for ptx_coef")
        require(self.ptx_coef > 0 or not self.ptx_only, "ptx_only", "needs a ptx_coef")
        rows = self.minibatch * self.ptx_examples
        require(rows >= 1 and rows == int(rows), "ptx_examples", "times minibatch must be a whole number of rows")
        for name in ("ptx_documents", "ptx_row_tokens", "ptx_valid_documents"):
            require(getattr(self, name) > 0, name, "must be positive")

    def shaping(self, kl_coef: float) -> Shaping:
        """How experience.py is to turn scores into advantages, at this β."""
        return Shaping(self.temperature, kl_coef, self.no_eos_penalty, self.no_eos_mode, self.discount, self.gae_lambda)

    @property
    def rows_per_pass(self) -> int:
        """Rows of a forward pass, in scoring as in training."""
        return -(-self.minibatch // self.parts)

    @property
    def is_one_step(self) -> bool:
        """Whether a rollout is trained on once, whole: then the values it was scored with are those of the training pass."""
        return self.minibatch == self.episodes and self.inner_epochs == self.parts == 1

    @property
    def limits(self) -> LengthLimits:
        """The length limits as data.py takes them."""
        return LengthLimits(self.prompt_tokens, self.response_tokens, self.on_too_long)


def run(config: Config) -> Path:
    """Train and publish the policy; returns its folder. Resumes from checkpoints of the same run."""
    export = read_export(config.export)
    parents = {"policy": models.parent_of(config.policy), "rm": models.parent_of(config.reward_model)}
    parents["reference"] = parents["policy"]
    file = None if config.ptx_text == "tinyworld" else config.ptx_text
    state = RunState(config.out, "ppo", to_dict(config), parents, export.ref, file)
    if not config.dry_run and state.is_published(config.overwrite):
        return Path(config.out)
    device = config.set_up()
    torch.manual_seed(config.seed)
    players = load_players(config, device)
    adapter = attach(
        players.policy,
        AdapterSettings(config.adapter, config.adapter_rank, config.adapter_alpha, config.merge),
        stage="ppo",
        steps=config.iterations * config.inner_epochs * (config.episodes // config.minibatch),
        seed=config.seed,
        base=config.policy,
    )
    if adapter:
        share_frozen_weights(players.policy, players.reference)
    if config.compile:
        compiling.compile_layers(players.policy, players.critic, players.reference, players.reward_model)
    counts: Counter[str] = Counter()
    train = read_prompts(export, players.tokenizer, "train", config.limits, counts)
    check_some(train, "prompts", counts)
    valid = read_prompts(export, players.tokenizer, "valid", config.limits, counts, "dropped_too_long_valid")
    valid = valid[: config.valid_episodes]
    tokens = max(map(len, [*train, *valid])) + config.response_tokens
    for folder in (config.policy, config.reward_model):
        models.check_context(folder, tokens, "the longest prompt and response_tokens")
    text = load_text(config, players.tokenizer, counts)
    if config.dry_run:
        show_plan(config, players, train, text, counts, device)
    before = measure(config, players, valid, text, "before")
    answers = answers_to(config, players, valid[:SAMPLES])
    for player in (players.policy, players.critic):
        parallel.spread(player, config.parallel)
    log = train_policy(config, state, players, train, text, adapter)
    players = players._replace(policy=parallel.collect(players.policy), critic=parallel.collect(players.critic))
    metrics = {
        **before,
        **measure(config, players, valid, text, "after"),
        "kl_coef": config.kl_coef,
        "episodes": config.iterations * config.episodes,
        "prompts": len(train),
        "epochs": 0 if config.ptx_only else round(config.iterations * config.episodes / len(train), 3),
        **state.text_facts,
        **counts,
    }
    if config.kl_target is not None:
        metrics["kl_coef_after"] = log[-1]["kl_coef"]
    if before.get("reward_std_before"):
        metrics["kl_coef_per_reward_std"] = config.kl_coef / before["reward_std_before"]
    lineage: dict[str, Any] = {
        "stage": "ppo",
        "parents": parents,
        "export": export.ref,
        "config": to_dict(config),
        "seed": config.seed,
    }
    samples = side_by_side(players.tokenizer, valid[:SAMPLES], answers, answers_to(config, players, valid[:SAMPLES]))
    published = adapter.finish() if adapter else players.policy
    models.publish(config.out, published.cpu(), players.tokenizer, metrics=metrics, log=log, samples=samples, **lineage)
    state.clear()
    return Path(config.out)


def load_text(config: Config, tokenizer, counts: Counter[str]) -> corpus.Corpus | None:
    """The pretraining text, in packed rows; None without `ptx_text`."""
    if config.ptx_text is None:
        return None
    return corpus.load(
        tokenizer,
        None if config.ptx_text == "tinyworld" else config.ptx_text,
        row_tokens=config.ptx_row_tokens,
        valid_documents=config.ptx_valid_documents,
        documents=config.ptx_documents,
        seed=config.seed,
        on_too_long=config.on_too_long,
        counts=counts,
        prefix="ptx_",
    )


def train_policy(
    config: Config,
    state: RunState,
    players: Players,
    prompts: list[list[int]],
    text: corpus.Corpus | None,
    adapter: Adapter | None = None,
) -> list[dict]:
    """The loop: query → respond → score → KL reward → advantages → clipped steps → log. Returns the log.

    Leaves the weights to publish in `players.policy`: the average of them, where there is one.
    """
    rates: dict[str, Any] = {"weight_decay": 0.0, "epsilon": config.adam_epsilon}
    policy_adam = adamw(players.policy, learning_rate=config.learning_rate, **rates)
    critic_adam = adamw(players.critic, learning_rate=config.value_learning_rate, **rates)
    average = WeightAverage(players.policy, config.ema_decay) if config.ema_decay else None
    control, extra = KlController(config.kl_coef, config.kl_target), ptx_of(config, text)
    parts: dict[str, Any] = {"policy": adapter or players.policy, "critic": players.critic}
    parts |= {"policy_adam": policy_adam, "critic_adam": critic_adam}
    parts |= {"kl_control": control} | ({"average": average} if average else {})
    first, log = restore(state.load(), **parts)
    log = open_log(log, config.track, config.out, to_dict(config))
    queries = itertools.islice(shuffled_batches(len(prompts), config.episodes, config.seed), first, None)
    with (
        stop_request() as stop,
        tqdm(total=config.iterations, initial=first, desc="ppo", unit="it", disable=processes.bar_is_off()) as bar,
    ):
        for iteration in range(first, config.iterations):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + iteration)
            chosen = [prompts[i] for i in next(queries)]
            with parallel.whole(players.policy, players.critic):
                experience, stats = collect(config, players, chosen, generator, control.coef, iteration)
            order, checked = minibatches(config, generator), {}
            for number, rows in enumerate(order):
                losses = add_gradients(config, players, experience, rows, extra, iteration * len(order) + number)
                check_finite(f"iteration {iteration}", losses)
                if number == 0 and experience is not None:
                    check_ratio_is_one(losses, iteration)
                    checked = {f"first_{name}": losses[name] for name in ("ratio", "ratio_gap")}
                factor = min(1.0, 0.1 + 0.9 * iteration / max(1, config.warmup_iterations))
                rate, value_rate = config.learning_rate * factor, config.value_learning_rate * factor
                losses["gradient_norm"] = apply_step(policy_adam, players.policy, rate, config.clip_norm)
                losses["value_gradient_norm"] = apply_step(critic_adam, players.critic, value_rate, config.clip_norm)
                check_finite(f"iteration {iteration}", losses)
                if average:
                    average.update(players.policy)
            log.append({"iteration": iteration, "kl_coef": control.coef, **stats, **checked, **losses})
            if stats:
                control.update(stats["kl"])
                bar.set_postfix(score=f"{stats['score']:.2f}", kl=f"{stats['kl']:.2f}")
            bar.update()
            if stop.is_set or (iteration + 1) % config.checkpoint_every == 0:
                state.save(iteration + 1, capture(iteration + 1, log, **parts))
            if stop.is_set:
                raise KeyboardInterrupt
    if average:
        average.copy_into(players.policy)
    return log


def show_plan(
    config: Config,
    players: Players,
    prompts: list[list[int]],
    text: corpus.Corpus | None,
    counts: Counter[str],
    device: torch.device,
) -> NoReturn:
    """Raise DryRun with what this run would train; an iteration is tried: a rollout and the gradients of its minibatches."""
    extra, generator = ptx_of(config, text), torch.Generator().manual_seed(config.seed)
    queries = next(shuffled_batches(len(prompts), config.episodes, config.seed))

    def iteration() -> None:
        chosen = [prompts[i] for i in queries]
        experience, _ = collect(config, players, chosen, generator, config.kl_coef, iteration=0)
        for number, rows in enumerate(minibatches(config, generator)):
            add_gradients(config, players, experience, rows, extra, number)

    plan.show_and_stop(
        "ppo",
        counts={"prompts": len(prompts), "episodes": config.iterations * config.episodes, **counts},
        steps=config.iterations,
        unit="iteration",
        models={name.replace("_", " "): player for name, player in players._asdict().items() if name != "tokenizer"},
        trained=["policy", "critic"],
        step=iteration,
        device=device,
    )


def ptx_of(config: Config, text: corpus.Corpus | None) -> ptx.Ptx | None:
    """What ptx trains on; None without γ."""
    if text is None or config.ptx_coef == 0:
        return None
    rows = int(config.minibatch * config.ptx_examples)
    return ptx.Ptx(text, config.ptx_coef, config.ptx_reduction, rows, config.parts, config.seed)


def collect(
    config: Config,
    players: Players,
    prompts: Sequence[list[int]],
    generator: torch.Generator,
    kl_coef: float,
    iteration: int,
) -> tuple[Experience | None, dict[str, Any]]:
    """One rollout, scored and checked, with its figures; nothing for the control without RL."""
    if config.ptx_only:
        return None, {}
    rollout = respond(config, players, prompts, generator)
    experience, stats = gain_experience(
        players,
        rollout,
        config.shaping(kl_coef),
        config.rows_per_pass,
        keep_graph=config.is_one_step and processes.count() == 1,
    )
    values = {"values": experience.values_BR.sum().item(), "advantages": experience.advantages_BR.sum().item()}
    check_finite(f"iteration {iteration}", stats | values)
    if iteration == 0:
        check_kl_is_zero(stats)
    samples = transcripts(players.tokenizer, rollout, config.log_samples)
    return experience, stats | ({"samples": samples} if samples else {})
