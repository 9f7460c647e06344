"""What PPO costs in language modelling, what ptx gives back, and how a policy over-optimises: on the tiny world.

    python -m tests.experiments.ptx --seeds 0 1 2

For each seed: base → SFT → reward model, as tests.loop.world makes them; then PPO alone, PPO-ptx, and the control that has the
same extra pretraining and no RL (`--ptx-only`). With L the held-out language-model loss, the give-back is

    (L_ppo − L_ptx) / (L_ppo − L_RLinit),

beside the same for the control. Gold reward and wins over SFT come from the hidden preference on 600 prompts that no stage has
seen; PPO-ptx is compared with PPO alone on the same prompts, by paired 95 % intervals of the difference (normal approximation);
"no worse" means that the interval does not lie below 0. For the seeds in --sweep, β = 0, 0.02 and 0.1 are trained too, and gold
and proxy reward of every iteration's rollout drawn against its KL.

Models lie under var/world/SEED, shared with tests.loop.world, and finished ones are not made again; a stage that was killed goes on
from its checkpoint. Writes summary.json, table.md and overoptimization.svg under --out. A seed takes some 12 minutes on one core,
a sweep some 8 more.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tests.experiments import chart
from tests.loop import gates, preference, world
from training import contract

TEXT = {"ptx_text": "tinyworld", "ptx_row_tokens": 128, "ptx_examples": 0.5}
"""The base's own text, in its own rows: 32 rows beside each minibatch of 64 episodes (the paper has 8 examples an episode)."""
GAMMA = 0.2
RUN = {"kl_coef": 0.2, "iterations": 40}
"""Of every arm alike: so long that on seed 0 PPO alone gains no more gold reward, and ptx, which slows PPO, has caught up."""
BETAS = (0.0, 0.02, 0.1)


def compare(root: Path, seed: int, threads: int, gamma: float) -> dict:
    """PPO alone, PPO-ptx and the control for one seed, held against each other."""
    world.prepare(root, seed, threads)
    arms = {
        "ppo": ("ptx-0", {}),
        "ptx": (f"ptx-{gamma:g}", {"ptx_coef": gamma}),
        "control": (f"ptx-only-{gamma:g}", {"ptx_coef": gamma, "ptx_only": True}),
    }
    runs = {arm: world.run_ppo(root, seed, threads, name, **RUN, **TEXT, **own) for arm, (name, own) in arms.items()}
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
        "give_back": give_back(losses, "ptx"),
        "give_back_control": give_back(losses, "control"),
        "kl": {name: each["kl_after"] for name, each in metrics.items()},
        "proxy_reward": {name: each["reward_mean_after"] for name, each in metrics.items()},
        "gradient_ratio": mean(row["ptx_gradient_ratio"] for row in log_of(runs["ptx"])),
        "cases": [row["use_case"] for row in unseen],
        "gold": golds,
    }


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
    found = verdict(seeds)
    lines += ["", "| of all seeds | PPO | PPO-ptx | PPO-ptx − PPO, paired | prompts |", "|---|---|---|---|---|"]
    for name, interval in found["intervals"].items():
        means = [found["means"][name][arm] for arm in ("ppo", "ptx")]
        lines.append(f"| {name} | {means[0]:.3f} | {means[1]:.3f} | {shown(interval)} | {interval['n']} |")
    return "\n".join(lines) + "\n"


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
        print(table(seeds))
    for seed, by_beta in curves.items():
        (arguments.out / f"overoptimization-{seed}.svg").write_text(drawn(by_beta))
    found = {"seeds": seeds, "verdict": verdict(seeds) if seeds else None, "curves": curves}
    (arguments.out / "summary.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
