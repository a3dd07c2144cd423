"""What the losses say of errors that can be written down."""

from __future__ import annotations

import math

import pytest
import torch

from geodino.training.losses import SILOG_KEPT, silog_loss


def test_the_log_loss_forgives_most_of_one_factor_for_all_and_nothing_of_a_spread() -> None:
    wanted, known = torch.full((1, 8, 8), 10.0), torch.ones(1, 8, 8, dtype=torch.bool)
    taller = silog_loss(2 * wanted, wanted, known)
    assert float(taller) == pytest.approx(math.sqrt(SILOG_KEPT) * math.log(2), rel=1e-3)
    apart = wanted * torch.tensor([2.0, 0.5]).repeat(4)
    assert float(silog_loss(apart, wanted, known)) == pytest.approx(math.log(2), rel=1e-3)
