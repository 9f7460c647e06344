"""The adaptive KL coefficient against numbers worked out by hand."""

import pytest

from training.kl_control import KlController


def test_the_coefficient_by_hand():
    """Target 6: KL 6.6 is an error of 0.1, so ·1.01; KL 60 is clipped to 0.2, ·1.02; KL 0 to −0.2, ·0.98."""
    control = KlController(0.1, target=6.0)
    seen = []
    for kl in (6.6, 60.0, 0.0, 6.0):
        control.update(kl)
        seen.append(control.coef)
    assert seen == pytest.approx([0.101, 0.10302, 0.1009596, 0.1009596], rel=1e-9)


def test_without_a_target_the_coefficient_is_fixed():
    control = KlController(0.02, target=None)
    control.update(100.0)
    assert control.coef == 0.02


def test_the_coefficient_survives_a_checkpoint():
    control, resumed = KlController(0.1, target=1.0), KlController(0.1, target=1.0)
    control.update(5.0)
    resumed.load_state_dict(control.state_dict())
    assert resumed.coef == control.coef == pytest.approx(0.102)
