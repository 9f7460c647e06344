"""What PPO costs in language modelling, what ptx gives back, and how a policy over-optimises: on the tiny world.

    python -m tests.experiments.ptx --seeds 0 1 2

For each seed: base → SFT → reward model, as tests.loop.world makes them; then PPO alone, PPO-ptx, and the control that has the
same extra pretraining and no RL (`--ptx-only`). The text, to train on and held out, is the world's plain stories and facts: pretraining
text that answers nobody, as the paper's does. With L the language-model loss on the held-out part, the give-back is

    (L_ppo − L_ptx) / (L_ppo − L_RLinit),

beside the same for the control; the loss on dialogues, whose answers are of mixed quality on purpose, is shown apart. Gold reward and
wins over SFT come from the hidden preference on 600 prompts that no stage has seen; PPO-ptx is compared with PPO alone on the same
prompts, by paired 95 % intervals of the difference (normal approximation). "No worse" is that the whole interval lies above −MARGINS;
whether it reaches 0 is shown beside it. Gold reward of every iteration's rollout is drawn against its KL, for both; for the seeds in
--sweep β = 0, 0.02 and 0.1 are trained too, and proxy reward drawn as well.

Models lie under var/world/SEED, shared with tests.loop.world, and finished ones are not made again; a stage that was killed goes on
from its checkpoint. Writes summary.json, table.md, ptx.svg and overoptimization-SEED.svg under --out. A seed takes some 12 minutes on
one core, a sweep some 8 more.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional

from tests.experiments import chart
from tests.loop import gates, preference, world
from training import contract, corpus, models, tinyworld

TEXT = {"ptx_row_tokens": 128, "ptx_examples": 0.25, "ptx_valid_documents": 500}
"""Rows of the plain text: 16 beside each minibatch of 64 episodes (the paper has 8 examples an episode)."""
GAMMA = 0.1
RUN = {"kl_coef": 0.2, "iterations": 40, "log_samples": 256}
"""Of every arm alike: so long that on seed 0 PPO alone gains no more gold reward."""
DOCUMENTS, HELD_OUT, OTHER_SEED = 40_000, 2_000, 900_000
"""Documents of the world that the plain text is taken from: those of the base model, and others that no model has been trained on."""
MARGINS = {"gold reward": 0.1, "wins": 0.05}
"""What still counts as no worse: each less than a fifth of what PPO alone gains over SFT (some 0.55, and 28 % above even), and the
gold reward's less than a tenth of its deviation over answers (1.1)."""
PARTS = ("plain", "prompts", "answers", "all")
BETAS = (0.0, 0.02, 0.1)


def compare(root: Path, seed: int, threads: int, gamma: float) -> dict:
    """PPO alone, PPO-ptx and the control for one seed, held against each other."""
    world.prepare(root, seed, threads)
    arms = {
        "ppo": ("plain-ppo", {}),
        "ptx": (f"plain-ptx-{gamma:g}", {"ptx_coef": gamma}),
        "control": (f"plain-only-{gamma:g}", {"ptx_coef": gamma, "ptx_only": True}),
    }
    text = write_plain_text(root / "plain.jsonl", seed)
    runs = {
        arm: world.run_ppo(root, seed, threads, name, ptx_text=str(text), **RUN, **TEXT, **own)
        for arm, (name, own) in arms.items()
    }
    metrics = {name: contract.read_model_manifest(folder).metrics for name, folder in runs.items()}
    before = metrics["ppo"]["lm_loss_before"]
    losses = {"init": before} | {name: each["lm_loss_after"] for name, each in metrics.items()}
    unseen = world.unseen_prompts(world.TEST_PROMPTS, seed)
    asked = [row["prompt"] for row in unseen]
    folders = {"sft": root / "sft"} | runs
    golds = {
        name: world.scores_of(unseen, world.sample_texts(folder, asked, seed=seed + 77)[0])
        for name, folder in folders.items()
    }
    return {
        "seed": seed,
        "gamma": gamma,
        "lm_loss": losses,
        "lm_loss_by_part": {name: losses_by_part(folder, seed) for name, folder in folders.items()},
        "give_back": give_back(losses, "ptx"),
        "give_back_control": give_back(losses, "control"),
        "kl": {name: each["kl_after"] for name, each in metrics.items()},
        "proxy_reward": {name: each["reward_mean_after"] for name, each in metrics.items()},
        "gradient_ratio": mean(row["ptx_gradient_ratio"] for row in log_of(runs["ptx"])),
        "curves": {name: curve(runs[name]) for name in ("ppo", "ptx")},
        "cases": [row["use_case"] for row in unseen],
        "gold": golds,
    }


def write_plain_text(path: Path, seed: int) -> Path:
    """The world's plain stories and facts, without its dialogues, for PPO's `ptx_text`: held-out ones first."""
    held_out = [text for text in tinyworld.documents(HELD_OUT, seed + OTHER_SEED) if isinstance(text, str)]
    train = [text for text in tinyworld.documents(DOCUMENTS, seed) if isinstance(text, str)]
    rows = held_out[: TEXT["ptx_valid_documents"]] + train
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    return path


@torch.no_grad()
def losses_by_part(folder: Path, seed: int) -> dict[str, float]:
    """Loss (nats per token) on held-out documents of every kind: plain text, the prompts of dialogues, their answers, all."""
    model, tokenizer = models.load_policy(folder).eval(), models.load_tokenizer(folder)
    answer_starts = tokenizer.convert_tokens_to_ids("<|assistant|>")
    totals: dict[str, list[float]] = {part: [] for part in PARTS[:-1]}
    for document in tinyworld.documents(HELD_OUT, seed + OTHER_SEED):
        (ids,) = corpus.encode_documents(tokenizer, [document], 256, "raise", Counter())
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        losses = functional.cross_entropy(logits.float(), torch.tensor(ids[1:]), reduction="none").tolist()
        if isinstance(document, str):
            totals["plain"] += losses
        else:
            turn = ids.index(answer_starts)
            totals["prompts"] += losses[:turn]
            totals["answers"] += losses[turn:]
    return {name: mean(each) for name, each in totals.items()} | {"all": mean(itertools.chain(*totals.values()))}


def give_back(losses: dict[str, float], name: str) -> float:
    """Share of the rise of PPO alone over the RL initialisation that this run does not show."""
    return (losses["ppo"] - losses[name]) / (losses["ppo"] - losses["init"])


def paired_interval(ours: Sequence[float], theirs: Sequence[float]) -> dict:
    """Mean of ours − theirs on the same prompts, with its 95 % interval by the normal approximation."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    middle = mean(differences)
    variance = sum((d - middle) ** 2 for d in differences) / (len(differences) - 1)
    half = 1.96 * math.sqrt(variance / len(differences))
    return {"difference": middle, "low": middle - half, "high": middle + half, "n": len(differences)}


def verdict(seeds: Sequence[dict]) -> dict:
    """PPO-ptx against PPO alone over the prompts of these seeds together: gold reward, and wins over SFT by use case."""
    pooled = {name: [g for seed in seeds for g in seed["gold"][name]] for name in ("sft", "ppo", "ptx")}
    cases = [case for seed in seeds for case in seed["cases"]]
    wins = {
        name: [(a > b) + 0.5 * (a == b) for a, b in zip(pooled[name], pooled["sft"], strict=True)]
        for name in ("ppo", "ptx")
    }
    held = {"gold reward": {name: pooled[name] for name in ("ppo", "ptx")}}
    for case in sorted(set(cases)):
        chosen = [i for i, of in enumerate(cases) if of == case]
        held[f"wins over SFT, {case}"] = {name: [of[i] for i in chosen] for name, of in wins.items()}
    rates = {name: gates.win_rates(pooled[name], pooled["sft"], cases) for name in ("ppo", "ptx")}
    return {
        "intervals": {what: paired_interval(each["ptx"], each["ppo"]) for what, each in held.items()},
        "means": {what: {name: mean(values) for name, values in each.items()} for what, each in held.items()},
        "win_rates": rates,
    }


def curve(folder: Path) -> list[dict[str, float]]:
    """KL, proxy and gold reward of every iteration's rollout: of the training prompts, before that iteration's steps."""
    points = []
    for row in log_of(folder):
        golds = [preference.gold_score(sample["prompt"], sample["response"]) for sample in row["samples"]]
        points.append({"kl": row["kl"], "proxy": row["reward"], "gold": mean(golds)})
    return points


def sweep(root: Path, seed: int, threads: int, betas: Sequence[float]) -> dict[str, list[dict[str, float]]]:
    """One PPO run per β with all its rollouts logged; returns their curves by β."""
    world.prepare(root, seed, threads)
    episodes = {"log_samples": 256}
    return {
        f"{beta:g}": curve(world.run_ppo(root, seed, threads, f"curve-{beta:g}", kl_coef=beta, **episodes))
        for beta in betas
    }


def drawn_arms(seeds: Sequence[dict]) -> str:
    """Gold reward against KL for PPO and PPO-ptx, a chart for each seed; a point is the mean of five iterations."""
    names = {"ppo": "PPO", "ptx": "PPO-ptx"}
    charts = []
    for seed in seeds:
        lines = [
            (title, [(p["kl"], p["gold"]) for p in by_fives(seed["curves"][name])]) for name, title in names.items()
        ]
        charts.append((f"Seed {seed['seed']}", "gold reward", lines))
    label = "KL to the RL initialisation (nats per response)"
    return chart.side_by_side(charts, label, "Gold reward against KL for PPO alone and PPO-ptx, by seed")


def by_fives(points: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Means of each five points on end: one iteration's rollout is too noisy to tell two lines apart."""
    groups = [points[i : i + 5] for i in range(0, len(points), 5)]
    return [{name: mean(point[name] for point in group) for name in group[0]} for group in groups]


def drawn(curves: dict[str, list[dict[str, float]]]) -> str:
    """Proxy and gold reward against KL, one line per β."""
    charts = [
        (title, "reward", [(f"β = {beta}", [(p["kl"], p[name]) for p in points]) for beta, points in curves.items()])
        for title, name in (("Proxy: the reward model", "proxy"), ("Gold: the hidden preference", "gold"))
    ]
    label = "KL to the RL initialisation (nats per response)"
    return chart.side_by_side(charts, label, "Proxy and gold reward against KL for several β")


def table(seeds: Sequence[dict]) -> str:
    """What was seen, as Markdown."""
    lines = [
        "| seed | L init | L PPO | L PPO-ptx | L control | give-back | of the control "
        "| gold SFT, PPO, PPO-ptx, control | PPO-ptx − PPO | KL PPO, PPO-ptx | ‖γ·ptx‖ / ‖PPO‖ |",
        "|" + "---|" * 11,
    ]
    for seed in seeds:
        loss, gold, kl = seed["lm_loss"], {name: mean(values) for name, values in seed["gold"].items()}, seed["kl"]
        lines.append(
            f"| {seed['seed']} | {loss['init']:.3f} | {loss['ppo']:.3f} | {loss['ptx']:.3f} | {loss['control']:.3f} "
            f"| {seed['give_back']:.0%} | {seed['give_back_control']:.0%} "
            f"| {gold['sft']:.2f}, {gold['ppo']:.2f}, {gold['ptx']:.2f}, {gold['control']:.2f} "
            f"| {shown(paired_interval(seed['gold']['ptx'], seed['gold']['ppo']))} "
            f"| {kl['ppo']:.2f}, {kl['ptx']:.2f} | {seed['gradient_ratio']:.2f} |"
        )
    shares = [mean(seed[name] for seed in seeds) for name in ("give_back", "give_back_control")]
    lines.append(f"| mean | | | | | {shares[0]:.0%} | {shares[1]:.0%} | | | | |")
    lines += parts_table(seeds)
    found = verdict(seeds)
    lines += [
        "",
        "| of all seeds | PPO | PPO-ptx | PPO-ptx − PPO, paired | prompts | above −margin | reaches 0 |",
        "|" + "---|" * 7,
    ]
    for name, interval in found["intervals"].items():
        means = [found["means"][name][arm] for arm in ("ppo", "ptx")]
        margin = MARGINS[name.partition(" over")[0]]
        readings = ("yes" if holds else "no" for holds in (interval["low"] > -margin, interval["high"] >= 0))
        lines.append(
            f"| {name} | {means[0]:.3f} | {means[1]:.3f} | {shown(interval)} | {interval['n']} | {' | '.join(readings)} |"
        )
    return "\n".join(lines) + "\n"


def parts_table(seeds: Sequence[dict]) -> list[str]:
    """Lines of Markdown: the loss on each kind of held-out text, before RL and after each run."""
    lines = ["", "| L on | seed | SFT | PPO | PPO-ptx | control |", "|" + "---|" * 6]
    for part in PARTS:
        for seed in seeds:
            each = [f"{seed['lm_loss_by_part'][name][part]:.3f}" for name in ("sft", "ppo", "ptx", "control")]
            lines.append(f"| {part} | {seed['seed']} | {' | '.join(each)} |")
    return lines


def shown(interval: dict) -> str:
    """A paired difference with its interval, as the tables have it."""
    return f"{interval['difference']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def log_of(folder: Path) -> list[dict]:
    """The rows of a model folder's training log."""
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def mean(values) -> float:
    """The mean of any numbers."""
    values = list(values)
    return sum(values) / len(values)


def main() -> None:
    """Run what is not there yet, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of the comparison")
    parser.add_argument("--sweep", type=int, nargs="*", default=[0], help="seeds of the over-optimisation curves")
    parser.add_argument("--gamma", type=float, default=GAMMA, help="γ, of token means")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--root", type=Path, default=world.ROOT / "var" / "world", help="folder of the models, by seed")
    parser.add_argument("--out", type=Path, default=world.ROOT / "var" / "experiments" / "ptx")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    common = (arguments.threads,)
    seeds = [compare(arguments.root / str(seed), seed, *common, arguments.gamma) for seed in arguments.seeds]
    curves = {seed: sweep(arguments.root / str(seed), seed, *common, BETAS) for seed in arguments.sweep}
    if seeds:
        (arguments.out / "table.md").write_text(table(seeds))
        (arguments.out / "ptx.svg").write_text(drawn_arms(seeds))
        print(table(seeds))
    for seed, by_beta in curves.items():
        (arguments.out / f"overoptimization-{seed}.svg").write_text(drawn(by_beta))
    found = {"seeds": seeds, "verdict": verdict(seeds) if seeds else None, "curves": curves}
    (arguments.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
