"""Exports through the actions, the command and the job: what goes in, what stays out, and that nothing is ever half there."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connection

from labeling import jobs
from labeling.actions import exports, imports, reviews
from labeling.errors import Invalid
from labeling.models import Export, LabelSchema, Prompt, Response, Submission, Task
from tests.labeling.rows import make_demonstration_batch, make_ranking_batch, response_ids, revise, submit
from training import contract
from training.contract import ContractError, Flags, read_export

pytestmark = pytest.mark.django_db
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def export_dir(settings, tmp_path):
    settings.EXPORT_DIR = tmp_path / "exports"
    return settings.EXPORT_DIR


def build(**query):
    """An export of this query, read back and checked."""
    return read_export(exports.build(query=query, by=None).folder)


def decide(submission: Submission, verdict: str, by, comment: str = "") -> None:
    newest = submission.reviews.order_by("-id").first()
    reviews.review(
        submission=submission,
        revision=submission.revision_count,
        verdict=verdict,
        comment=comment,
        seen_review=newest.pk if newest else 0,
        by=by,
    )
    submission.refresh_from_db()


# ---- what is in it --------------------------------------------------------------------------------------------------


def test_a_ranking_arrives_whole(labeler, reviewer):
    task = make_ranking_batch("ranks", k=3).tasks.get()
    a, b, c = response_ids(task)
    ratings = {a: {"quality": 7, "flags": {"hallucination": False, "opinion": True}}, b: {"quality": None}}
    submission = submit(
        task, labeler, tiers=[[b], [c, a]], ratings=ratings, prompt_flags={"ambiguous": True}, comment="Hm"
    )
    decide(submission, "accepted", reviewer, "Fine")
    (row,) = build().rankings()
    (ranking,) = row.rankings
    assert (row.task_id, row.batch, row.labeler_group) == (str(task.uuid), "ranks", "training")
    assert [r.response_id for r in row.responses] == sorted([a, b, c])
    assert {r.model for r in row.responses} == {"m0", "m1", "m2"}
    assert ranking.tiers == [[b], [c, a]]
    assert ranking.shown_order == submission.shown_order
    assert (ranking.review, ranking.comment, ranking.origin, ranking.is_surplus) == ("accepted", "Hm", "person", False)
    by_id = {rating.response_id: rating for rating in ranking.ratings}
    assert (by_id[a].quality, by_id[b].quality, by_id[c].quality) == (7, None, None)
    schema = LabelSchema.latest()
    asked = [flag["name"] for flag in schema.response_flags]
    assert by_id[c].flags == Flags(yes=[], no=[], unanswered=asked)
    rest = [name for name in asked if name not in ("opinion", "hallucination")]
    assert by_id[a].flags == Flags(yes=["opinion"], no=["hallucination"], unanswered=rest)
    assert ranking.prompt_flags.yes == ["ambiguous"] and "sensitive" in ranking.prompt_flags.unanswered
    assert [(r.verdict, r.comment) for r in ranking.reviews] == [("accepted", "Fine")]


def test_a_returned_demonstration_arrives_corrected_with_its_history(labeler, reviewer):
    task = make_demonstration_batch(prompts=1).tasks.get()
    submission = submit(task, labeler, text="Frist.")
    decide(submission, "returned", reviewer, "Spelling")
    assert list(build().demonstrations()) == []
    revise(submission, text="First.")
    decide(submission, "accepted", reviewer)
    (row,) = build().demonstrations()
    assert (row.response, row.revision, row.review) == ("First.", 2, "accepted")
    assert [(r.revision, r.response) for r in row.earlier_revisions] == [(1, "Frist.")]
    assert [(r.revision, r.verdict, r.comment) for r in row.reviews] == [
        (1, "returned", "Spelling"),
        (2, "accepted", ""),
    ]
    assert row.reviews[0].reviewer == row.reviews[1].reviewer != row.labeler


def test_held_out_labels_stand_apart(labeler, labeler2, heldout_labeler):
    task = make_ranking_batch(overlap=3).tasks.get()
    for person in (labeler, heldout_labeler, labeler2):
        submit(task, person)
    rows = list(build().rankings())
    assert [(row.labeler_group, len(row.rankings)) for row in rows] == [("held_out", 1), ("training", 2)]
    assert rows[0].task_id == rows[1].task_id
    assert exports.count_labels(query={}) == {"demonstrations": 0, "rankings": 2, "held_out": 1}
    assert [row.labeler_group for row in build(groups=["training"]).rankings()] == ["training"]


def test_what_stays_out_unless_named(labeler, labeler2, heldout_labeler, reviewer, make_user):
    batch = make_demonstration_batch(prompts=6)
    tasks = list(batch.tasks.order_by("id"))
    accepted, returned, rejected, _plain, simulated = (
        submit(task, labeler, text=f"T{i}") for i, task in enumerate(tasks[:5])
    )
    decide(accepted, "accepted", reviewer)
    decide(returned, "returned", reviewer, "Again")
    decide(rejected, "rejected", reviewer)
    submit(tasks[3], labeler2, text="late", is_surplus=True)
    Submission.objects.filter(pk=simulated.pk).update(origin="simulated")
    imports.import_rows(kind="prompts", rows=[{"prompt": "Known?", "demonstration": "imported"}], by=None)

    def texts(**query) -> set[str]:
        found = {row.response for row in build(**query).demonstrations()}
        assert exports.count_labels(query=query) == {"demonstrations": len(found), "rankings": 0, "held_out": 0}
        return found

    assert texts() == {"T0", "T3", "imported"}
    assert texts(review=["accepted"]) == {"T0", "imported"}
    assert texts(review=["accepted", "rejected", "returned", "unreviewed"]) == {"T0", "T1", "T2", "T3", "imported"}
    assert texts(surplus=True) == {"T0", "T3", "late", "imported"}
    assert texts(origins=["person"]) == {"T0", "T3"}
    assert texts(origins=["simulated"]) == {"T4"}
    assert texts(origins=["import"]) == {"imported"}
    assert texts(batches=[batch.name]) == {"T0", "T3"}
    assert texts(groups=["held_out"]) == set()
    imported = next(row for row in build().demonstrations() if row.response == "imported")
    assert (imported.origin, imported.labeler, imported.labeler_group) == ("import", None, "training")


def test_labels_are_chosen_by_day_schema_and_agreement(labeler, labeler2):
    both, once = make_ranking_batch(prompts=2, overlap=2).tasks.order_by("id")
    first = submit(both, labeler)
    submit(both, labeler2)
    lone = submit(once, labeler)
    demo = submit(make_demonstration_batch(prompts=1).tasks.get(), labeler, text="Mine.")
    imports.import_rows(kind="prompts", rows=[{"prompt": "Known?", "demonstration": "imported"}], by=None)
    Response.objects.filter(origin="person").update(created_at="2026-01-01T23:59:59Z")
    Submission.objects.filter(pk__in=[lone.pk, demo.pk]).update(submitted_at="2026-01-02T00:00:00Z")
    Task.objects.filter(pk=both.pk).update(disagreement=0.25)

    def chosen(**query) -> tuple[list[int], set[str]]:
        export = build(**query)
        return [len(r.rankings) for r in export.rankings()], {row.response for row in export.demonstrations()}

    assert sorted(chosen()[0]) == [1, 2]
    assert chosen(until="2026-01-01") == ([], {"imported"})
    assert chosen(since="2026-01-02", until="2026-01-02") == ([1], {"Mine."})
    assert chosen(since="2026-01-03") == ([2], set())
    assert chosen(min_agreement=0.75)[0] == [2]
    assert chosen(min_agreement=0.76)[0] == []
    assert chosen(schemas=[first.schema.version])[1] == {"Mine."}
    assert Export.objects.filter(query__min_agreement=0.76).exists()
    assert (
        Export.objects.order_by("id")[0]
        .query.keys()
        .isdisjoint({"since", "until", "schemas", "min_agreement", "pairs"})
    )
    card = (Export.objects.get(query=exports.Selection().as_query()).folder / "README.md").read_text()
    assert "say the same of 100.0 % of 6 comparisons" in card
    assert "1 tasks that two or more" in card


def test_pairs_stand_beside_the_rankings_they_are_made_of(labeler, heldout_labeler, capsys):
    task = make_ranking_batch(overlap=2).tasks.get()
    a, b, c, d = response_ids(task)
    ranking = submit(task, labeler, tiers=[[b], [a, c], [d]])
    submit(task, heldout_labeler)
    call_command("build_export", "--pairs")
    assert "6 pairs_held_out" in capsys.readouterr().out
    export = read_export(Export.objects.get().folder)
    split = task.prompt.split
    pairs = list(export.pairs(split))
    assert {(p.chosen_id, p.rejected_id) for p in pairs} == {(b, a), (b, c), (b, d), (a, d), (c, d)}
    assert {p.ranking_id for p in pairs} == {str(ranking.uuid)}
    assert len(list(export.pairs("held_out"))) == 6
    assert export.manifest.counts[f"pairs_{split}"] == 5
    assert all(list(export.pairs(other)) == [] for other in {"train", "valid", "test"} - {split})
    path = export.path / f"pairs_{split}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ContractError, match=path.name):
        read_export(export.path)
    with pytest.raises(ContractError, match="without pairs"):
        build().pairs("train")


def test_prompts_are_there_labeled_or_not_by_split_and_use_case():
    rows = [
        {"prompt": f"P{n}", "split": split, "use_case": case, "metadata": {"b": 1.0, "a": "ü"}}
        for n, (split, case) in enumerate([("train", "chat"), ("train", ""), ("test", "chat")])
    ]
    imports.import_rows(kind="prompts", rows=rows, by=None)
    assert len(list(build().prompts())) == 3
    assert [p.messages[0].content for p in build(splits=["test"]).prompts()] == ["P2"]
    assert {p.messages[0].content for p in build(use_cases=["chat"]).prompts()} == {"P0", "P2"}
    assert {p.use_case for p in build(splits=["train"]).prompts()} == {"chat", None}
    assert {p.metadata for p in build().prompts()} == {'{"a":"ü","b":1.0}'}


def test_people_are_pseudonyms_that_never_change(labeler, reviewer, export_dir):
    rows = [{"prompt": f"By Ann {n}", "author": "ann@example.org", "organization": "Acme Inc"} for n in range(2)]
    imports.import_rows(kind="prompts", rows=rows, by=None)
    task = make_demonstration_batch(prompts=2).tasks.order_by("id")[0]
    decide(submit(task, labeler, text="One"), "accepted", reviewer)
    first = build()
    submit(Task.objects.order_by("-id")[0], labeler, text="Two")
    second = build()
    (known,) = first.demonstrations()
    assert {row.labeler for row in second.demonstrations()} == {known.labeler}
    assert {(p.author, p.organization) for p in first.prompts()} == {
        (p.author, p.organization) for p in second.prompts()
    }
    everything = b"".join(path.read_bytes() for path in export_dir.rglob("*") if path.is_file())
    for secret in (b"example.org", labeler.name.encode(), b"Acme"):
        assert secret not in everything


# ---- one export for one state of the data -------------------------------------------------------------------------------


def test_the_same_selection_of_the_same_data_is_the_same_export(labeler, export_dir, capsys):
    task = make_ranking_batch().tasks.get()
    submission = submit(task, labeler)
    first = exports.build(query={}, by=labeler)
    before = {path: path.read_bytes() for path in export_dir.rglob("*") if path.is_file()}
    assert exports.build(query={"origins": ["person", "import"]}, by=None) == first
    call_command("build_export")
    assert "v0001" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in export_dir.rglob("*") if path.is_file()} == before
    assert [e.status for e in Export.objects.order_by("id")] == ["ready", "same", "same"]

    other_query = exports.build(query={"groups": ["training"]}, by=None)
    assert (other_query.name, other_query.data_sha256) == ("v0002", first.data_sha256)
    revise(submission, tiers=[response_ids(task)])
    changed = exports.build(query={}, by=None)
    assert changed.name == "v0003"
    assert changed.data_sha256 != first.data_sha256
    assert changed.counts["rankings"] == 1
    assert changed.manifest["data_sha256"] == changed.data_sha256
    assert read_export(first.folder).manifest.name == "v0001"


@pytest.mark.parametrize("harm", ["gone", "flipped", "left out"])
def test_a_harmed_export_is_put_back_byte_for_byte(labeler, export_dir, harm):
    submit(make_ranking_batch().tasks.get(), labeler)
    first = exports.build(query={}, by=None)
    before = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    if harm == "gone":
        first.folder.rename(export_dir / "elsewhere")
    elif harm == "flipped":
        data = bytearray(before["rankings.jsonl"])
        data[500] ^= 1
        (first.folder / "rankings.jsonl").write_bytes(data)
    else:
        (first.folder / "README.md").unlink()
    assert exports.build(query={}, by=None) == first
    assert {path.name: path.read_bytes() for path in read_export(first.folder).path.iterdir()} == before
    assert len(list(export_dir.glob("damaged-v0001-*"))) == (harm != "gone")


def test_the_same_data_has_the_same_bytes_however_it_lies_in_the_tables(labeler, export_dir):
    """Rows rewritten in another physical order, JSON keys in another order: nothing of that is in the files."""
    batch = make_ranking_batch(prompts=5, overlap=2)
    for task in batch.tasks.order_by("-id"):
        ids = response_ids(task)
        submit(
            task, labeler, tiers=[ids], ratings={i: {"quality": 3, "flags": {"opinion": True}} for i in reversed(ids)}
        )
    first = exports.build(query={}, by=None)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE labeling_submission SET updated_at = now() WHERE id % 2 = 0")
        cursor.execute("UPDATE labeling_prompt SET use_case = use_case WHERE id % 2 = 1")
        cursor.execute(
            "SET LOCAL enable_indexscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL timezone = 'Asia/Tokyo'"
        )
    assert exports.build(query={}, by=None) == first


def test_a_wrong_query_is_refused(capsys):
    for query, message in [
        ({"splits": ["all"]}, "query.splits: unknown 'all'; expected test, train, valid"),
        ({"origins": "person"}, "query.origins: expected a list"),
        ({"surplus": 1}, "query.surplus: expected true or false"),
        ({"batches": ["none"]}, "query.batches: there is no batch named 'none'"),
        ({"colour": []}, "query.colour: unknown"),
        ({"use_cases": ["\0"]}, "query.use_cases: expected a list"),
        ({"since": "2026-1-1"}, "query.since: expected a day"),
        ({"since": "2026-02-01", "until": "2026-01-31"}, "query.until: is before since"),
        ({"until": 5}, "query.until: expected a day"),
        ({"schemas": ["1"]}, "query.schemas: expected a list of version numbers"),
        ({"schemas": [999]}, "query.schemas: there is no label schema 999"),
        ({"min_agreement": True}, "query.min_agreement: expected a number from 0 to 1"),
        ({"min_agreement": 1.5}, "query.min_agreement: expected a number from 0 to 1"),
    ]:
        with pytest.raises(Invalid, match=message):
            exports.build(query=query, by=None)
    with pytest.raises(CommandError, match="no batch named 'none'"):
        call_command("build_export", "--batch", "none")
    assert not Export.objects.exists()


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_data_that_breaks_the_contract_fails_with_its_place(labeler, export_dir):
    task = make_ranking_batch().tasks.get()
    submit(task, labeler, ratings={response_ids(task)[0]: {"quality": 9}})
    with pytest.raises(ContractError, match=r"rankings\.jsonl line 1: field rankings\[0\]\.ratings"):
        exports.build(query={}, by=None)
    export = Export.objects.get()
    assert export.status == "failed"
    assert "rankings.jsonl line 1" in export.error
    assert list(export_dir.iterdir()) == []


def test_killed_before_the_folder_was_moved_it_begins_anew(labeler, export_dir, monkeypatch):
    submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    ordered = exports.request(query={}, by=labeler)
    leftover = export_dir / ".building-999"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")

    def die(*_arguments, **_options):
        raise SystemExit

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(SystemExit):
        exports.finish(export=ordered)
    ordered.refresh_from_db()
    assert ordered.status == "building"
    assert list(export_dir.iterdir()) == []
    monkeypatch.undo()
    assert exports.finish(export=ordered).name == "v0001"


def test_killed_after_the_folder_was_moved_it_is_set_aside(labeler, export_dir, monkeypatch, settings):
    submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)
    ordered = exports.request(query={}, by=labeler)

    def die(*_arguments, **_options):
        raise SystemExit

    monkeypatch.setattr(Export, "save", die)
    with pytest.raises(SystemExit):
        exports.finish(export=ordered)
    monkeypatch.undo()
    settings.EXPORT_DIR = export_dir
    assert (export_dir / "v0001").exists()
    finished = exports.finish(export=Export.objects.get())
    assert (finished.name, finished.status) == ("v0001", "ready")
    assert read_export(finished.folder).manifest.data_sha256 == finished.data_sha256
    assert sorted(path.name.split("-")[0] for path in export_dir.iterdir()) == ["unannounced", "v0001"]
    assert exports.finish(export=finished).name == "v0001"


def test_an_order_is_one_while_it_is_being_built(labeler):
    first = exports.request(query={}, by=labeler)
    assert exports.request(query={"surplus": False}, by=None) == first
    assert exports.request(query={"surplus": True}, by=None) != first
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'build_export'")
        assert cursor.fetchone() == (2,)
    jobs.build_export(export_id=first.pk)
    jobs.build_export(export_id=first.pk)
    first.refresh_from_db()
    assert (first.status, first.name) == ("ready", "v0001")


@pytest.mark.django_db(transaction=True)
def test_builds_at_the_same_time_make_one_export(labeler, export_dir):
    submit(make_demonstration_batch(prompts=1).tasks.get(), labeler)

    def run(_number: int) -> str:
        try:
            return exports.build(query={}, by=None).name
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(run, range(4))) == {"v0001"}
    assert sorted(Export.objects.values_list("status", flat=True)) == ["ready", "same", "same", "same"]
    assert [path.name for path in export_dir.iterdir()] == ["v0001"]


def test_counts_stand_in_one_order_wherever_they_are_shown(labeler, capsys):
    submit(make_ranking_batch().tasks.get(), labeler)
    for _built_then_found in range(2):
        call_command("build_export")
        assert "(1 prompts, 0 demonstrations, 1 rankings" in capsys.readouterr().out
    export = Export.objects.get(status="ready")  # jsonb keeps no order
    assert list(export.counts_in_order)[:3] == ["prompts", "demonstrations", "rankings"]
    assert export.counts_in_order == export.counts
    assert list(export.counts_in_order)[:3] == list(read_export(export.folder).manifest.counts)[:3]


def test_a_damaged_export_from_before_the_manifests_checksum_is_mended(labeler, monkeypatch):
    hashed = contract.hash_fields
    monkeypatch.setattr(contract, "hash_fields", lambda manifest: msgspec.UNSET)  # as it was written then
    export = exports.build(query={}, by=None)
    assert "fields_sha256" not in export.manifest
    monkeypatch.setattr(contract, "hash_fields", hashed)
    (export.folder / "prompts.jsonl").unlink()
    assert exports.build(query={}, by=None) == export
    assert read_export(export.folder).manifest.name == export.name


def test_an_export_cannot_be_changed_afterwards(labeler):
    from django.db import IntegrityError, transaction

    export = exports.build(query={}, by=None)
    for change in ({"counts": {}}, {"data_sha256": "0" * 64}, {"number": 9}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Export.objects.filter(pk=export.pk).update(**change)
    manifest = json.loads((export.folder / "manifest.json").read_bytes())
    assert manifest == export.manifest


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_killed_command_leaves_no_export_and_the_next_makes_it(environment, tmp_path):
    rows = [{"prompt": f"Prompt {n} " + "x" * 500, "demonstration": "Yes."} for n in range(3000)]
    imports.import_rows(kind="prompts", rows=rows, by=None)
    Prompt.objects.update(intake="open")
    environment = environment | {"HEED_VAR": str(tmp_path)}
    settings = "import os, tests.settings, sys; from pathlib import Path; tests.settings.EXPORT_DIR = Path(sys.argv[1])"
    program = f"{settings}; from django.core.management import execute_from_command_line as e; e(['x', 'build_export'])"
    command = [sys.executable, "-c", program, str(tmp_path / "exports")]
    root = tmp_path / "exports"
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 60
    while not list(root.glob(".building-*/.building-*/prompts.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert [path.name for path in root.iterdir() if path.name.startswith("v")] == []
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in root.iterdir()] == ["v0001"]
    assert read_export(root / "v0001").manifest.counts["demonstrations"] == 3000
    assert sorted(Export.objects.values_list("status", flat=True)) == ["building", "ready"]
    Export.objects.filter(status="building").update(created_at="2026-01-01T00:00:00Z")
    jobs.resume_exports()
    with connection.cursor() as cursor:
        cursor.execute("SELECT args FROM procrastinate_jobs WHERE task_name = 'build_export'")
        ((ordered,),) = cursor.fetchall()
    assert json.loads(ordered) == {"export_id": Export.objects.get(status="building").pk}
