"""Batches: what an order chooses, what it leaves out and counts, and that it never doubles."""

import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from labeling.actions import batches
from labeling.errors import Conflict, Invalid
from labeling.models import Batch, Prompt, Slot, Split, Task, TaskResponse
from tests.labeling.rows import make_model, make_prompt, make_ranking_batch, make_responses, submit

pytestmark = pytest.mark.django_db


def rank(name="b", k=2, **options) -> Batch:
    return batches.create_batch(name=name, kind="ranking", k=k, by=None, **options)


def texts(batch: Batch) -> list[str]:
    """The texts of a batch of one task, sorted."""
    return sorted(TaskResponse.objects.filter(task__batch=batch).values_list("response__text", flat=True))


# ---- what is made ---------------------------------------------------------------------------------------------------


def test_lays_out_tasks_responses_and_seats(researcher):
    batch = make_ranking_batch(prompts=3, k=4, overlap=2, group="held_out", priority=7)
    assert Task.objects.filter(batch=batch, kind="ranking").count() == 3
    assert TaskResponse.objects.filter(task__batch=batch).count() == 12
    slots = Slot.objects.filter(batch=batch)
    assert {(s.kind, s.turn, s.status) for s in slots} == {("ranking", 0, "open")}
    assert (batch.group, batch.priority) == ("held_out", 7)
    assert [s.seat for s in slots.order_by("id")] == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]  # first seats first: they are claimed in this order
    assert batch.counts["tasks"] == 3
    assert batch.counts["seats"] == 6


def test_task_uuids_tell_no_order():
    tasks = make_ranking_batch(prompts=20, k=2).tasks.order_by("id")
    uuids = [t.uuid for t in tasks]
    assert {u.version for u in uuids} == {4}
    assert uuids != sorted(uuids)


def test_a_demonstration_batch_needs_no_responses():
    make_prompt("one")
    batch = batches.create_batch(name="d", kind="demonstration", by=None)
    assert batch.responses_per_task is None
    assert batch.counts["tasks"] == 1
    assert not TaskResponse.objects.exists()


def test_only_the_named_models():
    prompt = make_prompt()
    make_responses(prompt, "a", "b", "c", "d")
    assert texts(rank(model_names=["m1", "m3"])) == ["b", "d"]


def test_distinct_texts_come_before_distinct_models():
    prompt = make_prompt()
    make_responses(prompt, "same", "same", "same")
    make_responses(prompt, "other", model="m0")
    for seed in range(8):
        assert texts(rank(name=f"b{seed}", seed=seed)) == ["other", "same"]


def test_distinct_models_come_before_a_models_second_response():
    prompt = make_prompt()
    make_responses(prompt, *"abcdef", model="chatty")
    make_responses(prompt, "x", "y")  # m0, m1
    for seed in range(8):
        batch = rank(name=f"b{seed}", k=3, seed=seed)
        chosen = TaskResponse.objects.filter(task__batch=batch).values_list("response__model_version__name", flat=True)
        assert sorted(chosen) == ["chatty", "m0", "m1"]


def test_equal_texts_fill_up_when_there_are_too_few_distinct_ones():
    make_responses(make_prompt(), "same", "same", "other")
    assert texts(rank(k=3)) == ["other", "same", "same"]


def test_every_task_holds_the_model_that_it_must():
    for i in range(5):
        prompt = make_prompt(f"p{i}")
        make_responses(prompt, *"abcdefgh")
        make_responses(prompt, "a", model="new")  # even where its text is another model's too
    make_responses(make_prompt("without"), *"abcdefgh")
    batch = rank(k=8, must_include=["new"])
    assert batch.counts | {"tasks": 5, "without_model": 1} == batch.counts
    for task in batch.tasks.all():
        assert task.task_responses.filter(response__model_version__name="new").count() == 1
        assert sorted(task.task_responses.values_list("response__text", flat=True)) == list("abcdefgh")


def test_responses_by_people_are_not_ranked():
    prompt = make_prompt()
    make_responses(prompt, "a", "b")
    prompt.responses.create(text="by hand", origin="person", external_id="x")
    with pytest.raises(Invalid, match="1 have fewer responses than K"):
        rank(k=3)


def test_what_is_left_out_is_counted_by_reason():
    make_responses(make_prompt("enough"), "a", "b")
    make_responses(make_prompt("identical"), "a", "a")
    make_responses(make_prompt("few"), "a")
    make_prompt("none")
    batch = rank()
    assert batch.counts == {
        "prompts": 4, "without_model": 0, "too_few_responses": 2, "identical_texts": 1, "beyond_limit": 0,
        "tasks": 1, "seats": 1,
    }  # fmt: skip


def test_filters_and_limit():
    for i in range(6):
        make_prompt(f"p{i}", split=Split.TRAIN if i < 4 else Split.TEST, use_case="story" if i % 2 else "fact")
    batch = batches.create_batch(name="d", kind="demonstration", split="train", use_case="story", by=None)
    assert {t.prompt.text for t in batch.tasks.all()} == {"p1", "p3"}
    limited = batches.create_batch(name="e", kind="demonstration", limit=2, by=None)
    assert limited.counts | {"tasks": 2, "beyond_limit": 4} == limited.counts


def test_the_same_seed_chooses_the_same_prompts_and_another_seed_others():
    for i in range(40):
        make_prompt(f"p{i}")

    def chosen(name, seed):
        batch = batches.create_batch(name=name, kind="demonstration", limit=10, seed=seed, by=None)
        return [t.prompt_id for t in batch.tasks.order_by("id")]

    assert chosen("a", 1) == chosen("b", 1) != chosen("c", 2)


def test_only_new_leaves_out_prompts_with_a_task_of_the_kind():
    make_ranking_batch(prompts=2, k=2)
    make_responses(make_prompt("fresh"), "a", "b")
    assert [t.prompt.text for t in rank(only_new=True).tasks.all()] == ["fresh"]
    demos = batches.create_batch(name="d", kind="demonstration", only_new=True, by=None)
    assert demos.counts["tasks"] == 3  # ranked before, but no demonstration asked for


# ---- asked again ----------------------------------------------------------------------------------------------------


def test_the_same_order_again_is_the_same_batch():
    make_responses(make_prompt(), "a", "b")
    first = rank(model_names=["m0", "m1"])
    make_responses(make_prompt("later"), "a", "b")
    assert rank(model_names=["m0", "m1"]) == first
    assert Task.objects.count() == Slot.objects.count() == 1


def test_another_order_under_the_same_name_is_a_conflict():
    make_responses(make_prompt(), "a", "b", "c")
    rank()
    with pytest.raises(Conflict, match=r"different: k, seed"):
        rank(k=3, seed=1)
    assert Task.objects.count() == 1


def test_editing_a_batch_does_not_break_its_order():
    make_responses(make_prompt(), "a", "b")
    first = rank(instructions="Be kind.")
    batches.edit(batch=first, instructions="Be kinder.", priority=3, by=None)
    again = rank(instructions="Be kind.")
    assert (again.instructions, again.priority) == ("Be kinder.", 3)


@pytest.mark.django_db(transaction=True)
def test_two_orders_at_once_make_one_batch():
    make_responses(make_prompt(), "a", "b")
    found, barrier = [], threading.Barrier(4)

    def order():
        barrier.wait()
        found.append(rank().pk)
        connection.close()

    threads = [threading.Thread(target=order) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(found) == 4
    assert len(set(found)) == 1
    assert Task.objects.count() == 1


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"name": " "}, "name"),
        ({"kind": "poem"}, "kind"),
        ({"k": None}, "k"),
        ({"k": 1}, "k"),
        ({"k": 13}, "k"),
        ({"kind": "demonstration"}, "k"),
        ({"overlap": 0}, "overlap"),
        ({"overlap": 51}, "overlap"),
        ({"group": "friends"}, "group"),
        ({"split": "all"}, "split"),
        ({"limit": 0}, "limit"),
        ({"source": "dream"}, "source"),
        ({"prompt_kind": "long"}, "prompt_kind"),
        ({"model_names": ["m0"], "must_include": ["m1"]}, "must_include"),
        ({"model_names": ["nobody"]}, "model_names"),
        ({"prompt_ids": ["17"]}, "prompt_ids"),
        ({"prompt_ids": ["00000000-0000-4000-8000-000000000000"]}, "prompt_ids"),
        ({"priority": 1001}, "priority"),
        ({"schema_version": 99}, "schema_version"),
    ],
)
def test_a_wrong_order_names_the_place_and_leaves_nothing(options, place):
    make_responses(make_prompt(), "a", "b")
    with pytest.raises(Invalid, match=place):
        batches.create_batch(**{"name": "b", "kind": "ranking", "k": 2, "by": None} | options)
    assert not Batch.objects.exists()


def test_nothing_matches_is_said_and_leaves_nothing():
    with pytest.raises(Invalid, match="no prompt passes the filters"):
        rank()
    make_responses(make_prompt(), "a", "a")
    with pytest.raises(Invalid, match="1 have responses that are all alike"):
        rank()
    assert not Batch.objects.exists()
    make_responses(Prompt.objects.get(), "b", model="m9")
    assert rank().counts["tasks"] == 1  # and the refused order is no obstacle


# ---- progress and status --------------------------------------------------------------------------------------------


def test_progress_counts_seats_and_submissions(labeler, labeler2, django_assert_num_queries):
    batch = make_ranking_batch(prompts=3, overlap=1)
    other = make_ranking_batch("other", prompts=1)
    first, second, _ = batch.tasks.all()
    submit(first, labeler)
    submit(first, labeler2, is_surplus=True)
    second.skips.create(labeler=labeler, reason="unclear")
    with django_assert_num_queries(4):
        progress = Batch.objects.all().progress()
    mine = progress[batch.pk]
    assert (mine.seats, mine.open, mine.submitted, mine.waiting, mine.surplus, mine.skipped) == (3, 2, 1, 1, 1, 1)
    assert mine.percent == 33
    assert progress[other.pk].open == 1


def test_a_paused_batch_gives_out_no_seat(labeler):
    batch = make_ranking_batch()
    assert Slot.objects.claimable_by(labeler).exists()
    batches.set_status(batch=batch, status="paused", by=None)
    assert not Slot.objects.claimable_by(labeler).exists()
    batches.set_status(batch=batch, status="active", by=None)
    assert Slot.objects.claimable_by(labeler).exists()
    with pytest.raises(Invalid):
        batches.set_status(batch=batch, status="gone", by=None)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_command(capsys, tmp_path):
    prompt = make_prompt()
    make_responses(prompt, "a", "b")
    make_responses(make_prompt("alike"), "a", "a")
    make_model("unused")
    guide = tmp_path / "guide.md"
    guide.write_text("Rank **well**.")
    arguments = ["ranks", "--kind=ranking", "--k=2", f"--instructions={guide}", "--model=m0", "--model=m1"]
    call_command("create_batch", *arguments)
    call_command("create_batch", *arguments)
    out = capsys.readouterr().out
    assert "ranks: 1 tasks, 1 seats" in out
    assert "left out: 1 prompts that have responses that are all alike" in out
    assert Batch.objects.get().instructions == "Rank **well**."
    with pytest.raises(CommandError, match="another order"):
        call_command("create_batch", *arguments, "--overlap=2")
    with pytest.raises(CommandError, match="missing"):
        call_command("create_batch", "x", "--kind=demonstration", f"--prompt-ids={tmp_path}/missing")


# ---- the pages ------------------------------------------------------------------------------------------------------

ORDER = {"name": "b", "kind": "ranking", "k": 2, "overlap": 2, "seed": 0, "priority": 0, "instructions": "**Hi**"}


def test_ordering_a_batch(researcher_client, researcher):
    make_responses(make_prompt(), "a", "b", "c")
    data = ORDER | {"model_names": ["m0", "m1", "m2"], "must_include": ["m2"], "limit": ""}
    page = researcher_client.post(reverse("batch_new"), data, follow=True)
    assert "Ordered: 1 tasks." in page.text
    batch = Batch.objects.get()
    assert (batch.created_by, batch.overlap, batch.instructions) == (researcher, 2, "**Hi**")
    assert "c" in texts(batch)
    assert "<strong>Hi</strong>" in page.text


def test_ordering_twice_by_a_double_click_makes_one(researcher_client):
    make_responses(make_prompt(), "a", "b")
    first, second = (researcher_client.post(reverse("batch_new"), ORDER) for _ in range(2))
    assert first["Location"] == second["Location"]
    assert Task.objects.count() == 1


def test_a_demonstration_order_ignores_the_fields_of_rankings(researcher_client):
    make_responses(make_prompt(), "a", "b")
    data = ORDER | {"kind": "demonstration", "model_names": ["m0"]}
    assert researcher_client.post(reverse("batch_new"), data).status_code == 302
    assert Batch.objects.get().responses_per_task is None


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"name": ""}, 422, "This field is required"),
        ({"k": ""}, 422, "a ranking needs K responses"),
        ({"k": 99}, 422, "less than or equal to 12"),
        ({"split": "test"}, 422, "no prompt passes the filters"),
        ({"model_names": ["nobody"]}, 422, "not one of the available choices"),
        ({"seed": 1}, 409, "made by another order"),
    ],
)
def test_a_refused_order_is_shown_again_with_the_reason(researcher_client, change, status, said):
    make_responses(make_prompt(split=Split.TRAIN), "a", "b")
    if status == 409:
        researcher_client.post(reverse("batch_new"), ORDER)
    before = Batch.objects.count()
    response = researcher_client.post(reverse("batch_new"), ORDER | change)
    assert response.status_code == status
    assert said in response.text
    assert Batch.objects.count() == before


def test_pages_count_and_lead_to_the_rows(researcher_client, labeler):
    batch = make_ranking_batch(prompts=3)
    submit(batch.tasks.first(), labeler)
    batch.tasks.last().skips.create(labeler=labeler, reason="unclear", comment="What is meant?")
    assert researcher_client.get(reverse("batches")).context["rows"][0]["progress"].submitted == 1
    page = researcher_client.get(reverse("batch", args=[batch.pk]))
    assert f"{reverse('reviews')}?batch={batch.pk}&amp;status=submitted" in page.text
    assert "What is meant?" in page.text
    widths = [part.width for part in page.context["bar"]]
    assert sum(widths) == pytest.approx(100, abs=0.01)


def test_pages_take_a_constant_number_of_queries(researcher_client):
    def count(url):
        with CaptureQueriesContext(connection) as queries:
            assert researcher_client.get(url).status_code == 200
        return len(queries)

    batch = make_ranking_batch()
    before = count(reverse("batches")), count(reverse("batch", args=[batch.pk]))
    big = make_ranking_batch("big", prompts=20)
    assert (count(reverse("batches")), count(reverse("batch", args=[big.pk]))) == before


def test_pausing_and_editing(researcher_client):
    batch = make_ranking_batch()
    for _ in range(2):
        researcher_client.post(reverse("batch_status", args=[batch.pk]), {"status": "paused"})
    researcher_client.post(reverse("batch_edit", args=[batch.pk]), {"instructions": "Be quick.", "priority": 5})
    batch.refresh_from_db()
    assert (batch.status, batch.instructions, batch.priority) == ("paused", "Be quick.", 5)
    assert researcher_client.post(reverse("batch_status", args=[batch.pk]), {"status": "x"}).status_code == 422
    assert researcher_client.post(reverse("batch_edit", args=[batch.pk]), {"priority": "x"}).status_code == 422


def test_a_reviewer_reads_but_has_nothing_to_press(reviewer_client):
    batch = make_ranking_batch()
    page = reviewer_client.get(reverse("batch", args=[batch.pk])).text
    assert reverse("batch_status", args=[batch.pk]) not in page
    assert reverse("batch_new") not in reviewer_client.get(reverse("batches")).text
