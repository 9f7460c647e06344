"""The registry: manifests in, lineage kept, one policy serving."""

import hashlib
import json
import threading

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.urls import reverse
from django.utils import timezone

from labeling.actions import model_versions
from labeling.errors import Conflict, Forbidden, Invalid
from labeling.models import Evaluation, Export, ModelVersion, Promotion
from labeling.views.evaluations import shown
from tests.labeling.rows import make_model, make_prompt, make_responses
from training import contract

pytestmark = pytest.mark.django_db


def make_folder(path, name="sft-1", stage="sft", parents=None, export=None, **fields):
    """A small model folder with a manifest."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.safetensors").write_bytes(name.encode())
    refs = {role: contract.parent_ref(folder) for role, folder in (parents or {}).items()}
    defaults = {"config": {"lr": 1e-5}, "metrics": {"loss": 1.5}, "seed": 1}
    contract.write_model_manifest(path, name=name, stage=stage, parents=refs, export=export, **defaults | fields)
    return path


def register(folder, **options) -> ModelVersion:
    return model_versions.register_folder(folder=folder, by=None, **options)


def make_policy(name: str) -> ModelVersion:
    return make_model(name, stage="ppo", manifest={}, manifest_sha256=hashlib.sha256(name.encode()).hexdigest())


@pytest.fixture
def base(tmp_path):
    return make_folder(tmp_path / "base", "base", "pretrain")


def test_registers_a_folder_with_lineage(tmp_path, base):
    export = Export.objects.create(number=3, status="ready", data_sha256="a" * 64, finished_at=timezone.now(), query={})
    ref = contract.ExportRef(name="v0003", data_sha256="a" * 64)
    parent = register(base)
    sft = register(make_folder(tmp_path / "sft", parents={"base": base}, export=ref, few_shot_prefix="Q: "))
    assert (sft.stage, sft.status, sft.few_shot_prefix) == ("sft", "candidate", "Q: ")
    assert list(sft.parents.all()) == [parent]
    assert list(parent.children.all()) == [sft]
    assert sft.export == export
    assert sft.uri == str((tmp_path / "sft").resolve())
    assert sft.manifest["metrics"] == {"loss": 1.5}
    assert sft.manifest_sha256 == contract.hash_file(tmp_path / "sft" / "manifest.json")


def test_registering_twice_is_one_row(base):
    assert register(base) == register(base)
    assert ModelVersion.objects.count() == 1


def test_a_name_with_another_manifest_is_a_conflict(tmp_path, base):
    register(base)
    with pytest.raises(Conflict, match="base"):
        register(make_folder(tmp_path / "other", "base", "pretrain", seed=2))
    assert ModelVersion.objects.count() == 1


def test_a_name_known_from_imports_is_adopted(base):
    outside = make_model("base")
    make_responses(make_prompt(), "a", model="base")
    registered = register(base)
    assert registered.pk == outside.pk
    assert registered.stage == "pretrain"
    assert registered.responses.count() == 1


def test_an_unknown_parent_is_refused(tmp_path, base):
    with pytest.raises(Invalid, match=r"parents.base: no registered model 'base'"):
        register(make_folder(tmp_path / "sft", parents={"base": base}))
    assert not ModelVersion.objects.exists()


def test_an_unknown_export_is_refused(tmp_path):
    ref = contract.ExportRef(name="v0003", data_sha256="a" * 64)
    with pytest.raises(Invalid, match="no export v0003"):
        register(make_folder(tmp_path / "sft", export=ref))


def test_a_changed_file_is_refused(base):
    (base / "model.safetensors").write_bytes(b"besa")
    with pytest.raises(Invalid, match=r"model\.safetensors.*checksum"):
        register(base)


@pytest.mark.parametrize("manifest", [b"", b"{}", b"[1]", b'{"kind": "heed-model"}', b"\xff"])
def test_a_broken_manifest_is_refused_by_name(manifest):
    with pytest.raises(Invalid, match=r"manifest\.json"):
        model_versions.register(manifest=manifest, uri="", by=None)


def test_nul_cannot_be_stored_and_is_refused(tmp_path):
    folder = make_folder(tmp_path / "m", config={"note": "a\x00b"})
    with pytest.raises(Invalid, match="NUL"):
        register(folder)
    with pytest.raises(Invalid, match="NUL"):
        model_versions.record_evaluation(model_version=make_policy("p"), name="e", metrics={"a": "\x00"}, by=None)


def test_an_evaluation_recorded_twice_is_one_row():
    policy = make_policy("p")
    first = model_versions.record_evaluation(model_version=policy, name="gold", metrics={"a": 1, "b": 2}, by=None)
    again = model_versions.record_evaluation(model_version=policy, name="gold", metrics={"b": 2, "a": 1}, by=None)
    other = model_versions.record_evaluation(model_version=policy, name="gold", metrics={"a": 1, "b": 3}, by=None)
    assert first == again != other
    assert Evaluation.objects.count() == 2


def test_what_measured_is_kept_and_never_another_than_the_metrics_say():
    policy = make_policy("p")

    def record(metrics, **options):
        return model_versions.record_evaluation(model_version=policy, name="e", metrics=metrics, by=None, **options)

    assert record({"a": 1}).measured_by == "unstated"
    assert record({"by": "model", "a": 1}).measured_by == "model"
    assert record({"a": 1}, measured_by="people") != record({"a": 1}, measured_by="task") != record({"a": 1})
    with pytest.raises(Invalid, match="by 'people', and its metrics say by 'model'"):
        record({"by": "model", "a": 1}, measured_by="people")
    with pytest.raises(Invalid, match="expected one of people, model"):
        record({"by": "stars", "a": 1})


@pytest.mark.parametrize(("name", "metrics"), [("", {"a": 1}), ("e", {}), ("e", {"a": float("nan")}), ("e", [1])])
def test_an_evaluation_needs_name_and_figures(name, metrics):
    with pytest.raises(Invalid):
        model_versions.record_evaluation(model_version=make_policy("p"), name=name, metrics=metrics, by=None)


def statuses() -> dict[str, str]:
    return dict(ModelVersion.objects.values_list("name", "status"))


def test_promoting_retires_the_one_before(admin_user):
    first, second = make_policy("first"), make_policy("second")
    model_versions.promote(model_version=first, reason="the only one", by=admin_user)
    promotion = model_versions.promote(model_version=second, reason="wins 70 %", metrics={"win": 0.7}, by=admin_user)
    assert (promotion.previous, promotion.promoted_by, promotion.metrics) == (first, admin_user, {"win": 0.7})
    assert statuses() == {"first": "retired", "second": "serving"}


def test_promoting_what_serves_changes_nothing():
    policy = make_policy("p")
    first = model_versions.promote(model_version=policy, reason="good", by=None)
    assert model_versions.promote(model_version=policy, reason="again", by=None) == first
    assert Promotion.objects.count() == 1


@pytest.mark.parametrize("stage", ["rm", "external"])
def test_what_is_no_policy_cannot_serve(stage):
    version = make_model("m", stage=stage, manifest={}, manifest_sha256="a" * 64)
    with pytest.raises(Invalid, match="no policy"):
        model_versions.promote(model_version=version, reason="why not", by=None)


def test_a_reason_is_needed():
    policy = make_policy("p")
    with pytest.raises(Invalid, match="reason"):
        model_versions.promote(model_version=policy, reason=" ", by=None)
    with pytest.raises(Invalid, match="reason"):
        model_versions.rollback(reason="", by=None)


def test_rollback_goes_back_step_by_step():
    a, b, c = (make_policy(name) for name in "abc")
    for policy in (a, b, c):
        model_versions.promote(model_version=policy, reason="better", by=None)
    assert model_versions.rollback(reason="worse", by=None).model_version == b
    assert model_versions.rollback(reason="worse too", by=None).model_version == a
    with pytest.raises(Conflict, match="no earlier policy"):
        model_versions.rollback(reason="all bad", by=None)
    assert statuses() == {"a": "serving", "b": "retired", "c": "retired"}
    model_versions.promote(model_version=c, reason="mended", by=None)
    assert model_versions.rollback(reason="not mended", by=None).model_version == a


def test_a_rollback_of_what_was_seen_happens_once():
    a, b, c = (make_policy(name) for name in "abc")
    for policy in (a, b, c):
        model_versions.promote(model_version=policy, reason="better", by=None)
    model_versions.rollback(reason="worse", seen_serving="c", by=None)
    with pytest.raises(Conflict, match="b serves now, not c"):
        model_versions.rollback(reason="worse", seen_serving="c", by=None)
    assert statuses()["b"] == "serving"


@pytest.mark.django_db(transaction=True)
def test_promotions_at_once_leave_one_serving():
    policies = [make_policy(f"p{i}") for i in range(6)]
    errors, barrier = [], threading.Barrier(len(policies))

    def promote(policy):
        barrier.wait()
        try:
            model_versions.promote(model_version=policy, reason="race", by=None)
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=promote, args=[p]) for p in policies]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert sorted(statuses().values()) == ["retired"] * 5 + ["serving"]
    assert Promotion.objects.order_by("id").last().model_version.status == "serving"


def test_commands(base, tmp_path, capsys, admin_user):
    call_command("register_model", str(base), "--uri=s3://models/base")
    call_command("promote", "base", "--reason=first", f"--by={admin_user.email}")
    assert "base serves." in capsys.readouterr().out
    assert ModelVersion.objects.get().uri == "s3://models/base"
    assert Promotion.objects.get().promoted_by == admin_user
    call_command("register_model", str(make_folder(tmp_path / "sft", parents={"base": base})))
    call_command("promote", "sft-1", "--reason=better")
    call_command("promote", "--rollback", "--reason=worse")
    assert statuses() == {"base": "serving", "sft-1": "retired"}
    for arguments in (["promote", "nobody", "--reason=x"], ["promote", "--rollback", "--reason=x"],
                      ["promote", "base", "--reason=x", "--by=no@example.org"], ["register_model", str(tmp_path)]):  # fmt: skip
        with pytest.raises(CommandError):
            call_command(*arguments)


def test_the_same_weights_are_registered_again_with_a_few_shot_prefix(base, tmp_path):
    call_command("register_model", str(base))
    (tmp_path / "prefix.txt").write_text("Q: 1? A: 2.\n")
    flags = ["--name=base-prompted", f"--few-shot-prefix={tmp_path / 'prefix.txt'}"]
    for _ in range(2):
        call_command("register_model", str(base), *flags)
    prompted = ModelVersion.objects.get(name="base-prompted")
    assert (prompted.few_shot_prefix, prompted.stage) == ("Q: 1? A: 2.\n", "pretrain")
    assert list(prompted.parents.values_list("name", flat=True)) == ["base"]
    assert (tmp_path / "base-prompted" / "model.safetensors").samefile(base / "model.safetensors")
    with pytest.raises(CommandError, match="go together"):
        call_command("register_model", str(base), "--name=x")


# ---- the pages ------------------------------------------------------------------------------------------------------


@pytest.fixture
def admin(client_for, admin_user):
    return client_for(admin_user)


def test_a_page_shows_lineage_figures_and_children(tmp_path, base, researcher_client):
    sft_folder = make_folder(tmp_path / "sft", parents={"base": base})
    rm_folder = make_folder(tmp_path / "rm", "rm-1", "rm", parents={"sft": sft_folder})
    ppo_folder = make_folder(tmp_path / "ppo", "ppo-1", "ppo", parents={"sft": sft_folder, "rm": rm_folder})
    _base, sft, _rm, ppo = (register(folder) for folder in (base, sft_folder, rm_folder, ppo_folder))
    model_versions.record_evaluation(model_version=ppo, name="gold", metrics={"win_rate": 0.71234}, by=None)
    page = researcher_client.get(reverse("model_version", args=[ppo.pk]))
    roles = {tuple(a.roles): a.model.name for a in page.context["lineage"]}
    assert roles == {("sft",): "sft-1", ("rm",): "rm-1"}
    assert "0.7123" in page.text
    assert "ppo-1" in researcher_client.get(reverse("model_version", args=[sft.pk])).text
    assert researcher_client.get(reverse("model_versions") + "?stage=rm").context["page"].paginator.count == 1


def test_the_page_keeps_people_and_models_apart(researcher_client):
    policy = make_policy("p")
    agreement = {"judge": {"agreement": 0.71, "low": 0.65, "high": 0.77, "n": 200}, "reward": {"agreement": 0.5}}
    judge = {"win_rate": 0.625, "low": 0.5, "high": 0.75, "n": 64, "no_verdict": 2}
    figures = [
        ("blind", {"by": "people", "win_rate": 0.44}),
        ("night", {"by": "model", "judge": {"win_rate": 0.1111}}),
        ("night", {"by": "model", "judge": judge, "agreement": agreement}),
        ("tasks", {"by": "task", "tax": [{"figure": "perplexity", "value": 31.25}, {"figure": "rte", "value": 0.5}]}),
    ]
    for name, metrics in figures:
        model_versions.record_evaluation(model_version=policy, name=name, metrics=metrics, by=None)
    page = researcher_client.get(reverse("model_version", args=[policy.pk]))
    people, model, task = page.context["measured"]
    odd = [shown(value) for value in ({"b": 1, "a": 2}, {"a": "x"}, [{"a": []}], [], True, None, {})]
    assert odd == ["a 2, b 1", '{"a": "x"}', '[{"a": []}]', "–", "yes", "–", "–"], (
        "whatever a program records, it is shown"
    )
    assert people.agreement == [("judge, in night", "0.71 (0.65 to 0.77)"), ("reward, in night", "0.5")]
    assert [lines.evaluation.name for lines in model.figures] == ["night"], "the newest of a name"
    assert ("judge · win rate", "0.625 (0.5 to 0.75)") in model.figures[0].lines
    assert ("judge · low", "0.5") not in model.figures[0].lines
    assert task.figures[0].tables == [("tax", [["figure", "value"], ["perplexity", "31.25"], ["rte", "0.5"]])]
    assert page.text.index("Measured by: people") < page.text.index("Measured by: a model")
    assert "0.1111" not in page.text and "Earlier evaluations" in page.text


def test_two_models_are_compared(tmp_path, researcher_client):
    log = [{"step": step, "loss": 2.0 / step, "rate": 0.1} for step in range(1, 90)]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, factor in zip(folders, (1, 2), strict=True):
        folder.mkdir()
        rows = [row | {"loss": row["loss"] * factor} for row in log[:: 3 - factor]]
        (folder / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        make_folder(
            folder, folder.name, metrics={"loss": 1.5 * factor, "by": {"story": 0.5}}, config={"lr": factor, "k": 1}
        )
    a, b = (register(folder) for folder in folders)
    model_versions.record_evaluation(model_version=b, name="gold", metrics={"win": 0.75}, by=None)
    both, only_a = make_prompt("Both?"), make_prompt("One?")
    for model, prompt in ((a, both), (b, both), (a, only_a)):
        make_responses(prompt, f"{model} said so.", model=model.name)
    path = reverse("model_compare")
    page = researcher_client.get(path, {"a": a.pk, "b": b.pk})
    rows = {row.name: (row.a, row.b, row.by) for row in page.context["figures"]}
    assert rows["training · loss"] == ("1.5", "3", "+1.5") and rows["gold · win"] == ("–", "0.75", "")
    assert [(row.name, row.a, row.b) for row in page.context["settings"]] == [("lr", "1", "2")]
    assert [curve.title for curve in page.context["curves"]] == ["loss", "rate"]
    first = page.context["curves"][0].rows[0]
    assert (first.name, first.cells) == ("0 %", ["2", "4"])
    assert [(one.prompt, one.a, one.b) for one in page.context["answers"]] == [(both, "a said so.", "b said so.")]
    assert "a said so." in page.text and not page.context["without_log"]
    (folders[1] / "training_log.jsonl").write_text('{"step": 1, "loss": 0.0}\n')  # no longer what was registered
    assert researcher_client.get(path, {"a": a.pk, "b": b.pk}).context["without_log"] == [b]
    assert researcher_client.get(path, {"a": a.pk}).status_code == 200
    assert researcher_client.get(path, {"a": a.pk, "b": 10**9}).status_code == 422


def test_promoting_and_going_back_by_page(admin):
    a, b = make_policy("a"), make_policy("b")
    for model in (a, b, b):
        response = admin.post(reverse("model_promote", args=[model.pk]), {"reason": f"{model} is good"}, follow=True)
        assert "serves now." in response.text
    assert Promotion.objects.count() == 2
    back = {"reason": "worse", "serving": "b"}
    assert "a serves again." in admin.post(reverse("model_rollback"), back, follow=True).text
    assert admin.post(reverse("model_rollback"), back).status_code == 409
    assert statuses() == {"a": "serving", "b": "retired"}


def test_promotion_needs_a_reason_and_a_policy(admin):
    policy, rm = make_policy("a"), make_model("rm", stage="rm", manifest={}, manifest_sha256="b" * 64)
    assert admin.post(reverse("model_promote", args=[policy.pk]), {"reason": " "}).status_code == 422
    assert admin.post(reverse("model_promote", args=[rm.pk]), {"reason": "x"}).status_code == 422
    assert not Promotion.objects.exists()


def test_a_researcher_sees_no_promotion_form(researcher_client):
    policy = make_policy("a")
    page = researcher_client.get(reverse("model_version", args=[policy.pk])).text
    assert reverse("model_promote", args=[policy.pk]) not in page
    assert "An admin decides which policy serves" in page
    assert "An admin promotes one." in researcher_client.get(reverse("model_versions")).text
    for model in (policy, make_policy("b")):
        model_versions.promote(model_version=model, reason="better", by=None)
    page = researcher_client.get(reverse("model_versions")).text
    assert "An admin can go back to a." in page
    assert reverse("model_rollback") not in page


# ---- the gate -------------------------------------------------------------------------------------------------------


def verdict(name="KL", value=4.0, ceiling=6.0, **fields) -> dict:
    plain = {"figure": "model.kl_after", "floor": None, "required": True, "reason": f"{value} was seen."}
    return plain | {"name": name, "value": value, "ceiling": ceiling} | fields


def gate_check(policy, *verdicts, by=None):
    return model_versions.record_gate_check(model_version=policy, rules="[[rule]]", verdicts=list(verdicts), by=by)


def test_a_gate_check_is_kept_once_and_holds_by_its_figures():
    policy = make_policy("p")
    passed = gate_check(policy, verdict(), verdict("advice", None, required=False))
    assert passed == gate_check(policy, verdict(), verdict("advice", None, required=False))
    promotion = model_versions.promote(model_version=policy, reason="r", gate_check=passed, by=None)
    refused = gate_check(policy, verdict(), verdict("win rate", 0.4, None, floor=0.5), verdict("loss", None))
    assert (passed.holds, refused.holds) == (True, False)
    assert [one["name"] for one in refused.refusals] == ["win rate", "loss"]
    assert passed.rules_sha256 == hashlib.sha256(b"[[rule]]").hexdigest()
    for row in (refused, promotion):
        with pytest.raises(IntegrityError, match="kept as they were"), transaction.atomic():
            row.delete()


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([], "required rule"),
        ([verdict(required=False)], "required rule"),
        ([verdict(), verdict(floor="x")], r"verdicts\[1\]: field floor"),
        ([verdict(holds=True)], r"verdicts\[0\]: field holds: unknown"),
        ([verdict(value=float("nan"))], "finite"),
        ([verdict(ceiling=float("inf"))], "finite"),
        ([verdict(ceiling=None)], "a floor, a ceiling or both"),
        ([verdict(name="a\x00b")], "NUL"),
        (["x"], r"verdicts\[0\]"),
    ],
)
def test_verdicts_that_break_the_contract_are_refused(verdicts, said):
    with pytest.raises(Invalid, match=said):
        gate_check(make_policy("p"), *verdicts)


def test_what_the_gate_refuses_serves_by_an_admins_word_alone(admin_user, researcher):
    old, new = make_policy("old"), make_policy("new")
    model_versions.promote(model_version=old, reason="first", by=None)
    gate_check(new, verdict(value=9.0))
    with pytest.raises(model_versions.GateRefused) as refused:
        model_versions.promote(model_version=new, reason="hope", by=admin_user)
    assert refused.value.errors == [{"place": "KL", "message": "9.0 was seen."}]
    with pytest.raises(Forbidden):
        model_versions.promote(model_version=new, reason="hope", override_by="Rita", by=researcher)
    assert statuses() == {"old": "serving", "new": "candidate"}
    promotion = model_versions.promote(model_version=new, reason="a demo", override_by=" Ada ", by=admin_user)
    assert (promotion.override_by, promotion.gate_check.holds) == ("Ada", False)
    assert model_versions.rollback(reason="as feared", by=None).model_version == old


def test_a_refusal_stands_until_an_admin_records_a_newer_check_that_holds(admin_user, researcher):
    policy = make_policy("p")

    def promote(**options):
        return model_versions.promote(model_version=policy, reason="mended", by=researcher, **options)

    before = gate_check(policy, verdict(value=1.0), by=admin_user)
    gate_check(policy, verdict(value=9.0))
    for later in (
        before,
        gate_check(policy, verdict(value=2.0), by=researcher),
        gate_check(policy, verdict(value=3.0)),
    ):
        for given in (None, later):
            with pytest.raises(model_versions.GateRefused, match="until an admin records") as refused:
                promote(gate_check=given)
            assert refused.value.errors == [{"place": "KL", "message": "9.0 was seen."}]
    lifting = gate_check(policy, verdict(value=1.0), by=admin_user)  # what was said before the refusal, said again
    assert lifting == gate_check(policy, verdict(value=1.0), by=admin_user) != before
    with pytest.raises(model_versions.GateRefused):
        promote(gate_check=gate_check(policy, verdict(value=9.0)))
    promotion = promote(override_by="Rita")
    assert (promotion.override_by, promotion.gate_check) == ("", lifting)
    gate_check(policy, verdict(value=8.0), by=researcher)  # a new refusal stands again
    model_versions.promote(model_version=make_policy("q"), reason="better", by=None)
    with pytest.raises(model_versions.GateRefused):
        promote()


def test_an_admin_promotes_anyway_by_page_with_a_name(admin, admin_user):
    policy = make_policy("p")
    gate_check(policy, verdict(value=9.0), verdict("advice", None, required=False))
    gate_check(policy, verdict(value=1.0))
    page = admin.get(reverse("model_version", args=[policy.pk])).text
    assert "Promote anyway" in page and "9.0 was seen." in page and "does not hold (advice)" in page
    assert "The refusal stands until an admin records a newer check" in page
    assert page.index("9.0 was seen.") < page.index("1.0 was seen.")
    assert "refused by the gate" in admin.get(reverse("model_versions")).text
    path = reverse("model_promote", args=[policy.pk])
    answer = admin.post(path, {"reason": "a demo"})
    assert answer.status_code == 409 and "9.0 was seen." in answer.text
    assert admin.post(path, {"reason": " ", "override_by": "Ada"}).status_code == 422
    assert not Promotion.objects.exists()
    page = admin.post(path, {"reason": "a demo", "override_by": "Ada"}, follow=True).text
    assert "serves now." in page and "against the gate, by Ada" in page


def test_the_command_says_why_the_gate_refuses(admin_user):
    policy = make_policy("p")
    gate_check(policy, verdict(value=9.0))
    with pytest.raises(CommandError, match=r"KL: 9\.0 was seen"):
        call_command("promote", "p", "--reason=x")
    call_command("promote", "p", "--reason=x", "--override=Ada")
    assert Promotion.objects.get().override_by == "Ada"
