"""Accuracies by hand, and folds over labelers: disjoint, resumable, and no part of the published model."""

import math

import pytest

from training import contract, ranking_metrics, rm
from training.config import FieldError
from training.data import Comparison, Example
from training.errors import StageError

LIMITS = {"prompt_tokens": 200, "response_tokens": 200}


def comparison(pairs, models, group="training", labeler="a"):
    examples = [Example([1, 2, 3 + i], 2) for i in range(len(models))]
    k = len(models)
    return Comparison(examples, pairs, k * (k - 1) // 2, models, group, "chat", labeler=labeler)


def test_accuracies_by_hand():
    tally = ranking_metrics.Tally("valid")
    tally.add(comparison([(0, 1), (0, 2), (1, 2)], ["old", "new", "new"]), [3.0, 1.0, 2.0])  # right, right, wrong
    tally.add(comparison([(1, 0)], ["new", None], group="held_out"), [0.5, 0.5])  # equal scores are no hit
    assert tally.metrics() == {
        "accuracy_valid": 2 / 4,
        "accuracy_valid_training": 2 / 3,
        "accuracy_valid_held_out": 0.0,
        "accuracy_valid_chat": 2 / 4,
        "accuracy_valid_k3": 2 / 3,
        "accuracy_valid_k2": 0.0,
        "accuracy_by_policies_valid": {
            "new vs old": {"accuracy": 1.0, "pairs": 2},
            "new vs new": {"accuracy": 0.0, "pairs": 1},
            "new vs unnamed": {"accuracy": 0.0, "pairs": 1},
        },
    }


def test_every_labeler_is_held_out_once_and_the_nameless_count_as_one():
    rankings = [comparison([(0, 1)], ["m", "m"], labeler=name) for name in ["a", "b", "c", "d", "e", None, None, "a"]]
    folds = ranking_metrics.fold_labelers(rankings, 3, seed=1)
    assert sorted(str(name) for fold in folds for name in fold) == ["None", "a", "b", "c", "d", "e"]
    assert [len(fold) for fold in folds] == [2, 2, 2]
    assert folds == ranking_metrics.fold_labelers(rankings[::-1], 3, seed=1), "who they are decides, not their order"
    with pytest.raises(StageError, match="6 labelers have rankings to train on, fewer than 7 folds"):
        ranking_metrics.fold_labelers(rankings, 7, seed=1)


def test_mean_and_standard_error_by_hand():
    figures = ranking_metrics.summarize_folds([0.7, 0.8, 0.75])
    assert figures["accuracy_labeler_folds"] == pytest.approx(0.75)
    assert figures["accuracy_labeler_folds_standard_error"] == pytest.approx(0.05 / math.sqrt(3))


@pytest.fixture(scope="module")
def many_labelers(export, tmp_path_factory):
    """The export's rankings, ranked by four labelers in turn."""
    from tests.loop import world

    opened = contract.read_export(export)
    rows = [
        contract.msgspec.structs.replace(
            row,
            rankings=[contract.msgspec.structs.replace(r, labeler=f"simulated-{i % 4}") for r in row.rankings],
        )
        for i, row in enumerate(opened.rankings())
    ]
    folder = tmp_path_factory.mktemp("labelers") / "v0002"
    world.write_export(folder, 2, list(opened.prompts()), list(opened.demonstrations()), rows)
    return folder


def test_folds_resume_and_leave_the_published_model_as_it_is(sft_model, many_labelers, tmp_path, monkeypatch):
    def run(name, **fields):
        config = rm.Config(
            out=str(tmp_path / name),
            sft_model=str(sft_model),
            export=str(many_labelers),
            batch_size=2,
            learning_rate=1e-3,
            **LIMITS,
            **fields,
        )
        folder = rm.run(config)
        return contract.read_model_manifest(folder).metrics, (folder / "model.safetensors").read_bytes()

    plain, weights = run("plain")
    straight, same_weights = run("straight", labeler_folds=2, checkpoint_every=2)
    assert same_weights == weights, "the published model learns from all, folds or none"
    each = straight["accuracy_of_each_labeler_fold"]
    assert len(each) == 2
    assert straight["accuracy_labeler_folds"] == pytest.approx(sum(each) / 2)
    assert {name: straight[name] for name in plain} == plain

    with pytest.raises(
        FieldError, match=r"9 are not fewer than a labeler fold's [56], .* give --warmup-steps below [56]"
    ):
        run("dry", labeler_folds=2, warmup_steps=9, dry_run=True)
    trained = []
    backward = rm.backward_mean

    def killed(runner, batch, *given, **named):
        trained.append({comparison.labeler for comparison in batch})
        if len(trained) == 9:  # in the second fold: each has five or six steps
            raise MemoryError
        return backward(runner, batch, *given, **named)

    monkeypatch.setattr(rm, "backward_mean", killed)
    with pytest.raises(MemoryError):
        run("killed", labeler_folds=2, checkpoint_every=2)
    first = set.union(*trained[:3])
    assert len(first) == 2, "two of four labelers in the first fold"
    assert first.isdisjoint(set.union(*trained[6:9])), "and the other two in the second"
    resumed, resumed_weights = run("killed", labeler_folds=2, checkpoint_every=2)
    assert (resumed, resumed_weights) == (straight, weights)
    assert first.isdisjoint(trained[9]), "it went on in the second fold"
    steps = manifest_steps(tmp_path / "straight")
    assert len(trained) - 1 < 11 + steps + 2, "and there from its checkpoint: at most one step was done twice"


def manifest_steps(folder):
    """Steps of the published model's own training."""
    last = (folder / "training_log.jsonl").read_text().splitlines()[-1]
    return contract.msgspec.json.decode(last)["step"] + 1
