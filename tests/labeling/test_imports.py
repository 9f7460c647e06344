"""Imports through the commands, on the real files and on broken ones: all or nothing, repeatable, errors with their place."""

import gzip
import json
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import OperationalError, connection, transaction
from psycopg.errors import DeadlockDetected

from labeling.actions import import_direct, import_rows, import_store, imports
from labeling.actions.import_files import Columns
from labeling.errors import Conflict, Invalid
from labeling.models import Author, Import, ModelVersion, Prompt, Response

pytestmark = pytest.mark.django_db
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
TLDR_MAP = ["--map", "prompt=context", "--map", "model=model_type", "--map", "response=sample"]


def real_file(name: str) -> Path:
    """A file of ../shared/data; the test is skipped where it is absent, except in CI."""
    path = DATA / name
    if not path.exists() and os.environ.get("CI") != "true":
        pytest.skip(f"{path} is absent")
    return path


def counts() -> dict[str, int]:
    """How many rows there are of everything that an import may touch."""
    return {model.__name__: model.objects.count() for model in (Author, Import, ModelVersion, Prompt, Response)}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def refused(command: str, *arguments) -> str:
    """The message of a command that refuses, after checking that it changed nothing."""
    before = counts()
    with pytest.raises(CommandError) as error:
        call_command(command, *map(str, arguments))
    assert counts() == before
    return str(error.value)


# ---- the real files -------------------------------------------------------------------------------------------------


def test_the_tldr_file_goes_in_and_repeats_without_duplicates(capsys):
    path = real_file("instructgpt_tldr.csv")
    call_command("import_responses", str(path), *TLDR_MAP, "--map", "demonstration=ref_text")
    after = counts()
    assert after == {"Author": 0, "Import": 1, "ModelVersion": 12, "Prompt": 100, "Response": 1300}
    assert Response.objects.filter(origin="person").count() == 100
    prompt = Prompt.objects.get(messages__0__content__startswith="OK, probably time to mention this.")
    assert prompt.responses.filter(origin="model").values("model_version").distinct().count() == 12
    assert prompt.text.endswith("\n\nTL;DR:")
    assert {model.stage for model in ModelVersion.objects.all()} == {"external"}
    call_command("import_responses", str(path), *TLDR_MAP, "--map", "demonstration=ref_text")
    assert counts() == after | {"Import": 2}
    assert Import.objects.latest("id").counts["responses_new"] == 0


def test_the_self_instruct_file_goes_in():
    path = real_file("self_instruct_seed_tasks.jsonl")
    for _ in range(2):
        call_command("import_prompts", str(path), "--format", "self_instruct")
        assert (Prompt.objects.count(), Response.objects.filter(origin="person").count()) == (175, 175)
    task = Prompt.objects.get(external_id="seed_task_1")
    assert task.text == "What is the relation between the given pairs?\n\nNight : Day :: Right : Left"
    assert task.responses.get().text == "The relation between the given pairs is that they are opposites."
    assert task.metadata == {"name": "antonym_relation"}


def test_a_self_instruct_file_is_known_by_its_shape(tmp_path):
    row = {"id": "s1", "instruction": "Name a fruit.", "instances": [{"input": "", "output": "Fig."}], "name": "fruit"}
    path = write(tmp_path / "tasks.jsonl", [row, row | {"is_classification": True}])
    for command in ("import_prompts", "import_responses"):
        message = refused(command, path)
        assert "tasks.jsonl line 1: field instances: these are Self-Instruct tasks" in message
        assert "--format self_instruct" in message
        assert "unknown column" not in message
    with pytest.raises(Invalid, match=r"rows\[0\]: field instances: these are Self-Instruct tasks"):
        imports.import_rows(kind="prompts", rows=[row], by=None)
    call_command("import_prompts", str(path), "--format", "self_instruct")


def test_the_self_instruct_file_goes_in_by_dotted_paths_too():
    path = real_file("self_instruct_seed_tasks.jsonl")
    template = "prompt={instruction}\n\n{instances.0.input}"
    columns = ["--template", template, "--map", "demonstration=instances.0.output", "--map", "external_id=id"]
    call_command("import_prompts", str(path), *columns)
    assert Prompt.objects.get(external_id="seed_task_0").text.endswith("700-1000 calories?")
    assert Prompt.objects.count() == 175


def test_pairs_go_in_as_prompts_with_both_answers(tmp_path):
    talk = "\n\nHuman: Name a fruit.\n\nAssistant: Fig.\n\nHuman: Another?\n\nAssistant:"
    rows = [
        {"chosen": f"{talk} Plum.", "rejected": f"{talk} No."},
        {"chosen": f"{talk} Pear.", "rejected": f"{talk} No."},  # the same answer again is the same response
        {"chosen": f"{talk} Plum.", "rejected": "\n\nHuman: Else?\n\nAssistant: No."},
        {"chosen": f"{talk} Plum.", "rejected": talk},
        {"prompt": "Why?", "chosen": "So.", "rejected": "Eh."},
        {"chosen": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}],
         "rejected": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
    ]  # fmt: skip
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "train.jsonl", rows).read_bytes()))
    message = refused("import_responses", packed)
    assert "field chosen: these are pairs" in message
    assert "(columns found: chosen, rejected)" in message
    for made in (6, 0):
        call_command("import_responses", str(packed), "--format", "hh-rlhf")
        counts = Import.objects.latest("id").counts
        assert (counts["responses_new"], counts["prompts_new"]) == (7 * bool(made), 3 * bool(made))
        assert counts["left_out_pairs_without_a_common_prompt"] == counts["left_out_pairs_with_an_empty_turn"] == 1
    prompt = Prompt.objects.get(messages__0__content="Name a fruit.")
    assert [m["content"] for m in prompt.messages] == ["Name a fruit.", "Fig.", "Another?"]
    assert sorted(prompt.responses.values_list("text", "model_version__name")) == [
        ("No.", "hh-rlhf"), ("Pear.", "hh-rlhf"), ("Plum.", "hh-rlhf"),
    ]  # fmt: skip
    assert {r.text for r in Prompt.objects.get(messages__0__content="Why?").responses.all()} == {"So.", "Eh."}


TREE = {
    "message_tree_id": "t1", "tree_state": "ready_for_export",
    "prompt": {"message_id": "t1", "user_id": "u1", "lang": "en", "role": "prompter", "text": "Why?", "replies": [
        {"message_id": "a", "role": "assistant", "text": "Worse.", "rank": 1, "replies": []},
        {"message_id": "b", "role": "assistant", "text": "Better.", "rank": 0, "replies": [
            {"message_id": "c", "role": "prompter", "text": "And?", "replies": []}]},
        {"message_id": "d", "role": "assistant", "text": "Gone.", "deleted": True, "replies": []},
    ]},
}  # fmt: skip


def messages_of(node: dict) -> list[dict]:
    """A tree's messages one by one, as Open-Assistant's data set lists them."""
    every = dict.fromkeys(("parent_id", "user_id", "lang", "rank", "deleted"))
    rows = [every | {name: value for name, value in node.items() if name != "replies"}]
    for reply in node["replies"]:
        rows += messages_of(reply | {"parent_id": node["message_id"]})
    return rows


def test_open_assistants_trees_go_in(tmp_path):
    path = write(tmp_path / "ready.trees.jsonl", [TREE])
    assert "field message_tree_id: these are Open-Assistant's trees" in refused("import_prompts", path)
    call_command("import_prompts", str(path), "--format", "oasst")
    first, second = Prompt.objects.order_by("id")
    assert (first.external_id, first.text, first.author.key, first.metadata) == (
        "t1",
        "Why?",
        "oasst:u1",
        {"lang": "en"},
    )
    assert [m["content"] for m in second.messages] == ["Why?", "Better.", "And?"]
    assert list(Response.objects.values_list("text", "origin")) == [("Better.", "person")]
    counted = Import.objects.get().counts
    assert (counted["left_out_replies_not_ranked_first"], counted["left_out_deleted_messages"]) == (1, 1)
    call_command("import_responses", str(path), "--format", "oasst")
    assert set(first.responses.filter(origin="model").values_list("text", "model_version__name", "external_id")) == {
        ("Worse.", "oasst", "a"), ("Better.", "oasst", "b"),
    }  # fmt: skip
    one_by_one = write_as("parquet", tmp_path / "messages", messages_of(TREE["prompt"]))
    assert "field message_id: these are Open-Assistant's messages" in refused("import_prompts", one_by_one)
    call_command("import_responses", str(one_by_one), "--format", "oasst")
    counts = Import.objects.latest("id").counts
    assert (counts["prompts_new"], counts["responses_present"], counts["left_out_deleted_messages"]) == (0, 2, 1)
    orphan = write(tmp_path / "orphan.jsonl", messages_of(TREE["prompt"])[1:])
    assert "line 1: field parent_id: message t1 is not among the rows before" in refused(
        "import_prompts", orphan, "--format", "oasst"
    )
    broken = write(tmp_path / "broken.jsonl", [{"message_tree_id": "t", "prompt": {"role": "bot", "text": "x"}}])
    assert "broken.jsonl line 1: field prompt: expected messages with a text, and a role" in refused(
        "import_prompts", broken, "--format", "oasst"
    )


def test_folders_of_datasets_go_in(tmp_path):
    pa_rows = [{"prompt": f"P{n}", "model": "m", "response": f"R{n}"} for n in range(5)]
    saved, published = tmp_path / "saved", tmp_path / "published"
    for split, rows in (("train", pa_rows[:3]), ("test", pa_rows[3:])):
        (saved / split).mkdir(parents=True)
        (saved / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
        for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):  # as save_to_disk and map leave them
            table = pa.Table.from_pylist(rows)
            with pa.OSFile(str(saved / split / name), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
                stream.write_table(table)
        (published / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), published / "data" / f"{split}-00000-of-00001.parquet")
    call_command("import_responses", str(saved))
    assert Import.objects.get().counts["responses_new"] == 5
    call_command("import_responses", str(published))
    assert Import.objects.latest("id").counts["responses_present"] == 5
    assert Import.objects.latest("id").file_name == "published"
    pq.write_table(pa.table({"prompt": ["x"], "odd": ["y"]}), published / "data" / "a.parquet")
    assert "published/data/a.parquet row 1: field odd: unknown column" in refused("import_prompts", published)
    (tmp_path / "empty").mkdir()
    assert "no data in this folder" in refused("import_prompts", tmp_path / "empty")
    (saved / "train" / "data-00000-of-00001.arrow").unlink()
    assert "data-00000-of-00001.arrow is not there" in refused("import_responses", saved)


# ---- formats and fields ---------------------------------------------------------------------------------------------

FULL = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue? ☀️"}],
    "kind": "few_shot", "use_case": "open_qa", "author": "ann", "organization": "acme", "external_id": "x1",
    "metadata": {"k": [1, None]}, "demonstration": "Scattering.",
}  # fmt: skip


def write_as(form: str, path: Path, rows: list[dict]) -> Path:
    if form == "jsonl":
        return write(path.with_suffix(".jsonl"), rows)
    if form == "parquet":
        path = path.with_suffix(".parquet")
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    import csv

    path = path.with_suffix(".csv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            cells = {k: json.dumps(v) if isinstance(v, list | dict) else v for k, v in row.items()}
            writer.writerow(cells)
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_each_format_stores_the_same_rows(tmp_path, form):
    rows = [FULL, FULL | {"messages": FULL["messages"][1:], "external_id": "x2"}]
    call_command("import_prompts", str(write_as(form, tmp_path / "rows", rows)))
    prompt = Prompt.objects.get(external_id="x1")
    assert prompt.messages == FULL["messages"]
    assert (prompt.kind, prompt.use_case, prompt.author.key, prompt.organization) == (
        "few_shot",
        "open_qa",
        "ann",
        "acme",
    )
    assert prompt.metadata == {"k": [1, None]}
    assert prompt.source == "import"
    assert prompt.split == prompt.author.split == Prompt.objects.get(external_id="x2").split
    assert [(r.text, r.origin, r.model_version) for r in prompt.responses.all()] == [("Scattering.", "person", None)]


def test_responses_come_singly_or_together_and_keep_how_they_were_made(tmp_path):
    rows = [
        {"prompt": "One?", "model": "a", "response": "1", "finish_reason": "stop", "sampling": {"temperature": 0.7}},
        {
            "prompt": "One?",
            "responses": [{"model": "a", "text": "2", "external_id": "r2"}, {"model": "b", "text": "1"}],
        },
    ]
    call_command("import_responses", str(write(tmp_path / "r.jsonl", rows)))
    assert Prompt.objects.count() == 1
    assert sorted(Response.objects.values_list("model_version__name", "text")) == [("a", "1"), ("a", "2"), ("b", "1")]
    first = Response.objects.get(finish_reason="stop")
    assert first.sampling == {"temperature": 0.7}
    assert Response.objects.filter(external_id="r2").exists()

    prompt = Prompt.objects.get()
    by_id = write(tmp_path / "by_id.jsonl", [{"prompt_id": str(prompt.uuid), "model": "c", "response": "3"}])
    call_command("import_responses", str(by_id))
    assert prompt.responses.count() == 4
    assert Prompt.objects.count() == 1


def test_equal_samples_of_one_model_stay_several_and_repeat_as_such(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": "One?", "model": "a", "response": "same"}] * 3)
    for _ in range(2):
        call_command("import_responses", str(path))
        assert Response.objects.count() == 3


def test_chunks_do_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(import_store, "SLICE_ROWS", 2)
    rows = [{"prompt": f"P{n % 3}", "author": f"a{n % 2}", "model": "m", "response": f"R{n}"} for n in range(9)]
    rows = [row | {"author": f"a{int(row['prompt'][1]) % 2}"} for row in rows]
    call_command("import_responses", str(write(tmp_path / "r.jsonl", rows)))
    assert (Prompt.objects.count(), Author.objects.count(), Response.objects.count()) == (3, 2, 9)
    assert Import.objects.get().counts == {
        "rows": 9, "authors_new": 2, "prompts_new": 3, "prompts_present": 0, "models_new": 1,
        "responses_new": 9, "responses_present": 0,
    }  # fmt: skip


def some_rows(rng: random.Random) -> list[dict]:
    """Rows of few prompts, models and texts, so that they meet each other in many ways; the later, the more of them do."""
    rows = []
    for number in range(rng.randint(1, 14)):
        prompt = f"new {number}" if rng.random() < 0.8 - 0.05 * number else f"P{rng.randint(0, 3)}"
        row = {"prompt": prompt, "responses": []}
        for _ in range(rng.randint(1, 4)):
            response = {"model": rng.choice("ab"), "text": rng.choice("xyz")}
            row["responses"].append(response | rng.choice([{}, {}, {"external_id": rng.choice("12")}]))
        row |= rng.choice([{}, {}, {}, {"demonstration": rng.choice([["d"], ["d", "d", "e"]])}])
        if rng.random() < 0.05 * number:
            row |= rng.choice([{"author": "A"}, {"split": "valid"}, {"external_id": rng.choice("12")}])
        rows.append(row)
    return rows


def stored() -> list:
    """All prompts and responses, in the order of their making, without what chance gave them."""
    prompts = Prompt.objects.order_by("id").values_list(
        "messages", "content_sha256", "kind", "source", "use_case", "organization", "split", "external_id", "metadata",
        "original", "author__key", "imported_in__counts",
    )  # fmt: skip
    responses = Response.objects.order_by("id").values_list(
        "prompt__content_sha256", "text", "text_sha256", "origin", "model_version__name", "sampling", "finish_reason",
        "external_id",
    )  # fmt: skip
    return [*prompts, *responses]


@pytest.mark.parametrize("seed", range(24))
def test_it_does_not_matter_how_many_rows_go_in_directly(tmp_path, monkeypatch, seed):
    rows, store, seen = some_rows(random.Random(seed)), imports.import_responses, []
    if seed % 2:
        rows, store = [{name: row[name] for name in row if name != "responses"} for row in rows], imports.import_prompts
    path = write(tmp_path / "r.jsonl", rows)
    for most in (0, 1, 2, 250):
        with transaction.atomic():
            if most:
                monkeypatch.setattr(import_direct, "MOST_ROWS", most)
            else:
                monkeypatch.setattr(import_direct, "_is_plain", lambda item: False)
            try:
                store(path=path, by=None)
                said = store(path=path, by=None).counts
                assert not any(count for name, count in said.items() if name.endswith("_new"))
            except Invalid as error:
                # How many more are told may differ: rows that are stored contradict later ones at once.
                said = error.errors[0]
            seen.append((said, stored()))
            transaction.set_rollback(True)
        monkeypatch.undo()
    assert seen[0][1] or "field" in seen[0][0]["place"]
    assert seen == [seen[0]] * 4


def test_what_most_files_hold_goes_in_directly_and_progress_never_goes_back(tmp_path, monkeypatch):
    plain = [
        {"prompt": f"{n} {'long ' * 30}", "responses": [{"model": "m", "text": "same"}] * 3, "demonstration": "d"}
        for n in range(6000)
    ]
    told = []
    with monkeypatch.context() as patch:
        patch.setattr(imports, "Staging", None)
        made = imports.import_responses(path=write(tmp_path / "p.jsonl", plain), progress=told.append, by=None)
    assert made.counts == {
        "rows": 6000, "prompts_new": 6000, "prompts_present": 0, "models_new": 1,
        "responses_new": 18000, "responses_present": 0, "demonstrations_new": 6000, "demonstrations_present": 0,
        "prompts_waiting": 6000,
    }  # fmt: skip
    assert Response.objects.filter(origin="model").values("external_id").distinct().count() == 3
    assert told == sorted(told) and told[-1] == 1 and told[0] == pytest.approx(1 / 6, rel=0.01)
    told.clear()
    mixed = [row | {"prompt": row["prompt"] + "!"} for row in plain[:3000]] + [plain[0]] * 3000
    imports.import_responses(path=write(tmp_path / "m.jsonl", mixed), progress=told.append, by=None)
    assert told == sorted(told) and told[-1] == 1 and len([share for share in told if 0.4 < share < 0.6]) >= 2


def test_long_rows_make_short_chunks(tmp_path):
    """So that memory stays flat, wherever a row is long."""
    many, long = [{"role": "user", "content": "x"}] * 999, json.dumps({"text": "x" * 90_000})
    response = import_rows.ResponseItem(model="m", text="x", sampling=long)
    for about in ({"metadata": long}, {"messages": many}, {"responses": (response,)}):
        fields = {"prompt_id": None, "messages": many[:1]} | about
        items = [("place", import_rows.PromptItem(content_sha256=str(n), **fields)) for n in range(100)]
        rows = import_direct._Rows(iter(items), lambda: False)
        chunk = []
        assert rows.have_chunk() and list(rows.chunk(chunk)) and len(chunk) < 50
        assert [*chunk, *rows] == items


def test_ids_like_ours_stay_what_they_are(tmp_path):
    named = {"prompt": "P", "model": "m", "response": "same", "response_external_id": "text:abc"}
    others = [{"prompt": f"other {n}", "model": "m", "response": "r"} for n in range(120)]
    path = write(tmp_path / "r.jsonl", [named, *others, {"prompt": "P", "model": "m", "response": "same"}])
    seen = [imports.import_responses(path=path, by=None).counts for _ in range(2)]
    assert [(one["responses_new"], one["responses_present"]) for one in seen] == [(122, 0), (0, 122)]


def test_an_import_that_adds_nothing_is_listed_whatever_its_file_is_called(tmp_path):
    path = write(tmp_path / "API", [{"prompt": "P"}])
    for _ in range(2):
        imports.import_prompts(path=path, form="jsonl", by=None)
    imports.import_rows(kind="prompts", rows=[{"prompt": "P"}], by=None)
    assert Import.objects.count() == 2


def test_a_backslash_before_u0000_is_no_nul(tmp_path):
    rows = [{"prompt": "P", "metadata": {"a": "\\u0000"}}, {"prompt": "Q", "metadata": {"a": "\\\0"}}]
    assert "line 2: field metadata: holds a NUL" in refused("import_prompts", write(tmp_path / "p.jsonl", rows))
    call_command("import_prompts", str(write(tmp_path / "p.jsonl", rows[:1])))
    assert Prompt.objects.get().metadata == {"a": "\\u0000"}


def test_a_deadlock_says_try_again(tmp_path, monkeypatch):
    def locked(*_arguments) -> None:
        raise OperationalError from DeadlockDetected()

    monkeypatch.setattr(imports, "_store_whole", locked)
    with pytest.raises(Conflict, match="try again"):
        imports.import_prompts(path=write(tmp_path / "p.jsonl", [{"prompt": "P"}]), by=None)


def test_an_interrupted_command_says_so(tmp_path, monkeypatch):
    def interrupted(*_arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(imports, "_store_whole", interrupted)
    with pytest.raises(CommandError, match="stored whole or not at all") as error:
        call_command("import_prompts", str(write(tmp_path / "p.jsonl", [{"prompt": "P"}])))
    assert error.value.returncode == 130


@pytest.mark.django_db(transaction=True)
def test_statistics_taken_in_the_middle_of_an_import_do_not_slow_the_next(tmp_path):
    """Vacuum, coming while nothing is committed, notes that the tables are empty; joins planned by that would take minutes."""
    path = write(tmp_path / "p.jsonl", [{"prompt": f"P{n}"} for n in range(30_000)])

    def vacuum(done: float) -> None:
        if 0.8 < done < 1:
            with psycopg.connect(connection.connection.info.dsn, autocommit=True) as other:
                other.execute("VACUUM ANALYZE labeling_prompt")

    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE labeling_prompt SET (autovacuum_enabled = false)"
        )  # it might come in between, and mend it
        try:
            imports.import_prompts(path=path, progress=vacuum, by=None)
            cursor.execute("SELECT reltuples FROM pg_class WHERE relname = 'labeling_prompt'")
            assert cursor.fetchone()[0] == 0, "the test has lost its subject"
            with transaction.atomic():
                cursor.execute("SET LOCAL statement_timeout = '6s'")
                assert imports.import_prompts(path=path, by=None).counts["prompts_present"] == 30_000
        finally:
            cursor.execute("ALTER TABLE labeling_prompt RESET (autovacuum_enabled)")


def test_constants_and_bars(tmp_path):
    path = write(tmp_path / "q.jsonl", [{"question": "Why?", "note": "unread", "use_case": "kept"}])
    call_command("import_prompts", str(path), "--map", "prompt=question", "--constant", "split=test")
    prompt = Prompt.objects.get()
    assert (prompt.text, prompt.split, prompt.use_case) == ("Why?", "test", "kept")


def test_an_author_is_never_in_two_splits(tmp_path):
    rows = [{"prompt": f"Question {n}", "author": f"author {n % 40}"} for n in range(400)]
    call_command("import_prompts", str(write(tmp_path / "a.jsonl", rows)))
    splits = {author.key: set(author.prompts.values_list("split", flat=True)) for author in Author.objects.all()}
    assert all(len(found) == 1 for found in splits.values())
    assert len(set().union(*splits.values())) > 1
    key, split = next((key, *found) for key, found in splits.items())
    other = "test" if split != "test" else "train"
    message = refused("import_prompts", write(tmp_path / "b.jsonl", [{"prompt": "New", "author": key, "split": other}]))
    assert f"b.jsonl line 1: field split: author {key!r} is in split {split}" in message
    later = write(tmp_path / "c.jsonl", [{"prompt": "New", "author": key, "split": split}])
    call_command("import_prompts", str(later))
    assert Prompt.objects.get(messages__0__content="New").split == split


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "colour": "red"}, "field colour: unknown column"),
        (
            {"prompt": "x", "model": "m", "response": "r"},
            "field model: unknown column here: it belongs to an import of resp",
        ),
        ({"kind": "plain"}, "field prompt: missing or empty"),
        ({"prompt": "  \n"}, "field prompt: empty"),
        ({"prompt": 5}, "field prompt: expected text, got a number"),
        ({"prompt": ["x"]}, "field prompt: expected text, got a list"),
        ({"prompt": "nul \0 char"}, "field prompt: holds a NUL character"),
        ({"prompt": "p" * 5_000_000}, "field prompt: 5,000,000 characters; 200,000 at most"),
        ({"prompt": "x", "messages": []}, "field prompt: give either prompt or messages"),
        ({"messages": []}, "field messages: expected a list"),
        ({"messages": [{"role": "user"}]}, "field messages: message 1: expected {role, content}"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "field messages: message 1: role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "field messages: the last message must be the user's"),
        ({"prompt": "x", "kind": "odd"}, "field kind: expected one of plain, few_shot, user_based; got 'odd'"),
        ({"prompt": "x", "kind": ["plain"]}, "field kind: expected one of"),
        ({"prompt": "x", "split": "all"}, "field split: expected one of train, valid, test"),
        ({"prompt": "x", "use_case": "u" * 51}, "field use_case: 51 characters; 50 at most"),
        ({"prompt": "x", "metadata": [1]}, "field metadata: expected a JSON object"),
        ({"prompt": "x", "metadata": {"a": "\0"}}, "field metadata: holds a NUL"),
        ({"prompt": "x", "author": True}, "field author: expected text, got true or false"),
        ({"prompt": "x", "demonstration": ""}, "field demonstration: empty"),
        ({"prompt": "x", "demonstration": [3]}, "field demonstration: expected text"),
    ],
)
def test_a_wrong_row_is_refused_with_line_and_field(tmp_path, row, message):
    path = write(tmp_path / "p.jsonl", [{"prompt": "fine"}, row])
    assert f"p.jsonl line 2: {message}" in refused("import_prompts", path)


def test_a_model_that_said_nothing_has_answered(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": "x", "model": "m", "response": "", "finish_reason": "stop"}])
    call_command("import_responses", path)
    assert [(r.text, r.finish_reason) for r in Response.objects.all()] == [("", "stop")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "field response: missing"),
        ({"prompt": "x", "model": "m"}, "field response: missing or empty"),
        ({"prompt": "x", "response": "r"}, "field model: missing"),
        ({"prompt": "x", "model": "m", "response": " "}, "field response: empty"),
        ({"prompt": "x", "model": "m" * 151, "response": "r"}, "field model: 151 characters; 150 at most"),
        (
            {"prompt": "x", "model": "m", "response": "r", "finish_reason": "tired"},
            "field finish_reason: expected one of",
        ),
        ({"prompt": "x", "model": "m", "response": "r", "sampling": 1}, "field sampling: expected a JSON object"),
        ({"prompt": "x", "responses": []}, "field responses: expected a list of {model, text}, not empty"),
        ({"prompt": "x", "responses": [{"model": "m"}]}, "field responses[0].text: missing or empty"),
        ({"prompt": "x", "responses": [{"model": "m", "text": "t", "n": 1}]}, "field responses[0].n: unknown field"),
        ({"prompt_id": "7", "model": "m", "response": "r"}, "field prompt_id: expected the UUID of a prompt"),
        (
            {"prompt_id": "00000000-0000-4000-8000-000000000000", "model": "m", "response": "r"},
            "field prompt_id: there is no prompt 00000000",
        ),
    ],
)
def test_a_wrong_response_row_is_refused_with_line_and_field(tmp_path, row, message):
    path = write(tmp_path / "r.jsonl", [{"prompt": "fine", "model": "m", "response": "r"}, row])
    assert f"r.jsonl line 2: {message}" in refused("import_responses", path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "p.jsonl line 2: not JSON"),
        (
            "p.jsonl",
            b'{"prompt": "a: b"}\n{"prompt": "a", "prompt": "b"}\n',
            "p.jsonl line 2: the key 'prompt' is there twice",
        ),
        ("p.jsonl", b'{"prompt": "a", "prompt": "\\u003a"}', "p.jsonl line 1: the key 'prompt' is there twice"),
        ("p.jsonl", b'{"prompt": "a", "metadata": {"l": [{"k:": 1, "k:": 1}]}}', "line 1: the key 'k:' is there twice"),
        (
            "p.csv",
            b'prompt,metadata\na,"{""k"":1,""k"":2}"\n',
            "p.csv line 2: field metadata: the key 'k' is there twice",
        ),
        (
            "p.jsonl",
            b'{"prompt": "\\\\ud800 \\ud83d\\ude00 \\uD800!"}',
            "p.jsonl line 1: not JSON: \\uD800 (character 34) is half",
        ),
        ("p.jsonl", b'{"prompt": "a"}\n[1]\n', "p.jsonl line 2: expected a JSON object"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "p.jsonl line 2: not UTF-8: byte 0xff at position 13"),
        ("p.jsonl", b'{"prompt": "a \\ud800 b"}\n', "p.jsonl line 1"),
        ("p.jsonl", b"\n\n", "p.jsonl: there are no rows"),
        ("p.csv", b"prompt,kind\nfine,plain\nx,plain,extra\n", "p.csv line 3: 3 cells, but the header has 2"),
        ("p.csv", b'prompt\nfine\n"two\nlines"\n"broken" quote\n', "p.csv line 5: broken CSV"),
        (
            "p.csv",
            b'prompt\nfine\n"never closed\nfine\nfine\n',
            "p.csv line 3: broken CSV: unexpected end of data (read on",
        ),
        ("p.csv", b'prompt\nfine\n"never closed\n', "p.csv line 3: broken CSV: unexpected end of data"),
        ("p.csv", b"prompt\nfine\nna\xefve\n", "p.csv line 3: not UTF-8: byte 0xef at position 3"),
        ("p.csv", b"prompt,prompt\na,b\n", "p.csv line 1: the header names the column 'prompt' twice"),
        ("p.csv", b"text\na\n", "p.csv line 2: field text: unknown column"),
        ("p.csv", b"", "p.csv: there are no rows"),
        ("p.parquet", b"PAR1 not really", "p.parquet: not a readable Parquet file"),
        ("p.jsonl.gz", b"not gzip", "p.jsonl.gz line 1: broken gzip"),
        ("p.arrow", b"ARROW1", "p.arrow: not a readable Arrow file"),
        ("p.txt", b"x", "p.txt: expected a name ending in .jsonl"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    assert message in refused("import_prompts", tmp_path / name)


def test_csv_lines_are_counted_as_an_editor_does(tmp_path):
    (tmp_path / "p.csv").write_text('prompt,kind\r\n"two\r\nlines",plain\r\nx,odd\r\n', newline="")
    assert "p.csv line 4: field kind" in refused("import_prompts", tmp_path / "p.csv")


def test_all_errors_are_told_up_to_a_limit(tmp_path):
    rows = [{"prompt": f"fine {n}"} if n % 2 else {"prompt": "", "kind": "odd"} for n in range(20)]
    message = refused("import_prompts", write(tmp_path / "p.jsonl", rows))
    assert message.count("field prompt: empty") == message.count("field kind: expected") == 10
    path = write(tmp_path / "q.jsonl", [{"prompt": ""}] * 500)
    with pytest.raises(Invalid, match="100 errors or more") as error:
        imports.import_prompts(path=path, by=None)
    assert len(error.value.errors) == 100


def test_a_late_error_takes_everything_back(tmp_path, monkeypatch):
    monkeypatch.setattr(import_store, "SLICE_ROWS", 3)
    rows = [{"prompt": f"P{n}", "author": "a", "model": "m", "response": "r"} for n in range(10)] + [{"prompt": ""}]
    assert "line 11" in refused("import_responses", write(tmp_path / "r.jsonl", rows))


def test_contradictions_are_refused(tmp_path):
    first = [{"prompt": "A", "external_id": "1", "split": "train"}]
    call_command("import_prompts", str(write(tmp_path / "1.jsonl", first)))
    other = write(tmp_path / "2.jsonl", [{"prompt": "B", "external_id": "1"}])
    assert "line 1: field external_id: '1' names another prompt already" in refused("import_prompts", other)
    within = write(tmp_path / "3.jsonl", [{"prompt": "C", "external_id": "2"}, {"prompt": "D", "external_id": "2"}])
    assert "line 2: field external_id: '2' names another prompt already" in refused("import_prompts", within)
    split = write(tmp_path / "4.jsonl", [{"prompt": "A", "split": "test"}])
    assert "line 1: field split: this prompt is in split train already" in refused("import_prompts", split)


def test_a_wrong_mapping_is_refused(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"text": "x"}])
    assert "there is no column 'txt'" in refused("import_prompts", path, "--map", "prompt=txt")
    rows = [{"text": "x", "note": "y" if n % 2 else None} for n in range(1500)]
    message = refused("import_prompts", write(tmp_path / "m.jsonl", rows), "--map", "prompt=txt")
    assert "m.jsonl line 1: there is no column 'txt', or its cell is empty (1,500 rows, this one the first)" in message
    assert message.count("txt") == 1
    nested = write(tmp_path / "n.jsonl", [{"list": [1]}])
    assert "no column 'list.²'" in refused("import_prompts", nested, "--map", "prompt=list.²")
    assert "promt is no field" in refused("import_prompts", path, "--map", "promt=text")
    assert "expected FIELD=" in refused("import_prompts", path, "--map", "prompt")
    assert "filled twice" in refused("import_prompts", path, "--map", "prompt=text", "--constant", "prompt=x")
    with pytest.raises(Invalid, match="format 'xml'"):
        imports.import_prompts(path=path, form="xml", columns=Columns(), by=None)


def test_a_missing_file_and_a_huge_one_are_refused(tmp_path, settings):
    assert "there is no such file" in refused("import_prompts", tmp_path / "none.jsonl")
    settings.IMPORT_MAX_BYTES = 10
    assert "10 at most" in refused("import_prompts", write(tmp_path / "p.jsonl", [{"prompt": "long enough"}]))


@pytest.mark.django_db(transaction=True)
def test_two_imports_of_one_file_at_once_store_it_once(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": f"P{n}", "model": "m", "response": "r"} for n in range(300)])

    def run(_number: int) -> None:
        try:
            imports.import_responses(path=path, by=None)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))
    assert (Prompt.objects.count(), Response.objects.count(), Import.objects.count()) == (300, 300, 4)


@pytest.mark.django_db(transaction=True)
def test_a_model_that_another_registers_meanwhile_is_taken(tmp_path):
    path = write(tmp_path / "r.jsonl", [{"prompt": f"P{n}", "model": "m", "response": "r"} for n in range(3)])

    def import_here() -> dict[str, int]:
        try:
            return imports.import_responses(path=path, by=None).counts
        finally:
            connection.close()

    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid)))"
    with ThreadPoolExecutor(1) as pool, transaction.atomic(), connection.cursor() as cursor:
        ModelVersion.objects.create(name="m", stage="external")
        importing = pool.submit(import_here)
        deadline = time.monotonic() + 20
        while not cursor.execute(waits).fetchone()[0]:
            assert time.monotonic() < deadline and not importing.done()
            time.sleep(0.02)
    made = importing.result()
    assert (made["responses_new"], Response.objects.count(), ModelVersion.objects.count()) == (3, 3, 1)
    assert "models_new" not in made
