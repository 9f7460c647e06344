"""The average of the weights against numbers worked out by hand."""

import pytest
import torch

from training.ema import WeightAverage


def line(weight: float) -> torch.nn.Linear:
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, weight)
    return model


def test_the_average_by_hand():
    """Decay 0.9, weights 1 → 2 → 3: 1, then 0.9·1 + 0.1·2 = 1.1, then 0.9·1.1 + 0.1·3 = 1.29. The model is not touched."""
    model = line(1.0)
    average = WeightAverage(model, decay=0.9)
    for weight in (2.0, 3.0):
        torch.nn.init.constant_(model.weight, weight)
        average.update(model)
    assert model.weight.item() == 3.0
    average.copy_into(model)
    assert model.weight.item() == pytest.approx(1.29, abs=1e-6)


def test_an_average_put_back_goes_on_as_if_never_away():
    model = line(1.0)
    average = WeightAverage(model, decay=0.9)
    torch.nn.init.constant_(model.weight, 5.0)
    average.update(model)
    resumed = WeightAverage(line(7.0), decay=0.9)
    resumed.load_state_dict(average.state_dict())
    for each in (average, resumed):
        each.update(model)
    assert torch.equal(average.state_dict()["weight"], resumed.state_dict()["weight"])
    with pytest.raises(ValueError, match="other parameters"):
        resumed.load_state_dict({"bias": torch.zeros(1)})


def test_small_steps_survive_in_a_model_of_low_precision():
    """In bfloat16 itself, 1 + 0.008 · 0.0078 would stay 1 for ever."""
    model = line(1.0).to(torch.bfloat16)
    average = WeightAverage(model, decay=0.992)
    torch.nn.init.constant_(model.weight, 1.0078125)
    for _ in range(100):
        average.update(model)
    expected = 1.0078125 - 0.0078125 * 0.992**100
    assert average.state_dict()["weight"].item() == pytest.approx(expected, abs=1e-5)


def test_a_decay_that_never_learns_is_refused():
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(line(0.0), decay=1.0)
