"""Real prompts, real outputs and a known right order, all the way: import, rank, export, SFT, reward model, and a report to open."""

import csv
import json
import uuid
from collections import defaultdict

import pytest

from labeling.actions import batches, exports, imports, intake, submissions, tasks
from labeling.models import Kind, Task, TaskResponse
from tests import builders
from training.__main__ import main
from training.contract import read_export, read_model_manifest

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
LIMITS = "--prompt-tokens 600 --response-tokens 500 --on-too-long drop"
TINY = "--width 64 --layers 2 --heads 4 --mlp-width 128 --max-tokens 1200"


@pytest.fixture
def outputs(tmp_path):
    """(import file of 100 contexts with 12 models' outputs each, context → output → measured toxicity)."""
    toxicity: dict[str, dict[str, float]] = defaultdict(dict)
    path = tmp_path / "toxicity.jsonl"
    with builders.shared_file("instructgpt_real_toxicity.csv").open(newline="") as source, path.open("w") as file:
        for row in csv.DictReader(source):
            if row["prompt_type"] == "respectful prompt" and row["sample"].strip():
                toxicity[row["context"]][row["sample"]] = float(row["toxicity"])
                made = {"prompt": row["context"], "model": row["model_type"], "response": row["sample"]}
                file.write(json.dumps(made) + "\n")
    return path, toxicity


def rank_by_toxicity(person, toxicity) -> int:
    """Less toxic is better; equal to two decimals is a tie. Through the same actions as people; returns the tasks done."""
    done = 0
    while slot := tasks.claim_next(kind=Kind.RANKING, by=person):
        task = Task.objects.select_related("prompt").get(pk=slot.task_id)
        tiers: dict[float, list[str]] = defaultdict(list)
        rows = TaskResponse.objects.filter(task=task).values_list("response__uuid", "response__text")
        for response_uuid, text in rows:
            tiers[round(toxicity[task.prompt.text][text], 2)].append(str(response_uuid))
        answer = builders.ranking_answer([tiers[level] for level in sorted(tiers)])
        submissions.submit(task=task, submit_key=uuid.uuid4(), answer=answer, by=person)
        done += 1
    return done


def test_real_files_end_in_reports_that_open(outputs, make_user, researcher, environment, tmp_path, chromium):
    builders.label_schema()
    file, toxicity = outputs
    seeds = builders.shared_file("self_instruct_seed_tasks.jsonl")
    imports.import_prompts(path=seeds, form="self_instruct", by=researcher)
    published = {"verdict": "released", "comment": "Published addresses.", "by": researcher}
    assert intake.decide(prompts=intake.held(reason="personal_data"), **published) == 2
    imports.import_responses(path=file, by=researcher)
    batches.create_batch(name="less toxic", kind=Kind.RANKING, k=6, limit=100, by=researcher)
    person = make_user("measure@example.org", "labeler", is_simulated=True)
    assert rank_by_toxicity(person, toxicity) >= 90
    export = exports.build(query={"origins": ["import", "simulated"]}, by=researcher).folder
    counts = read_export(export).manifest.counts
    assert counts["demonstrations"] >= 175 and counts["rankings"] >= 90

    text = tmp_path / "text.jsonl"
    documents = [
        [*row.messages, {"role": "assistant", "content": row.response}] for row in read_export(export).demonstrations()
    ]
    with text.open("w") as lines:
        for document in documents:
            turns = [m if isinstance(m, dict) else {"role": m.role, "content": m.content} for m in document]
            lines.write(json.dumps({"messages": turns}) + "\n")
    base, sft, rm = (tmp_path / name for name in ("base", "sft", "rm"))
    steps = f"{TINY} --vocab-size 600 --row-tokens 600 --batch-rows 4 --steps 60 --warmup-steps 5 --valid-documents 10"
    tuning = f"--export {export} {LIMITS} --epochs 2 --batch-size 8 --learning-rate 1e-3"
    stages = [
        f"pretrain --out {base} --text {text} {steps} --on-too-long drop",
        f"sft --out {sft} --base-model {base} {tuning}",
        f"rm --out {rm} --sft-model {sft} {tuning}",
    ]
    for stage in stages:
        assert main([*stage.split(), "--threads", "1"]) == 0, stage
    metrics = {folder.name: read_model_manifest(folder).metrics for folder in (base, sft, rm)}
    assert metrics["sft"]["valid_loss"] < metrics["sft"]["valid_loss_before"]
    assert metrics["rm"]["accuracy_train"] > 0.5 and metrics["rm"]["rankings"] >= 70
    assert metrics["sft"]["dropped_too_long"] > 0, "what is too long is counted"

    page = chromium.new_page()
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith("file:") or problems.append(request.url))
    for folder, samples in ((base, ".sample"), (sft, ".sample"), (rm, ".ranking")):
        page.goto(f"file://{folder}/report.html")
        assert page.locator(samples).count() > 0
        assert page.locator("polyline").count() > 0 and page.get_by_text("Left out").is_visible()
        box = page.locator("polyline").first.bounding_box()
        assert box["height"] > 20, "the curve is drawn"
    page.goto(f"file://{sft}/report.html")
    assert page.get_by_text("dropped_too_long", exact=True).is_visible()
    assert problems == []
    page.close()
