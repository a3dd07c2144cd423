"""Looks at a chip: image, labels and points are moved together, and targets and losses mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodino.models.heads import HeightMaps, TreeMaps
from geodino.training.augment import Variety, draw_look, plain_look, recolour, see, see_labels
from geodino.training.losses import TreeTargets, canopy_loss, doubt_loss, footprint_loss, tree_loss
from geodino.training.targets import splat

CHIP, SIZE = 96, 64


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(20, 75), st.integers(20, 75))
def test_a_point_stays_on_the_pixel_it_marks_however_the_chip_is_seen(seed: int, free: float, x: int, y: int) -> None:
    image = torch.zeros(3, CHIP, CHIP)
    image[:, y - 1 : y + 2, x - 1 : x + 2] = 1
    look = draw_look(np.random.default_rng(seed), Variety(free=free, zoom=0.2, shift=0.1), CHIP, SIZE)
    seen = see(image, look)[0].numpy()
    found = look.points(np.array([[x + 0.5, y + 0.5]], np.float32))[0]
    if not (3 < found[0] < SIZE - 3 and 3 < found[1] < SIZE - 3):
        return
    rows, cols = np.indices(seen.shape) + 0.5
    centre = np.array([(cols * seen).sum(), (rows * seen).sum()]) / seen.sum()
    np.testing.assert_allclose(found, centre, atol=0.25)


@pytest.mark.parametrize("free", [0.0, 1.0])
def test_an_upright_look_keeps_north_up_and_left_on_the_left(free: float) -> None:
    for seed in range(20):
        look = draw_look(np.random.default_rng(seed), Variety(free=free, upright=True), CHIP, SIZE)
        assert np.linalg.det(look.matrix) > 0
        assert abs(np.degrees(np.arctan2(look.matrix[1, 0], look.matrix[0, 0]))) < 12


@pytest.mark.parametrize("upright", [False, True])
def test_mirrored_looks_are_half_of_all_and_upright_ones_keep_north_up(upright: bool) -> None:
    variety = Variety(free=0.5, upright=upright, mirrored=True)
    looks = [draw_look(np.random.default_rng(seed), variety, CHIP, SIZE).matrix for seed in range(200)]
    assert 70 < sum(np.linalg.det(matrix) < 0 for matrix in looks) < 130
    north_up = [matrix[1, 1] > 0.9 * np.sqrt(abs(np.linalg.det(matrix))) for matrix in looks]
    assert all(north_up) == upright


@given(st.integers(0, 10_000))
def test_a_look_that_is_not_free_keeps_every_pixel(seed: int) -> None:
    image = torch.rand(3, CHIP, CHIP, generator=torch.Generator().manual_seed(seed))
    look = draw_look(np.random.default_rng(seed), Variety(free=0, shift=0), CHIP, SIZE)
    values = set(image.flatten().tolist())
    seen = see(image, look)
    assert min(abs(value - known) for value in [float(seen[0, 5, 9])] for known in values) < 1e-5
    labels = see_labels(image, look)
    np.testing.assert_allclose(labels.numpy(), seen.numpy(), atol=1e-5)


def test_the_plain_look_is_the_middle_of_the_chip_untouched() -> None:
    image = torch.rand(3, CHIP, CHIP)
    np.testing.assert_allclose(see(image, plain_look(CHIP, SIZE)), image[:, 16:80, 16:80], atol=1e-5)


def test_labels_beyond_the_chip_are_unknown() -> None:
    look = draw_look(np.random.default_rng(1), Variety(free=0, shift=0.5), 64, 64)
    known = see_labels(torch.ones(1, 64, 64), look)[0] > 0.5
    assert 0 < int(known.sum()) < 64 * 64


def test_colours_are_changed_by_no_more_than_asked_and_stay_in_range() -> None:
    image = torch.rand(3, 32, 32)
    assert torch.equal(recolour(image, np.random.default_rng(0), 0.0), image)
    far = [recolour(image, np.random.default_rng(k), 1.0) for k in range(20)]
    assert all(float(seen.min()) >= 0 and float(seen.max()) <= 1 for seen in far)
    assert np.mean([float((seen - image).abs().mean()) for seen in far]) > 0.03


@given(st.lists(st.tuples(st.floats(0, 31.99), st.floats(0, 31.99)), max_size=12))
def test_the_density_of_a_crop_integrates_to_its_trees(trees: list[tuple[float, float]]) -> None:
    found = splat(np.array(trees, np.float32).reshape(-1, 2), 32)
    assert float(found["density"].sum()) == pytest.approx(len(trees), abs=1e-3)
    assert int(found["stands"].sum()) <= len(trees)
    assert bool((found["heat"][found["stands"]] == 1).all())
    assert bool((found["heat"] <= 1).all()) and bool((found["offset"].abs() <= 0.5).all())


def perfect(trees: np.ndarray) -> tuple[TreeMaps, TreeTargets]:
    wanted = {name: value[None] for name, value in splat(trees, 32).items()}
    targets = TreeTargets(**wanted, known=torch.ones(1, 32, 32, dtype=torch.bool))
    heat = torch.where(targets.stands, 9.0, -9.0)
    return TreeMaps(heat, targets.density.clamp_min(1e-6), targets.offset), targets


def test_the_truth_has_the_lowest_tree_loss() -> None:
    said, targets = perfect(np.array([[4.2, 7.9], [20.5, 20.5]], np.float32))
    best = float(tree_loss(said, targets))
    missed = said._replace(heat=torch.full_like(said.heat, -9.0))
    invented = said._replace(heat=torch.where(torch.arange(32) == 12, 9.0, said.heat))
    moved = said._replace(offset=said.offset + 0.4)
    crowded = said._replace(density=said.density * 3)
    for worse in (missed, invented, moved, crowded):
        assert float(tree_loss(worse, targets)) > best + 0.05


def test_what_is_not_known_costs_nothing() -> None:
    said, targets = perfect(np.array([[4.2, 7.9]], np.float32))
    hidden = targets._replace(known=torch.zeros_like(targets.known))
    wrong = TreeMaps(torch.full_like(said.heat, 5.0), said.density * 9, said.offset + 1)
    assert float(tree_loss(wrong, hidden)) == 0
    height = HeightMaps(torch.full((1, 8, 8), 30.0), torch.ones(1, 8, 8))
    known = torch.zeros(1, 8, 8, dtype=torch.bool)
    known[0, :2] = True
    wanted = torch.zeros(1, 8, 8)
    wanted[0, :2] = 30
    assert float(canopy_loss(height, wanted, known, 0.9)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.2, 0.6, 1.0])
def test_the_true_heights_have_the_lowest_canopy_loss_all_along_the_schedule(progress: float) -> None:
    truth = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(2)) * 30 + 1
    known = torch.ones_like(truth, dtype=torch.bool)
    best = float(canopy_loss(HeightMaps(truth, truth), truth, known, progress))
    for worse in (truth * 1.2, truth + 2, truth.flip(1)):
        assert float(canopy_loss(HeightMaps(worse, truth), truth, known, progress)) > best


def test_doubt_is_cheapest_where_the_spread_is_that_of_the_errors() -> None:
    scale = torch.tensor(3.0)
    error = torch.distributions.Laplace(0.0, scale).sample((1, 200, 200)).abs()
    known = torch.ones_like(error, dtype=torch.bool)
    cost = {share: float(doubt_loss(torch.full_like(error, share * 3 * 2**0.5), error, known)) for share in (0.5, 1, 2)}
    assert cost[1] < min(cost[0.5], cost[2]) - 0.05
    truth = torch.full((1, 8, 8), 10.0)
    height = torch.full((1, 8, 8), 12.0, requires_grad=True)
    spread = torch.full((1, 8, 8), 1.0, requires_grad=True)
    all_known = torch.ones_like(truth, dtype=torch.bool)
    plain = canopy_loss(HeightMaps(height, spread), truth, all_known, 0.9)
    with_doubt = canopy_loss(HeightMaps(height, spread), truth, all_known, 0.9, doubt=0.1)
    pulls = [torch.autograd.grad(loss, height)[0] for loss in (plain, with_doubt)]
    torch.testing.assert_close(*pulls)
    assert (
        torch.autograd.grad(canopy_loss(HeightMaps(height, spread), truth, all_known, 0.9, doubt=0.1), spread)[0] < 0
    ).all()


def test_a_footprint_is_compared_with_the_98th_percentile_within_it() -> None:
    height = torch.zeros(1, 20, 20)
    height[0, :10, :10] = torch.linspace(0, 99, 100).view(10, 10)
    disc = torch.zeros(1, 20, 20, dtype=torch.int64)
    disc[0, :10, :10] = 1
    right = torch.tensor([[97.02, float("nan")]])
    said = HeightMaps(height, height)
    assert float(footprint_loss(said, disc, right)) == pytest.approx(0, abs=1e-4)
    assert float(footprint_loss(said, disc, right - 10)) > 8
    assert float(footprint_loss(said, disc, torch.full((1, 2), float("nan")))) == 0
