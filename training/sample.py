"""Write K responses per prompt, to be ranked: from model folders in batches, or from any OpenAI-compatible server.

Prompts come from a file or from the web half; responses go to a JSON Lines file and, with --push, back to the web half.
A killed run goes on where it stopped and ends with the same file. A repeated run adds nothing: it is told by its settings and by
what its models and prompts hold, and a response's external id is a hash of what decides it (model, prompt, seed, temperature, length,
number).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from tqdm import tqdm

from training.client import HeedClient
from training.config import option, require, require_out, to_dict
from training.contract import hash_file, parent_ref, read_model_manifest, write_atomically
from training.errors import StageError
from training.folders import hold
from training.openai_server import OpenAIServer
from training.prompt_files import read_prompts, read_rows, to_answer
from training.writers import Answer, Ask, FolderWriter, PromptEncoder, ServerWriter, Writer, digest, prompt_hash


@dataclass(frozen=True)
class Config:
    """Write K responses per prompt, from model folders (--model), the promoted policies (--policies) or a --server."""

    out: str = option(help="file to write, JSON Lines; its report goes beside it, in OUT.report.json")
    model: tuple[str, ...] = option((), help="model folders, comma-separated; the first gives most responses")
    policies: int = option(0, help="instead: the promoted policy and those promoted before it, this many in all")
    server: str | None = option(
        None, help="instead: address of an OpenAI-compatible server, e.g. http://127.0.0.1:8001"
    )
    server_model: str | None = option(None, help="the server's model to ask; default: the only one it lists")
    token_ids: bool = option(
        False, help="with server: keep the token ids that it sampled, and their log-probabilities, in the file (vLLM)"
    )
    prompts: str | None = option(
        None, help="file of prompts, JSON Lines: messages or prompt, and prompt_id or external_id"
    )
    from_server: bool = option(False, help="instead: take the prompts from the web half (HEED_URL, HEED_TOKEN)")
    split: Literal["train", "valid", "test"] | None = option(None, help="only prompts of this split (--from-server)")
    use_case: str | None = option(None, help="only prompts of this use case (--from-server)")
    without_tasks: Literal["ranking", "demonstration"] | None = option(
        None, help="only prompts that have no such task yet (--from-server)"
    )
    limit: int | None = option(None, help="at most this many prompts")
    k: int = option(4, help="responses per prompt in all, dealt to the models in turn")
    temperature: float = option(1.0, help="sampling temperature; 0 takes the likeliest token")
    best_of: int = option(1, help="samples drawn for each response, of which the reward model's best is kept")
    reward_model: str | None = option(None, help="reward model folder that chooses (--best-of)")
    max_new_tokens: int = option(64, help="longest response (tokens)")
    seed: int = option(0, help="seed of the random numbers; another seed gives other responses")
    batch: int = option(256, help="responses sampled at once")
    device: str = option("auto", help="cpu, cuda, or auto")
    on_too_long: Literal["raise", "drop"] = option("raise", help="when prompt and response exceed a model's context")
    push: bool = option(False, help="bring the responses to the web half (HEED_URL, HEED_TOKEN)")

    def validate(self) -> None:
        """Raise ConfigError for settings that cannot go together."""
        sources = [bool(self.model), self.policies > 0, self.server is not None]
        require_out(self.out, "file")
        require(sum(sources) == 1, "model", "give exactly one of model, policies, server")
        require(self.server is not None or not self.token_ids, "token_ids", "goes with a server")
        require((self.prompts is not None) != self.from_server, "prompts", "give either prompts or from_server")
        require(1 <= self.k <= 64, "k", "must be from 1 to 64")
        require(0 <= self.temperature <= 5, "temperature", "must be from 0 to 5")
        require(self.temperature > 0 or self.k <= self.model_count, "temperature", "0 would repeat equal responses")
        require(self.best_of > 0, "best_of", "must be positive")
        require((self.best_of > 1) == (self.reward_model is not None), "best_of", "above 1 goes with a reward_model")
        require(self.temperature > 0 or self.best_of == 1, "temperature", "0 would draw one sample best_of times")
        require(self.max_new_tokens > 0, "max_new_tokens", "must be positive")
        require(self.batch > 0, "batch", "must be positive")
        require(self.limit is None or self.limit > 0, "limit", "must be positive")
        require(0 <= self.seed < 2**31, "seed", "must be from 0 to 2147483647")
        filters = (self.split, self.use_case, self.without_tasks)
        require(self.from_server or not any(filters), "from_server", "needed by split, use_case and without_tasks")

    @property
    def model_count(self) -> int:
        """How many models answer each prompt, at most."""
        return len(self.model) or self.policies or 1


SHOWN_NUL = "\N{SYMBOL FOR NULL}"
"""What a sampled NUL character becomes: PostgreSQL cannot keep the character itself, and dropping it would hide a fault."""


@dataclass(frozen=True)
class Source:
    """A model to sample from. `identity` changes whenever its weights may have."""

    name: str
    identity: str
    folder: Path | None
    few_shot_prefix: str = ""


def run(config: Config) -> Path:
    """Sample, write `config.out` whole or not at all, push if asked. Returns the file."""
    out, work = Path(config.out), Path(config.out + ".run")
    client = HeedClient.from_environment() if config.push or config.from_server or config.policies else None
    server = _server(config) if config.server else None
    given = _given_prompts(config)
    inputs = _inputs(config, given)
    if not _is_done(out, config, inputs):
        with hold(work):
            if not _is_done(out, config, inputs):  # by one that held it until now
                _sample(config, out, work, client, server, given, inputs)
            shutil.rmtree(work, ignore_errors=True)
    if config.push and client:
        rows = ({name: value for name, value in row.items() if name != "tokens"} for row in read_rows(out))
        counts = client.bring_responses(rows)
        print(f"pushed to {client.url}: " + ", ".join(f"{n} {name}" for name, n in counts.items()), file=sys.stderr)
    return out


def _sample(
    config: Config,
    out: Path,
    work: Path,
    client: HeedClient | None,
    server: OpenAIServer | None,
    given: list[dict[str, Any]] | None,
    inputs: dict[str, Any],
) -> None:
    try:
        _begin(work)
        sources = _pinned_sources(config, work, client, server)
        prompts = _pinned_prompts(config, work, client, given)
        judge = _pinned_judge(config, work)
        if not _has_parts(work):
            _check_lengths(config, sources, prompts)
        _finish(config, out, _sample_all(config, work, sources, prompts, server, judge), len(prompts), inputs)
    except BaseException:
        if not _has_parts(work):  # a start that failed must not stand in the way of the corrected command
            shutil.rmtree(work, ignore_errors=True)
        raise


def _server(config: Config) -> OpenAIServer:
    assert config.server is not None  # noqa: S101 the caller chose by it
    return OpenAIServer.connect(config.server, config.server_model, with_tokens=config.token_ids)


# ---- what a run is, pinned at its start so that a resumed one is the same ---------------------------------------------

SHAPING_FIELDS = ("model", "policies", "server", "server_model", "prompts", "from_server", "split", "use_case",
                  "without_tasks", "limit", "k", "temperature", "max_new_tokens", "seed", "batch", "on_too_long",
                  "best_of", "reward_model", "token_ids")  # fmt: skip
BEST_OF_FIELDS = ("best_of", "reward_model")
PLACES = ("model", "prompts", "reward_model")
"""Settings that say where data lie: a run is told by what is there."""


def _shaping(config: Config) -> dict[str, Any]:
    """The settings that decide which responses come out."""
    skipped: tuple[str, ...] = () if config.token_ids else ("token_ids",)  # a file sampled before these were there
    skipped += BEST_OF_FIELDS if config.best_of == 1 else ()  # stays this run's
    return {name: value for name, value in to_dict(config).items() if name in SHAPING_FIELDS and name not in skipped}


def _settings(shaping: dict[str, Any]) -> dict[str, Any]:
    """Of the shaping settings what tells a run apart; of a place only whether there is one."""
    return {name: bool(value) if name in PLACES else value for name, value in shaping.items()}


def _inputs(config: Config, prompts: list[dict[str, Any]] | None) -> dict[str, Any]:
    """What lies at the places that the settings name, as hashes. What the web half or a server is asked for is theirs to say anew."""
    inputs: dict[str, Any] = {"models": [parent_ref(folder).manifest_sha256 for folder in config.model]}
    inputs["prompts"] = None if prompts is None else digest(prompts)
    inputs["reward_model"] = parent_ref(config.reward_model).manifest_sha256 if config.reward_model else None
    return inputs


def _report_path(out: Path) -> Path:
    return out.with_name(out.name + ".report.json")


def _is_done(out: Path, config: Config, inputs: dict[str, Any]) -> bool:
    """True when `out` is this very run's. Raises StageError when it is another's: nothing is overwritten."""
    if not out.exists():
        return False
    report = _report_path(out)
    saved = json.loads(report.read_bytes()) if report.exists() else {}
    same = saved.get("config") == _shaping(config)  # all that was kept of a run before there were inputs
    if "inputs" in saved:
        same = _settings(saved["config"]) == _settings(_shaping(config)) and saved["inputs"] == inputs
    if same and saved.get("sha256") == hash_file(out):
        return True
    raise StageError(
        f"{out} exists and is not of this run (settings, models, prompts); choose another out, or remove it"
    )


def _has_parts(work: Path) -> bool:
    return any(work.glob("part-*"))


def _begin(work: Path) -> None:
    """What a killed start left there, before its first part, holds nobody to its settings."""
    if not _has_parts(work):
        for pinned in work.glob("*.json"):
            pinned.unlink()


def _pinned(path: Path, make: Any) -> Any:
    """The JSON in `path`, made and written there when the run first gets here."""
    if not path.exists():
        write_atomically(path, msgspec.json.encode(make()))
    return json.loads(path.read_bytes())


def _pinned_sources(config: Config, work: Path, client: HeedClient | None, server: OpenAIServer | None) -> list[Source]:
    saved = _pinned(work / "config.json", lambda: _shaping(config))
    if _settings(saved) != _settings(_shaping(config)):
        raise StageError(f"{work} belongs to a run with other settings; remove it, or choose another out")
    if server:
        return [Source(server.model, f"{server.url} {server.model}", None)]
    folders = config.model or _pinned(work / "models.json", lambda: _policy_folders(config.policies, client))
    sources = [_source(Path(folder)) for folder in folders]
    known = _pinned(work / "identities.json", lambda: [source.identity for source in sources])
    if known != [source.identity for source in sources]:
        raise StageError(f"{work}: a model folder has changed since this run began; remove {work} to start over")
    return sources


def _pinned_judge(config: Config, work: Path) -> Source | None:
    """The reward model that chooses, held to the one that the run began with."""
    if config.reward_model is None:
        return None
    folder = Path(config.reward_model)
    manifest = read_model_manifest(folder)
    if manifest.stage != "rm":
        raise StageError(f"{folder}: not a reward model but a model of stage {manifest.stage}")
    judge = Source(manifest.name, hash_file(folder / "manifest.json"), folder)
    if _pinned(work / "judge.json", lambda: judge.identity) != judge.identity:
        raise StageError(f"{work}: the reward model has changed since this run began; remove {work} to start over")
    return judge


def _policy_folders(count: int, client: HeedClient | None) -> list[str]:
    models = client.promoted_models(count) if client else []
    if not models:
        raise StageError("no policy has been promoted yet, so there is none to sample from")
    return [str(HeedClient.fetch_model(model)) for model in models]


def _source(folder: Path) -> Source:
    manifest = read_model_manifest(folder)
    if manifest.stage == "rm":
        raise StageError(f"{folder}: a reward model scores text and writes none")
    return Source(manifest.name, hash_file(folder / "manifest.json"), folder, manifest.few_shot_prefix)


def _given_prompts(config: Config) -> list[dict[str, Any]] | None:
    """The prompts of the file; None where the web half is asked for them."""
    return list(read_prompts(config.prompts))[: config.limit] if config.prompts else None


def _pinned_prompts(
    config: Config, work: Path, client: HeedClient | None, given: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    def ask() -> list[dict[str, Any]]:
        assert client is not None  # noqa: S101 from_server made one
        filters = {"split": config.split, "use_case": config.use_case, "without_tasks": config.without_tasks}
        return [to_answer(row) for row in client.prompts(limit=config.limit, **filters)][: config.limit]

    prompts = _pinned(work / "prompts.json", ask if given is None else lambda: given)
    if given is not None and digest(prompts) != digest(given):
        raise StageError(f"{work}: the prompts have changed since this run began; remove {work} to start over")
    if not prompts:
        raise StageError("there are no such prompts")
    return prompts


def _check_lengths(config: Config, sources: Sequence[Source], prompts: Sequence[dict[str, Any]]) -> None:
    """Raise StageError for a prompt that a model cannot answer, before any is answered: the last one as well as the first."""
    if config.on_too_long == "raise":
        for source in sources:
            if source.folder is not None:
                encoder = PromptEncoder(config, source)
                for prompt in prompts:
                    encoder.encode(Ask(prompt, 0))


# ---- sampling -------------------------------------------------------------------------------------------------------


def deal(k: int, models: int) -> list[int]:
    """How many of the K responses each model writes; the first ones take the remainder."""
    return [k // models + (index < k % models) for index in range(models)]


def _sample_all(
    config: Config,
    work: Path,
    sources: Sequence[Source],
    prompts: Sequence[dict[str, Any]],
    server: OpenAIServer | None,
    judge: Source | None,
) -> list[Path]:
    """Every part file in order, each written once and whole; what a killed run finished is not sampled again."""
    parts: list[Path] = []
    with tqdm(total=len(prompts) * config.k, unit="response", desc="sample", disable=None) as bar:
        for index, (source, count) in enumerate(zip(sources, deal(config.k, len(sources)), strict=True)):
            asks = [Ask(prompt, number) for prompt in prompts for number in range(count)]
            writer: Writer | None = None
            for number, start in enumerate(range(0, len(asks), config.batch)):
                batch = asks[start : start + config.batch]
                part = work / f"part-{index:03d}-{number:06d}.jsonl"
                if not part.exists():
                    writer = writer or _writer(config, source, server, judge)
                    rows = _rows(config, source, batch, writer.write(batch, number), judge)
                    write_atomically(part, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
                parts.append(part)
                bar.update(len(batch))
    return parts


def _writer(config: Config, source: Source, server: OpenAIServer | None, judge: Source | None) -> Writer:
    writer: Writer = ServerWriter(config, server) if server else FolderWriter(config, source)
    if judge is None:
        return writer
    from training.best_of import BestOfWriter  # torch takes seconds to load

    return BestOfWriter(config, writer, judge)


def _rows(
    config: Config,
    source: Source,
    asks: Sequence[Ask],
    answers: Sequence[Answer | None],
    judge: Source | None = None,
) -> Iterator[dict[str, Any]]:
    """A row per answer; asks without one (prompt too long, to be dropped) give none."""
    for ask, answer in zip(asks, answers, strict=True):
        if answer is None:
            continue
        sampling: dict[str, Any] = {
            "temperature": config.temperature,
            "max_new_tokens": config.max_new_tokens,
            "seed": config.seed,
            "number": ask.number,
        }
        decisive: list[Any] = [source.identity, prompt_hash(ask.prompt), dict(sampling)]
        if judge:
            sampling |= {"best_of": config.best_of, "reward_model": judge.name, "reward": answer.reward}
            decisive.append({"best_of": config.best_of, "reward_model": judge.identity})
        text = answer.text.replace("\x00", SHOWN_NUL)
        if text != answer.text:
            sampling["replaced_nul"] = answer.text.count("\x00")
        yield {
            **{name: ask.prompt[name] for name in ("prompt_id", "external_id") if name in ask.prompt},
            "messages": ask.prompt["messages"],
            "model": source.name,
            "response": text,
            "response_external_id": digest(decisive)[:32],
            "finish_reason": answer.finish_reason,
            "sampling": sampling,
            **({"tokens": answer.tokens._asdict()} if answer.tokens else {}),
        }


def _finish(config: Config, out: Path, parts: Sequence[Path], prompt_count: int, inputs: dict[str, Any]) -> None:
    """Put the parts together, report first: an `out` without its report would look like another run's."""
    reasons, texts, checksum, with_nul = Counter[str](), set[str](), hashlib.sha256(), 0
    joined = out.with_name(out.name + ".run") / "joined.jsonl"
    with joined.open("wb") as file:
        for part in parts:
            data = part.read_bytes()
            file.write(data)
            checksum.update(data)
            for row in read_rows(part):
                reasons[row["finish_reason"] or "unknown"] += 1
                texts.add(digest(row["response"]))
                with_nul += "replaced_nul" in row["sampling"]
        file.flush()
        os.fsync(file.fileno())
    dropped = prompt_count * config.k - reasons.total()
    counts = {"prompts": prompt_count, "responses": reasons.total(), "dropped_too_long": dropped}
    report = {
        "config": _shaping(config),
        "inputs": inputs,
        "sha256": checksum.hexdigest(),
        "counts": counts | {"distinct_responses": len(texts), "with_replaced_nul": with_nul},
        "finish_reasons": dict(sorted(reasons.items())),
    }
    write_atomically(_report_path(out), msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    joined.replace(out)
    if dropped:
        print(f"{dropped} of {prompt_count * config.k} responses not sampled: prompts too long", file=sys.stderr)
