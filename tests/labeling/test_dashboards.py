"""Dashboards: figures are those of the rows, lead to them, say when they were computed, and can be had as CSV."""

import csv
import io
from collections import defaultdict
from datetime import timedelta

import pytest
from django.db import IntegrityError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from labeling.actions import batches, imports, model_versions, statistics
from labeling.models import Batch, ModelVersion, Slot, Statistic, Submission
from tests import builders
from tests.labeling import rows

pytestmark = pytest.mark.django_db
PAGES = ["dashboards", "throughput", "agreement", "policies", "rounds"]
TABLES = ["progress", "throughput", "labelers", "policies", "pairs", "agreement", "rounds"]


def compute(kind: str, **scope) -> dict:
    return statistics.refresh(statistic=statistics.ask(kind=kind, **scope)).content


def table(client, name: str, query: str = "") -> list[dict]:
    answer = client.get(f"/console/dashboards/{name}.csv?{query}")
    assert answer.status_code == 200 and answer["Content-Type"].startswith("text/csv")
    return list(csv.DictReader(io.StringIO(answer.content.decode())))


@pytest.fixture
def ranked(labeler, labeler2, heldout_labeler):
    """Three rankings of one task of three models: m0 best; m0 and m1 tied; m2 best."""
    batch = rows.make_ranking_batch(k=3, overlap=3)
    [task] = batch.tasks.all()
    a, b, c = rows.response_ids(task)
    done = [
        rows.submit(task, labeler, tiers=[[a], [b], [c]]),
        rows.submit(task, labeler2, tiers=[[a, b], [c]]),
        rows.submit(task, heldout_labeler, tiers=[[c], [a], [b]]),
    ]
    return batch, done


@pytest.mark.parametrize("name", PAGES)
def test_who_may_see_them(name, client, labeler_client, applicant_client, reviewer_client, researcher_client):
    assert client.get(reverse(name)).status_code == 302
    assert labeler_client.get(reverse(name)).status_code == applicant_client.get(reverse(name)).status_code == 403
    assert reviewer_client.get(reverse(name)).status_code == researcher_client.get(reverse(name)).status_code == 200
    assert reviewer_client.post(reverse(name)).status_code == 405


@pytest.mark.parametrize("name", TABLES)
def test_who_may_take_the_csv(name, labeler_client, reviewer_client):
    assert labeler_client.get(f"/console/dashboards/{name}.csv").status_code == 403
    answer = reviewer_client.get(f"/console/dashboards/{name}.csv")
    assert answer.status_code == (200 if name in ("progress", "rounds") else 409), "nothing is computed on the request"
    assert reviewer_client.get("/console/dashboards/nothing.csv").status_code == 404


def test_a_page_orders_what_is_not_there_and_shows_what_is(ranked, reviewer_client):
    page = reviewer_client.get(reverse("policies"))
    assert b"Being computed" in page.content
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'refresh_statistics' AND status = 'todo'"
        )
        assert cursor.fetchone() == (1,)
    reviewer_client.get(reverse("policies"))  # asking again orders nothing more
    [waiting] = statistics.outdated()
    statistics.refresh(statistic=waiting)
    page = reviewer_client.get(reverse("policies")).content.decode()
    assert "Being computed" not in page and "Computed 20" in page
    assert statistics.outdated() == []


def test_it_is_computed_again_once_there_is_more_to_count(ranked, labeler, reviewer):
    compute("throughput")
    assert not statistics.outdated()
    rows.submit(rows.make_demonstration_batch(prompts=1).tasks.get(), labeler)
    assert len(statistics.outdated()) == 1
    Statistic.objects.update(looked_at=timezone.now() - timedelta(days=30))
    assert not statistics.outdated(), "nobody looks at it any more"


def test_win_rates_of_the_rows(ranked, reviewer_client):
    content = compute("policies")
    names = dict(ModelVersion.objects.values_list("id", "name"))
    assert [names[pk] for pk in content["models"]] == ["m0", "m1", "m2"]
    index = {names[pk]: i for i, pk in enumerate(content["models"])}

    def points(one, other):
        return content["points"][index[one]][index[other]], content["ties"][index[one]][index[other]]

    assert points("m0", "m1") == (2.5, 1) and points("m1", "m0") == (0.5, 1)
    assert points("m0", "m2") == (2, 0) and points("m2", "m0") == (1, 0)
    assert points("m1", "m2") == (2, 0) and points("m2", "m1") == (1, 0)
    assert (content["rankings"], content["prompts"], content["comparisons"]) == (3, 1, 9)
    page = reviewer_client.get(reverse("policies")).content.decode()
    assert "83 %" in page and page.index(">m0<") < page.index(">m1<")
    by_pair = {(row["policy"], row["against"]): row for row in table(reviewer_client, "pairs")}
    assert by_pair["m0", "m1"]["points"] == "2.5" and by_pair["m0", "m1"]["comparisons"] == "3"
    assert [row["policy"] for row in table(reviewer_client, "policies")] == ["m0", "m1", "m2"]


def test_a_batch_of_other_policies_takes_no_score_away(ranked, labeler, reviewer_client):
    """Two policies on one prompt, compared with none of the others: those keep their scores, these get neither score nor place."""
    compute("policies")
    before = {row["policy"]: row["score"] for row in table(reviewer_client, "policies")}
    prompt = rows.make_prompt("aside?")
    for name in ("x0", "x1"):
        rows.make_responses(prompt, f"By {name}", model=name)
    batch = batches.create_batch(name="aside", kind="ranking", k=2, prompt_ids=[prompt.uuid], by=None)
    rows.submit(batch.tasks.get(), labeler)
    compute("policies")
    now = {row["policy"]: row for row in table(reviewer_client, "policies")}
    assert {name: now[name]["score"] for name in before} == before and len(before) == 3 and all(before.values())
    assert [(now[name]["score"], now[name]["apart"]) for name in ("x0", "x1")] == [("", "uncompared")] * 2
    page = reviewer_client.get(reverse("policies"))
    assert [row["why"] is None for row in page.context["table"]] == [True] * 3 + [False] * 2
    assert page.text.count("never compared with those that have a score") == 2 and "have no place among" in page.text


def test_scope_group_batch_simulated_and_rejected(ranked, make_user, reviewer_client):
    batch, (_first, second, third) = ranked
    assert compute("policies", group="held_out")["rankings"] == 1
    assert compute("policies", batch_id=batch.pk)["rankings"] == 3
    other = rows.make_ranking_batch("another", k=2)
    assert compute("policies", batch_id=other.pk)["rankings"] == 0
    Submission.objects.filter(pk=second.pk).update(status="rejected")
    robot = make_user("robot@example.org", "labeler", is_simulated=True)
    made = rows.submit(other.tasks.get(), robot)
    Submission.objects.filter(pk=made.pk).update(origin="simulated")
    Submission.objects.filter(pk=third.pk).update(is_gold=True)
    assert compute("policies")["rankings"] == 1
    Submission.objects.filter(pk=third.pk).update(is_gold=False)
    assert compute("policies")["rankings"] == 2 and compute("policies", simulated=True)["rankings"] == 3
    assert compute("throughput")["days"]["ranking"] == [3]
    assert "3 in 1 day." in reviewer_client.get(reverse("throughput")).text
    page = reviewer_client.get(reverse("policies"), {"batch": batch.pk, "group": "held_out", "simulated": "yes"})
    assert page.status_code == 200
    assert reviewer_client.get(reverse("policies"), {"batch": "9999", "group": "none"}).status_code == 200


def test_only_the_newest_revision_counts(ranked):
    _batch, (first, _second, _third) = ranked
    a, b, c = rows.response_ids(first.task)
    rows.revise(first, tiers=[[c], [b], [a]])
    content = compute("policies")
    best = ModelVersion.objects.get(pk=content["models"][0]).name
    assert (best, content["rankings"]) == ("m2", 3)


def test_a_cell_leads_to_its_rankings(ranked, reviewer_client, labeler_client):
    m0, m1 = (ModelVersion.objects.get(name=name).pk for name in ("m0", "m1"))
    compute("policies")
    page = reviewer_client.get(reverse("policies")).content.decode()
    path = reverse("policy_pair", args=[m0, m1])
    assert path in page
    pair = reviewer_client.get(path).content.decode()
    assert all(str(submission.uuid) in pair for submission in Submission.objects.all())
    newest, _middle, oldest = Submission.objects.order_by("-pk")
    assert reviewer_client.get(path, {"before": "9" * 5000}).status_code == 200
    behind = reviewer_client.get(path, {"before": newest.pk}).content.decode()
    assert str(newest.uuid) not in behind and str(oldest.uuid) in behind
    assert labeler_client.get(path).status_code == 403
    assert reviewer_client.get(reverse("policy_pair", args=[m0, 999999])).status_code == 404


def test_throughput_by_day_kind_and_labeler(ranked, labeler, reviewer_client):
    demonstrations = rows.make_demonstration_batch(prompts=2)
    for task in demonstrations.tasks.all():
        rows.submit(task, labeler)
    early = Submission.objects.filter(kind="ranking").earliest("pk")
    Submission.objects.filter(pk=early.pk).update(submitted_at=timezone.now() - timedelta(days=2), active_seconds=1800)
    content = compute("throughput")
    assert content["days"] == {"ranking": [1, 0, 2], "demonstration": [0, 0, 2]}
    mine = next(row for row in content["labelers"] if row["id"] == labeler.pk)
    assert (mine["ranking"], mine["demonstration"], mine["seconds"]) == (1, 2, 1800)
    assert mine["recent"][-3:] == [1, 0, 2]
    page = reviewer_client.get(reverse("throughput")).content.decode()
    day = timezone.localdate().isoformat()
    assert f"since={day}&amp;until={day}" in page
    assert [row["ranking"] for row in table(reviewer_client, "throughput")] == ["1", "0", "2"]
    [first, *_rest] = table(reviewer_client, "labelers")
    assert (first["email"], first["active_hours"]) == ("labeler@example.org", "0.5")


def test_a_figures_rows_are_as_many_as_it_says(ranked, reviewer_client):
    """The link of a day's bar shows that day's rows; of held-out labelers, theirs."""
    compute("throughput", group="held_out")
    page = reviewer_client.get(reverse("throughput"), {"group": "held_out"})
    [row] = page.context["figure"].rows
    assert row.cells == ["0", "1"]
    assert reviewer_client.get(row.url).context["page"].paginator.count == 1


def test_agreement_by_week(ranked, reviewer_client):
    """Pairs: (1,2) agree on 2 of 3; (1,3) on 1 of 3; (2,3) on 0 of 3: in the mean 1/3. Training: 2/3. Between: 1/6."""
    content = compute("agreement")
    last = {key: content[key][-1]["value"] for key in ("all", "training", "held_out", "between")}
    assert last == {
        "all": pytest.approx(1 / 3),
        "training": pytest.approx(2 / 3),
        "held_out": None,
        "between": pytest.approx(1 / 6),
    }
    assert "33.3 %" in reviewer_client.get(reverse("agreement")).content.decode()
    shares = {row["among"]: row["share"] for row in table(reviewer_client, "agreement") if row["share"]}
    assert float(shares["training"]) == pytest.approx(2 / 3)


def test_nothing_at_all(reviewer_client):
    for kind in Statistic.Kind.values:
        compute(kind)
    for name in PAGES:
        assert reviewer_client.get(reverse(name)).status_code == 200
    for name in TABLES:
        assert table(reviewer_client, name) is not None


def test_progress_and_forecast(labeler, reviewer_client):
    """Eight of twenty tasks in four days, two a day: six days more."""
    batch = rows.make_demonstration_batch("steady", prompts=20)
    now = timezone.now()
    for i, task in enumerate(batch.tasks.all()[:8]):
        done = rows.submit(task, labeler)
        Slot.objects.filter(pk=done.slot_id).update(submitted_at=now - timedelta(days=i // 2, hours=1))
    Batch.objects.update(created_at=now - timedelta(days=3, hours=23))
    rows.make_demonstration_batch("never begun", prompts=1)
    assert Batch.objects.filter(pk=batch.pk).paces(now) == {batch.pk: [2, 2, 2, 2]}
    page = reviewer_client.get(reverse("dashboards")).content.decode()
    assert "not at this pace" in page and f"{now + timedelta(days=6):%Y-%m-%d}" in page
    steady = next(row for row in table(reviewer_client, "progress") if row["batch"] == "steady")
    assert (steady["submitted"], steady["open"], steady["per_day"]) == ("8", "12", "2.0")
    Batch.objects.update(status="paused")
    assert "No batch is active" in reviewer_client.get(reverse("dashboards")).content.decode()


def test_compute_now_leads_back_only_here(reviewer_client, labeler_client):
    path = reverse("dashboard_refresh")
    assert labeler_client.post(path).status_code == 403 and reviewer_client.get(path).status_code == 405
    assert reviewer_client.post(path, {"next": "/console/dashboards/policies/?group=held_out"})["Location"].endswith(
        "held_out"
    )
    assert reviewer_client.post(path, {"next": "https://elsewhere.example/"})["Location"] == reverse("dashboards")


def test_a_name_is_no_formula(labeler, reviewer_client):
    labeler.name = "=1+1"
    labeler.save()
    rows.submit(rows.make_demonstration_batch(prompts=1).tasks.get(), labeler)
    compute("throughput")
    assert table(reviewer_client, "labelers")[0]["labeler"] == "'=1+1"


def test_a_submission_is_in_its_tasks_batch(labeler):
    """Whoever writes it need not say so, and cannot say otherwise."""
    mine, other = (rows.make_demonstration_batch(name, prompts=1) for name in ("mine", "other"))
    submission = rows.submit(mine.tasks.get(), labeler)
    submission.refresh_from_db()
    assert submission.batch == mine
    Submission.objects.filter(pk=submission.pk).update(batch=other)
    submission.refresh_from_db()
    assert submission.batch == mine
    with pytest.raises(IntegrityError), transaction.atomic():
        mine.tasks.update(batch=other)
        connection.check_constraints()


# Real data -----------------------------------------------------------------------------------------------------


def test_the_table_has_the_order_that_toxicity_gives(tmp_path, labeler, researcher, reviewer_client):
    """InstructGPT's models ranked by the measured toxicity of what they wrote: less is better, equal to two decimals is a tie."""
    toxicity: dict[str, dict[str, float]] = defaultdict(dict)
    text: dict[tuple[str, str], str] = {}
    with builders.shared_file("instructgpt_real_toxicity.csv").open(newline="") as source:
        for row in csv.DictReader(source):
            if row["prompt_type"] == "respectful prompt" and row["sample"].strip():
                toxicity[row["context"]][row["model_type"]] = round(float(row["toxicity"]), 2)
                text[row["context"], row["model_type"]] = row["sample"]
    toxicity = {context: of for context, of in toxicity.items() if len(of) == 12}
    assert len(toxicity) >= 60
    path = tmp_path / "responses.csv"
    with path.open("w", newline="") as file:
        lines = [[context, model, text[context, model]] for context, of in toxicity.items() for model in of]
        csv.writer(file).writerows([["prompt", "model", "response"], *lines])
    imports.import_responses(path=path, by=researcher)
    batch = batches.create_batch(name="less toxic", kind="ranking", k=12, by=researcher)
    for task in batch.tasks.select_related("prompt", "batch__schema"):
        tiers: dict[float, list[str]] = defaultdict(list)
        names = task.task_responses.values_list("response__uuid", "response__model_version__name")
        for name, model in names:
            tiers[toxicity[task.prompt.text][model]].append(str(name))
        rows.submit(task, labeler, tiers=[tiers[level] for level in sorted(tiers)])

    # Directly from the file: every context compares every two models, so that the order by points is that of the scores.
    points: dict[str, float] = defaultdict(float)
    for of in toxicity.values():
        for one, mine in of.items():
            points[one] += sum(
                1 if mine < other else 0.5 for name, other in of.items() if name != one and mine <= other
            )
    compute("policies")
    listed = table(reviewer_client, "policies")
    assert [row["policy"] for row in listed] == sorted(points, key=lambda model: -points[model])
    for row in listed:
        assert float(row["share_of_points"]) == pytest.approx(points[row["policy"]] / (11 * len(toxicity)))
        assert float(row["low"]) < float(row["score"]) < float(row["high"])
    page = reviewer_client.get(reverse("policies"))
    assert [row["model"].name for row in page.context["table"]] == [row["policy"] for row in listed]


# Rounds --------------------------------------------------------------------------------------------------------


def record_night(name: str, number, **metrics):
    model = ModelVersion.objects.filter(name=name).first() or rows.make_model(name)
    facts = {"night": number, "outcome": "promoted", "new_labels": {"rankings": 60, "demonstrations": 0, "held_out": 4}}
    model_versions.record_evaluation(model_version=model, name="night", metrics=facts | metrics, by=None)
    return model


def test_rounds_show_what_nights_recorded(researcher_client, reviewer_client):
    won = {"rate": 0.61, "low": 0.55, "high": 0.67, "n": 300, "by": "people"}
    first = record_night("night-0001-ppo", 1, win_rate_vs_round0=won, kl=3.25, rm_accuracy_fixed=0.72, tax=-0.01)
    record_night("night-0002-ppo", 2, outcome="refused", reason="KL: 12 lies above the ceiling of 10.", kl=12)
    page = researcher_client.get(reverse("rounds")).content.decode()
    assert page.index("night-0002-ppo") < page.index("night-0001-ppo"), "newest first"
    for said in (
        "61.0 %",
        "55.0 % … 67.0 %",
        "by people",
        "3.25",
        "72.0 %",
        "-0.010",
        "KL: 12 lies above",
        f"/models/{first.pk}/",
    ):
        assert said in page
    assert '<td class="number">-10</td>' in page, "the tax is drawn in thousandths"
    assert f"/models/{first.pk}/" not in reviewer_client.get(reverse("rounds")).content.decode()
    one, two = table(reviewer_client, "rounds")
    assert (one["night"], one["rankings"], one["vs_round0_rate"], one["vs_last_rate"]) == ("1", "60", "0.61", "")
    assert (two["outcome"], two["kl"], two["candidate"]) == ("refused", "12", "night-0002-ppo")

    record_night("night-0002-ppo", 2, outcome="promoted", kl=5)  # the night was told of again: the newest stands
    assert [row["kl"] for row in table(reviewer_client, "rounds")] == ["3.25", "5"]


def test_rounds_stand_whatever_a_program_recorded(researcher_client):
    record_night("odd", {"a": 1}, outcome=7, new_labels=[1], kl="high", tax=True, win_rate_vs_last="all", reason=None)
    record_night("odder", None, new_labels={"rankings": "many"}, win_rate_vs_round0={"rate": "most", "by": 3})
    assert researcher_client.get(reverse("rounds")).status_code == 200
    assert len(table(researcher_client, "rounds")) == 2
