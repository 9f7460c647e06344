"""The loop without the web half: base → demonstrations → SFT → samples → rankings → RM → PPO → gold evaluation.

For trying out recipes in minutes: `python -m tests.loop.world --seed 0`. Simulated labels are written as an export by the
contract's writer, and each stage runs as a user runs it, by config file. `gold_report` is what `make loop` uses as well.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tests.loop import gates, preference
from training import contract, data, generation, models, ppo, pretrain, rm, sft, tinyworld
from training.config import from_dict, read_toml

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "training" / "configs"
NOW = "2026-01-01T00:00:00Z"

PROMPTS, DEMONSTRATIONS, RANKINGS, K = 3200, 800, 600, 9
"""Prompts in all; demonstrations and rankings over those of the train split, and a tenth of that over the valid split."""
OVERLAP = 50
"""Ranking tasks that a second labeler ranks too, so that agreement can be seen."""
TEST_PROMPTS = 600
RM_SAMPLES = 4
MAX_NEW_TOKENS = 64


def new_id(*parts: object) -> str:
    """A stable random-looking UUID (version 4) for these words."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def split_of(author: str) -> str:
    """As the web half splits: by a hash of the author."""
    bucket = int.from_bytes(hashlib.sha256(f"heed-split:{author}".encode()).digest()[:8], "big") % 100
    return "train" if bucket < 80 else "valid" if bucket < 90 else "test"


# ---- simulated labels as an export ----------------------------------------------------------------------------------


def prompt_rows(count: int, seed: int) -> list[contract.PromptRow]:
    """Prompts of the tiny world as an export holds them."""
    rows = []
    for row in tinyworld.prompts(count, seed):
        rows.append(
            contract.PromptRow(
                prompt_id=new_id(seed, row["external_id"]),
                external_id=row["external_id"],
                kind="plain",
                use_case=row["use_case"],
                source="import",
                split=split_of(row["author"]),
                author=row["author"],
                organization=None,
                messages=[contract.Message(role="user", content=row["prompt"])],
                metadata="{}",
            )
        )
    return sorted(rows, key=lambda row: row.prompt_id.encode())


def pick(rows: Sequence[contract.PromptRow], count: int, seed: int) -> list[contract.PromptRow]:
    """`count` prompts to label from the train split, and a tenth as many from the valid split."""
    rng = random.Random(seed)
    chosen = []
    for split, wanted in (("train", count), ("valid", count // 10)):
        pool = [row for row in rows if row.split == split]
        chosen += rng.sample(pool, wanted)
    return chosen


def demonstration_row(prompt: contract.PromptRow, seed: int) -> contract.DemonstrationRow:
    """A simulated labeler's demonstration."""
    text = tinyworld.demonstration(prompt.messages[0].content, seed)
    return contract.DemonstrationRow(
        demonstration_id=new_id("demonstration", prompt.prompt_id),
        prompt_id=prompt.prompt_id,
        split=prompt.split,
        use_case=prompt.use_case,
        messages=prompt.messages,
        response=text,
        labeler="simulated-1",
        labeler_group="training",
        origin="simulated",
        review="accepted",
        is_surplus=False,
        schema_version=1,
        revision=1,
        submitted_at=NOW,
        earlier_revisions=[],
        reviews=[],
    )


def ranking_row(
    prompt: contract.PromptRow, texts: Sequence[str], reasons: Sequence[str], labelers: Sequence[preference.Labeler]
) -> contract.RankingRow:
    """One task of K sampled responses, ranked by one or more simulated labelers. Equal texts stand as one response."""
    unique = dict(zip(texts, reasons, strict=True))
    ids = {text: new_id("response", prompt.prompt_id, text) for text in unique}
    ordered = sorted(unique, key=lambda text: ids[text].encode())
    responses = [
        contract.RankedResponse(
            response_id=ids[text], text=text, model="sft", origin="model", finish_reason=unique[text], sampling="{}"
        )
        for text in ordered
    ]
    rankings = []
    for labeler in labelers:
        judged = labeler.rank(prompt.messages[0].content, ordered)
        tiers = [[ids[ordered[i]] for i in tier] for tier in judged.tiers]
        ratings = [
            contract.Rating(
                response_id=ids[text],
                quality=quality,
                flags=contract.Flags.of(sorted(flags.items())),
            )
            for text, quality, flags in zip(ordered, judged.ratings, judged.flags, strict=True)
        ]
        content = {
            "tiers": tiers,
            "all_bad": judged.all_bad,
            "ratings": ratings,
            "prompt_flags": contract.Flags.of(()),
            "comment": "",
        }
        rankings.append(
            contract.Ranking(
                ranking_id=new_id("ranking", prompt.prompt_id, labeler.name),
                labeler=labeler.name,
                origin="simulated",
                review="accepted",
                is_surplus=False,
                shown_order=[ids[text] for text in ordered],
                schema_version=1,
                revision=1,
                submitted_at=NOW,
                earlier_revisions=[],
                reviews=[],
                **content,
            )
        )
    return contract.RankingRow(
        task_id=new_id("task", prompt.prompt_id),
        prompt_id=prompt.prompt_id,
        batch="simulated",
        split=prompt.split,
        use_case=prompt.use_case,
        messages=prompt.messages,
        labeler_group="training",
        responses=responses,
        rankings=rankings,
    )


def ranking_rows(
    prompts: Sequence[contract.PromptRow], sft_folder: Path, seed: int
) -> tuple[list[contract.RankingRow], float]:
    """(ranking tasks over K samples of the SFT model each, the labelers' agreement on the tasks that two of them ranked)."""
    people = [preference.Labeler(f"simulated-{i}", seed) for i in range(4)]
    asked = [prompt.messages[0].content for prompt in prompts for _ in range(K)]
    texts, reasons = sample_texts(sft_folder, asked, seed=seed + 1)
    rows, agreed, compared = [], 0, 0
    for i, prompt in enumerate(prompts):
        chosen = slice(i * K, (i + 1) * K)
        if len(set(texts[chosen])) < 2:
            continue
        labelers = [people[i % 4], people[(i + 1) % 4]] if i < OVERLAP else [people[i % 4]]
        rows.append(ranking_row(prompt, texts[chosen], reasons[chosen], labelers))
        if len(labelers) == 2:
            unique = sorted(set(texts[chosen]))
            both = preference.agreement(*(person.rank(asked[i * K], unique) for person in labelers))
            agreed, compared = agreed + both[0], compared + both[1]
    return rows, agreed / max(1, compared)


def write_export(path: Path, version: int, prompts, demonstrations: Iterable, rankings: Iterable) -> None:
    """An export of simulated labels, asked for by name."""
    if path.exists():
        return
    contract.write_export(
        path,
        version=version,
        prompts=prompts,
        demonstrations=sorted(demonstrations, key=lambda row: row.demonstration_id.encode()),
        rankings=sorted(rankings, key=lambda row: (row.task_id.encode(), row.labeler_group.encode())),
        query={"origins": ["simulated"]},
    )


# ---- sampling and gold evaluation -----------------------------------------------------------------------------------


def sample_texts(
    folder: Path, prompts: Sequence[str], seed: int, temperature: float = 1.0
) -> tuple[list[str], list[str]]:
    """(texts, finish reasons): one response of the folder's model per prompt text."""
    model, tokenizer = models.load_policy(folder), models.load_tokenizer(folder)
    ids = [data.encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in prompts]
    return generation.sample_texts(
        model, tokenizer, ids, max_new_tokens=MAX_NEW_TOKENS, temperature=temperature, seed=seed
    )


def unseen_prompts(count: int, seed: int) -> list[dict[str, str]]:
    """Prompts that no stage of a loop with this seed has seen, 70 % stories and 30 % facts."""
    seen = {row["prompt"] for row in tinyworld.prompts(PROMPTS, seed)}
    return list(tinyworld.prompts(count, seed + 500_000, avoid=seen))


def gold_report(prompts: Sequence[dict], samples: dict[str, Sequence[str]]) -> dict:
    """What the hidden preference says of samples (policy name → one text per prompt; "base", "sft" and "ppo").

    Win rates with Wilson intervals (ties count half), overall and by use case; gold reward; distinct responses; and how much
    an answer's relevance depends on the prompt that it answers.
    """
    scores = {name: scores_of(prompts, texts) for name, texts in samples.items()}
    cases = [row["use_case"] for row in prompts]
    return {
        "prompts": len(prompts),
        "sft_vs_base": gates.win_rates(scores["sft"], scores["base"], cases),
        "ppo_vs_sft": gates.win_rates(scores["ppo"], scores["sft"], cases),
        "gold_reward": {name: sum(values) / len(values) for name, values in scores.items()},
        "distinct_responses": {name: len(set(texts)) / len(texts) for name, texts in samples.items()},
        "prompt_dependence": {name: prompt_dependence(prompts, texts) for name, texts in samples.items()},
        "traits": {name: traits(prompts, texts) for name, texts in samples.items()},
    }


def prompt_dependence(prompts: Sequence[dict], texts: Sequence[str]) -> float:
    """Mean relevance to one's own prompt minus that to another prompt of the same use case: 0 for an answer to anything."""
    differences = []
    for case in {row["use_case"] for row in prompts}:
        members = [i for i, row in enumerate(prompts) if row["use_case"] == case]
        for here, other in zip(members, members[1:] + members[:1], strict=True):
            own = preference.judge(prompts[here]["prompt"], texts[here]).relevance
            differences.append(own - preference.judge(prompts[other]["prompt"], texts[here]).relevance)
    return sum(differences) / len(differences)


def traits(prompts: Sequence[dict], texts: Sequence[str]) -> dict[str, float]:
    """Means of what the preference looks at, to see what a policy learned."""
    judged = [preference.judge(row["prompt"], text) for row, text in zip(prompts, texts, strict=True)]
    names = ("relevance", "is_relevant", "is_courteous", "has_right_length", "repeats_itself")
    return {name: sum(getattr(quality, name) for quality in judged) / len(judged) for name in names}


def reward_gold_accuracy(rm_folder: Path, sft_folder: Path, prompts: Sequence[dict], seed: int) -> dict:
    """How often the reward model orders SFT samples as the gold score does: over all non-tied pairs of four per prompt."""
    asked = [row["prompt"] for row in prompts]
    columns = []
    for offset in range(RM_SAMPLES):
        texts, reasons = sample_texts(sft_folder, asked, seed=seed + 11 + offset)
        golds = [preference.gold_score(prompt, text) for prompt, text in zip(asked, texts, strict=True)]
        columns.append((golds, score_texts(rm_folder, asked, texts, reasons)))
    hits = []
    for (gold_a, reward_a), (gold_b, reward_b) in itertools.combinations(columns, 2):
        for i in range(len(asked)):
            if abs(gold_a[i] - gold_b[i]) > 1e-9:
                hits.append((reward_a[i] > reward_b[i]) == (gold_a[i] > gold_b[i]))
    return {"gold_accuracy": sum(hits) / len(hits), "gold_pairs": len(hits)}


def score_texts(rm_folder: Path, prompts: Sequence[str], texts: Sequence[str], reasons: Sequence[str]) -> list[float]:
    """The reward model's scores of responses, with EOS where they were finished."""
    model, tokenizer = models.load_reward_model(rm_folder), models.load_tokenizer(rm_folder)
    examples = [
        data.encode_dialogue(tokenizer, [{"role": "user", "content": prompt}], text, finished=reason == "stop")
        for prompt, text, reason in zip(prompts, texts, reasons, strict=True)
    ]
    return rm.score_all(model, examples, tokenizer.pad_token_id, 256, torch.device("cpu")).tolist()


# ---- the whole of it ------------------------------------------------------------------------------------------------


def run_stage(module, out: Path, **fields) -> Path:
    """Run a stage with the tiny world's config file and these fields."""
    stage = module.__name__.rsplit(".", 1)[-1]
    values = read_toml(CONFIGS / f"tiny_{stage}.toml") | {"out": str(out)} | fields
    started = time.monotonic()
    folder = module.run(from_dict(module.Config, values, f"tiny_{stage}.toml"))
    print(f"{stage:>9}: {time.monotonic() - started:6.1f} s  {folder}", flush=True)
    return folder


def prepare(root: Path, seed: int, threads: int = 0) -> tuple[Path, Path, Path, float]:
    """Everything before PPO, under `root`: (base, SFT, reward model, labeler agreement). Finished parts are not repeated."""
    common = {"seed": seed, "threads": threads}
    base = run_stage(pretrain, root / "base", **common)
    prompts = prompt_rows(PROMPTS, seed)
    demonstrations = [demonstration_row(row, seed) for row in pick(prompts, DEMONSTRATIONS, seed)]
    write_export(root / "v0001", 1, prompts, demonstrations, [])
    policy = run_stage(sft, root / "sft", base_model=str(base), export=str(root / "v0001"), **common)
    rankings, agreement = ranking_rows(pick(prompts, RANKINGS, seed + 1), policy, seed)
    write_export(root / "v0002", 2, prompts, demonstrations, rankings)
    judge = run_stage(rm, root / "rm", sft_model=str(policy), export=str(root / "v0002"), **common)
    return base, policy, judge, agreement


def run_ppo(root: Path, seed: int, threads: int = 0, name: str = "ppo", **fields) -> Path:
    """One PPO run on what `prepare` made under `root`, with these fields in place of the config file's."""
    players = {"policy": str(root / "sft"), "reward_model": str(root / "rm"), "export": str(root / "v0002")}
    return run_stage(ppo, root / name, **players, **({"seed": seed, "threads": threads} | fields))


def run_world(root: Path, seed: int, threads: int = 0, **ppo_fields) -> dict:
    """The loop for one seed under `root`; finished parts are not repeated. Returns the report that the gates read."""
    base, policy, judge, agreement = prepare(root, seed, threads)
    final = run_ppo(root, seed, threads, **ppo_fields)
    return report(seed, agreement, base, policy, judge, final)


def report(
    seed: int,
    agreement: float,
    base: Path,
    policy: Path,
    judge: Path,
    final: Path,
    count: int = TEST_PROMPTS,
    others: dict[str, Path] | None = None,
) -> dict:
    """The gold report of four model folders on `count` unseen prompts, with what the stages measured themselves.

    `others`: more policies, for which the report holds each prompt's gold score, and its use case.
    """
    unseen = unseen_prompts(count, seed)
    asked = [row["prompt"] for row in unseen]
    said: dict[Path, list[str]] = {}  # a folder answers once, in however many roles

    def answers(folder: Path) -> list[str]:
        if folder.resolve() not in said:
            said[folder.resolve()] = sample_texts(folder, asked, seed=seed + 77)[0]
        return said[folder.resolve()]

    samples = {name: answers(folder) for name, folder in (("base", base), ("sft", policy), ("ppo", final))}
    compared = {}
    if others is not None:
        texts = {"ppo": samples["ppo"]} | {name: answers(folder) for name, folder in others.items()}
        compared = {"scores": {name: scores_of(unseen, each) for name, each in texts.items()}}
        compared["use_cases"] = [row["use_case"] for row in unseen]
    rm_metrics = contract.read_model_manifest(judge).metrics
    ppo_metrics = contract.read_model_manifest(final).metrics
    return (
        gold_report(unseen, samples)
        | compared
        | {
            "seed": seed,
            "labeler_agreement": agreement,
            "rm": {
                **reward_gold_accuracy(judge, policy, unseen, seed),
                "accuracy_valid": rm_metrics["accuracy_valid"],
                "demonstrations_valid_mean": rm_metrics["demonstrations_valid_mean"],
            },
            "kl": ppo_metrics["kl_after"],
            "beta": ppo_metrics["kl_coef"],
            "reward_std": ppo_metrics["reward_std_before"],
            "proxy_reward": {"sft": ppo_metrics["reward_mean_before"], "ppo": ppo_metrics["reward_mean_after"]},
            "samples": [
                {"prompt": row["prompt"], **{name: texts[i] for name, texts in samples.items()}}
                for i, row in enumerate(unseen[:6])
            ],
        }
    )


def sweep(root: Path, seed: int, threads: int, betas: Sequence[float]) -> None:
    """One PPO per β on the same reward model, compared on *validation* prompts: what β is chosen by. Prints a table."""
    run_world(root, seed, threads)
    valid = [row for row in tinyworld.prompts(PROMPTS, seed) if split_of(row["author"]) == "valid"]
    asked = [row["prompt"] for row in valid]
    sft_scores = scores_of(valid, sample_texts(root / "sft", asked, seed=seed + 88)[0])
    print(f"{len(valid)} validation prompts\n   β    β/std     KL   proxy    gold  beats SFT  relevance  distinct")
    for beta in betas:
        folder = run_ppo(root, seed, threads, f"ppo-{beta}", kl_coef=beta)
        texts = sample_texts(folder, asked, seed=seed + 88)[0]
        scores, metrics = scores_of(valid, texts), contract.read_model_manifest(folder).metrics
        wins = gates.win_rates(scores, sft_scores, [row["use_case"] for row in valid])
        print(
            f"{beta:5.2f} {metrics['kl_coef_per_reward_std']:7.3f} {metrics['kl_after']:7.2f} "
            f"{metrics['reward_mean_after']:7.2f} {sum(scores) / len(scores):7.2f} {wins['rate']:10.3f} "
            f"{traits(valid, texts)['relevance']:10.3f} {len(set(texts)) / len(texts):9.3f}",
            flush=True,
        )


def scores_of(prompts: Sequence[dict], texts: Sequence[str]) -> list[float]:
    """The gold score of each text for its prompt."""
    return [preference.gold_score(row["prompt"], text) for row, text in zip(prompts, texts, strict=True)]


def main() -> None:
    """Run one seed and print its report and gates, or with --betas compare values of β."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=None, help="default: var/world/SEED")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kl-coef", type=float, default=None, help="β, in place of the config file's")
    parser.add_argument(
        "--betas", type=float, nargs="+", default=None, help="compare these values of β on validation prompts"
    )
    arguments = parser.parse_args()
    fields = {} if arguments.kl_coef is None else {"kl_coef": arguments.kl_coef, "name": f"ppo-{arguments.kl_coef}"}
    root = arguments.root or ROOT / "var" / "world" / str(arguments.seed)
    if arguments.betas:
        sweep(root, arguments.seed, arguments.threads, arguments.betas)
        return
    result = run_world(root, arguments.seed, arguments.threads, **fields)
    print(json.dumps(result, indent=1))
    for verdict in gates.check(result):
        print(gates.line(verdict))


if __name__ == "__main__":
    main()
