"""`python -m training nightly` against a real web half: whole nights, killed nights, sabotaged nights. Stages are recorded (nights.py)."""

import fcntl
import json
from pathlib import Path

import pytest
from django.db import transaction

from labeling import jobs
from labeling.actions import batches, exports, imports, model_versions, tokens
from labeling.models import ApiToken, Batch, Evaluation, Export, ModelVersion, Promotion, Response, Role, Task
from tests import builders
from tests.labeling.rows import submit
from tests.training import nights, recorded
from training.contract import read_model_manifest

pytestmark = pytest.mark.django_db(transaction=True)

GATE = """
[[rule]]
name = "the reward model orders pairs as held-out labelers do"
figure = "parents.rm.accuracy_test_held_out"
floor = 0.6

[[rule]]
name = "KL to the policy it started from"
figure = "model.kl_after"
ceiling = 10.0

[[rule]]
name = "answers that loop"
figure = "evaluations.evaluate.policy.looping_share"
ceiling = 0.05
"""
STEPS = ["export", "sft", "rm", "ppo", "register", "evaluate", "people", "gate", "promote", "record", "sample", "batch"]


class World:
    """A web half with a policy that serves, prompts, a labeler; and a folder of nights."""

    def __init__(self, root: Path, url: str, researcher, labeler):
        self.root, self.labeler = root, labeler
        self.nights = root / "nights"
        self.said = root / "said"
        (root / "gate.toml").write_text(GATE)
        builders.label_schema()
        researcher.grant(Role.ADMIN)
        secret = tokens.create(user=researcher, name="nightly", scopes=list(ApiToken.Scope.values))[1]
        self.environment = {"HEED_URL": url, "HEED_TOKEN": secret, "HEED_RECORDED": str(root / "recorded.json")}
        self.record()
        self.config = {
            "out": str(self.nights),
            "rules": str(root / "gate.toml"),
            "rm": "tiny_rm.toml",
            "ppo": "tiny_ppo.toml",
            "min_rankings": 1,
            "review": ["unreviewed"],
            "next_prompts": 4,
            "next_k": 3,
            "next_temperatures": [0.7, 1.0, 1.3],
            "min_free_gib": 0,
            "launch": ["recorded"],
            "stage": ["recorded"],
        }
        splits = ["train"] * 12 + ["test"] * 3
        rows = [{"prompt": f"Question {n}?", "split": split, "use_case": "chat"} for n, split in enumerate(splits)]
        imports.import_rows(kind="prompts", rows=rows, by=None)
        from labeling.models import Prompt

        Prompt.objects.update(intake="open")
        base = recorded.model("pretrain", {"out": str(root / "base")}, {})
        first = recorded.model("sft", {"out": str(root / "first"), "base_model": str(base)}, {})
        for folder in (base, first):
            model_versions.register_folder(folder=folder, by=None)
        model_versions.promote(model_version=ModelVersion.objects.get(name="first"), reason="the first", by=researcher)
        answers = [
            {
                "prompt": f"Question {n}?",
                "split": "train",
                "model": "first",
                "response": f"{n} {i}",
                "response_external_id": str(i),
            }
            for n in range(4)
            for i in range(3)
        ]
        imports.import_rows(kind="responses", rows=answers, by=None)
        batches.create_batch(name="round 0", kind="ranking", k=3, by=None)

    def record(self, **figures) -> None:
        """What the next stages come to; nothing: all is well."""
        changed = {name: recorded.GOOD.get(name, {}) | values for name, values in figures.items()}
        (self.root / "recorded.json").write_text(json.dumps(changed))

    def label(self, count: int = 1) -> None:
        """Rank tasks that nobody has ranked."""
        tasks = list(Task.objects.filter(kind="ranking", submissions=None).order_by("id")[:count])
        assert len(tasks) == count, "no tasks are left to be ranked"
        for task in tasks:
            submit(task, self.labeler)

    def night(self, *flags: str, **faults) -> int:
        """Run the command; its exit status."""
        settings = self.root / "nightly.toml"
        settings.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in self.config.items()))
        self.said.write_text("")
        return nights.run(["--config", str(settings), *flags], self.said, self.environment, **faults)

    @property
    def last_line(self) -> str:
        return self.said.read_text().strip().splitlines()[-1]

    @property
    def serving(self) -> str:
        return ModelVersion.objects.get(status="serving").name

    def state(self, number: int) -> dict:
        return json.loads((self.nights / f"night-{number:04d}" / "state.json").read_text())


@pytest.fixture
def world(tmp_path, live_server, researcher, labeler, settings, monkeypatch):
    settings.EXPORT_DIR = tmp_path / "exports"

    def build_now(*, export_id: int) -> None:  # the worker's part, as soon as the order is there
        transaction.on_commit(lambda: exports.finish(export=Export.objects.get(pk=export_id)))

    monkeypatch.setattr(jobs.build_export, "defer", build_now)
    return World(tmp_path, live_server.url, researcher, labeler)


def test_nights_train_on_what_the_night_before_ordered(world):
    assert world.night() == 0
    assert world.last_line.startswith("nothing to do: 0 of 1 new rankings")
    assert [path.name for path in world.nights.iterdir()] == ["lock"]
    assert not Export.objects.exists()

    world.label(4)
    assert world.night("--dry-run") == 0
    assert "4 rankings (+4)" in world.said.read_text()
    assert not Export.objects.exists()
    assert world.night() == 0, world.said.read_text()
    assert world.last_line.startswith("night 1: night-0001-ppo serves: every required rule")
    assert (world.serving, Promotion.objects.count()) == ("night-0001-ppo", 2)
    batch = Batch.objects.get(name="night 1")
    assert batch.counts["tasks"] == 4
    prompts = set(Task.objects.filter(batch=batch).values_list("prompt", flat=True))
    assert not prompts & set(Task.objects.exclude(batch=batch).values_list("prompt", flat=True)), "the least covered"
    models = {r.response.model_version.name for t in Task.objects.filter(batch=batch) for r in t.task_responses.all()}
    assert models == {"night-0001-ppo", "first"}, "each writes some, with as many temperatures as responses too"

    assert world.night() == 0
    assert world.last_line.startswith("nothing to do: 0 of 1 new rankings")
    world.label(2)
    assert world.night() == 0
    assert world.serving == "night-0002-ppo"
    assert read_model_manifest(world.nights / "models" / "night-0002-ppo").parents["policy"].name == "first"
    told = Evaluation.objects.get(name="night", model_version__name="night-0002-ppo").metrics
    assert (told["night"], told["new_labels"]["rankings"], told["labels"]["rankings"], told["kl"]) == (2, 2, 6, 3.5)
    assert told["rm_accuracy_fixed"] == 0.7 and told["tax"] == pytest.approx(0.02)
    assert Evaluation.objects.filter(name="fixed set", model_version__name="night-0002-ppo").exists()
    page = (world.nights / "night-0002" / "report.html").read_text()
    for said in (
        "night-0001-ppo",
        "night-0002-ppo",
        "2 rankings",
        "&lt;What&gt; is a sea?",
        "Much salt water.",
        "70.0 %",
    ):
        assert said in page
    assert "http://" not in page and "https://" not in page and "<script" not in page


def test_a_night_waits_for_people_if_it_is_to_ask_them(world, heldout_labeler):
    world.config |= {"people_prompts": 2, "by_model": "judge.toml"}  # beside nightly.toml
    world.config |= {"notify": ["waiting"], "webhook": "http://127.0.0.1:9/"}
    (world.root / "judge.toml").write_text("")
    world.label()
    for is_told in (True, False):  # or would be, if there were a secret to sign with
        assert world.night() == 0
        assert ("not told" in world.said.read_text()) == is_told
        assert world.last_line == "night 1 waits for people: 2 comparisons of 'night 1 evaluation' are open"
    assert world.serving == "first" and world.state(1)["outcome"] is None
    for task in Task.objects.filter(batch__name="night 1 evaluation"):
        ids = {r.response.model_version.name: str(r.response.uuid) for r in task.task_responses.all()}
        submit(task, heldout_labeler, tiers=[[ids["night-0001-ppo"]], [ids["first"]]])
    assert world.night(overtaken_by="base") == 0, world.said.read_text()
    assert world.serving == "base", "what somebody promotes in that moment is not replaced"
    assert "was refused: base serves since this night began" in world.last_line
    told = Evaluation.objects.get(name="night").metrics
    assert (told["win_rate_vs_last"]["rate"], told["win_rate_vs_last"]["by"]) == (1.0, "people")
    assert Evaluation.objects.filter(name="people", measured_by="people", model_version__name="night-0001-ppo").exists()
    assert Evaluation.objects.filter(name="by model", model_version__name="night-0001-ppo").exists()


@pytest.mark.slow
def test_a_night_killed_in_every_step_is_one_night(world):
    world.label(4)
    for step in STEPS:  # its work done, and not yet noted
        assert world.night(kill=f"before {step}") == -9, world.said.read_text()
    assert world.night(kill="before end") == -9
    assert world.state(1)["told"].startswith("night 1: night-0001-ppo serves") and world.state(1)["outcome"] is None
    assert world.night() == 0, world.said.read_text()
    assert world.state(1)["outcome"] == "promoted" and world.state(1)["failures"] == []
    assert (world.serving, Promotion.objects.count(), Export.objects.filter(status="ready").count()) == (
        "night-0001-ppo",
        2,
        1,
    )
    assert set(ModelVersion.objects.values_list("name", flat=True)) == {
        "base",
        "first",
        "night-0001-rm",
        "night-0001-ppo",
    }
    assert Batch.objects.filter(name__startswith="night").count() == 1
    assert Response.objects.exclude(model_version__name="first").count() == 8
    assert Evaluation.objects.filter(name="night").count() == 1
    assert sorted(path.name for path in world.nights.iterdir()) == ["exports", "lock", "models", "night-0001"]
    assert not list(world.nights.rglob(".building-*"))


@pytest.mark.parametrize("sabotage", ["gate", pytest.param("step", marks=pytest.mark.slow)])
def test_sabotaged_nights_leave_the_old_policy_serving(world, sabotage):
    """Figures are those that such a night comes to: the gate refuses with the reason, and the next night succeeds."""
    if sabotage == "gate":
        refused_for = {
            "labels shuffled": ({"rm": {"accuracy_test_held_out": 0.5}}, "0.5 lies below the floor of 0.6"),
            "rankings reversed": ({"rm": {"accuracy_test_held_out": 0.29}}, "0.29 lies below the floor of 0.6"),
            "KL off": (
                {"ppo": {"kl_after": 48.0}, "policy": {"looping_share": 0.4}},
                "48 lies above the ceiling of 10",
            ),
        }
        for figures, reason in refused_for.values():
            world.record(**figures)
            world.label()
            assert world.night() == 0
            assert "was refused: " in world.last_line and reason in world.last_line
            assert world.serving == "first"
        tasks = Task.objects.filter(batch__name="night 3").values("task_responses__response__model_version__name")
        assert {name for task in tasks for name in task.values()} == {"first", "night-0003-ppo"}, (
            "labelers have work after a refusal too, and what was refused is ranked"
        )
    else:
        break_every_step(world)
    world.record()
    world.label()
    assert world.night() == 0, world.said.read_text()
    assert world.serving.endswith("-ppo")


def break_every_step(world: World) -> None:
    """Each fault stops the night with its reason; without it the same command goes on."""
    world.label()
    world.config["min_free_gib"] = 10**6
    assert world.night() == 1 and "fewer than min_free_gib" in world.last_line
    world.config |= {"min_free_gib": 0, "max_gib": 1e-9}
    assert world.night() == 1 and "more than max_gib" in world.last_line
    del world.config["max_gib"]
    world.config["hours"] = 1e-9
    assert world.night() == 1 and "time budget" in world.last_line
    del world.config["hours"]
    assert world.state(1)["failures"] == [], "a spent budget is no failure"

    with (world.nights / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert world.night() == 0 and "another run is at work" in world.last_line

    export = world.root / "exports" / "v0001" / "rankings.jsonl"
    assert world.night(kill="before export") == -9
    whole = export.read_bytes()
    export.write_bytes(whole[:40])
    (world.nights / "exports" / "v0001" / "rankings.jsonl").write_bytes(
        whole[:40]
    )  # here, and where it would come from
    assert world.night() == 1 and "rankings.jsonl" in world.last_line and "the next run tries again" in world.last_line
    export.write_bytes(whole)

    world.record(bytes={"rm": 200_000})
    assert world.night(largest_file=100_000) == 1 and "rm failed: [Errno 27] File too large" in world.last_line
    world.record(fail={"ppo": "iteration 3: not a finite number: loss"})
    assert world.night() == 1 and "ppo failed: iteration 3: not a finite number: loss" in world.last_line
    world.record()
    assert world.night(kill="before register") == -9
    measured = world.nights / "night-0001" / "evaluate-candidate.json"
    measured.write_text("{")
    assert world.night() == 1 and "evaluate failed: JSONDecodeError: " in world.last_line
    assert "Traceback" in (world.nights / "night-0001" / "logs" / "evaluate.log").read_text()
    measured.unlink()
    world.config["hours"] = 1.0
    world.record(fail={"evaluate": nights.OUT_OF_TIME})
    assert (
        world.night() == 1 and "evaluate: the time budget is spent; it alone took all of hours = 1" in world.last_line
    )
    assert [failure["step"] for failure in world.state(1)["failures"]] == ["export", "rm", "ppo", "evaluate"]
    world.record()
    world.config |= {"next_server": "http://127.0.0.1:9", "next_server_model": "m"}
    assert world.serving == "first"
    for _time in range(4):  # tries and one more: what is decided is on record, and not given up
        assert world.night(real_sample=True, impatient=True) == 1, world.said.read_text()
        assert "no answer" in world.said.read_text() and "night 1 (promoted): sample failed" in world.last_line
    begun = world.nights / "night-0001" / "next" / "0.jsonl.run" / "config.json"
    assert not begun.exists(), "a start that failed holds nobody to its settings"
    assert world.serving == "night-0001-ppo" and world.state(1)["outcome"] is None
    assert "night-0001-ppo serves" in world.state(1)["told"]
    assert Evaluation.objects.filter(name="night").count() == 1
    assert "made from first" in (world.nights / "night-0001" / "report.html").read_text()
    del world.config["next_server"], world.config["next_server_model"]
    assert world.night() == 0 and world.state(1)["outcome"] == "promoted"
    assert Batch.objects.get(name="night 1").counts["tasks"] == 4

    world.label()
    world.record(fail={"rm": "out of memory"})
    assert [world.night() for _ in range(3)] == [1, 1, 1]
    assert "the night is given up" in world.last_line and world.state(2)["outcome"] == "failed"
    assert world.serving == "night-0001-ppo"
    world.record()
    assert world.night(kill="after ppo") == -9  # a new night, on the same labels
    (world.nights / "models" / "night-0003-ppo" / "weights").write_bytes(b"x")
    assert world.night() == 1 and "night-0003-ppo was damaged" in world.last_line
    assert world.state(3)["outcome"] == "failed"
