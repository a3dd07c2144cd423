"""The line from digital numbers to 0..1: which rule applies, and that it is a fact of the scene."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodino.errors import ConfigError
from geodino.radiometry import PROFILES, WHITE, decide, profile, stretch

RNG = np.random.default_rng(0)


def test_uint8_is_divided_by_255_exactly() -> None:
    line = decide("uint8", None, None)
    assert line is not None and line.note == "uint8"
    dn = np.broadcast_to(np.arange(256, dtype=np.uint8), (3, 1, 256))
    expected = (np.arange(256) / 255).astype(np.float32)
    np.testing.assert_array_equal(line.apply(dn), np.broadcast_to(expected, (3, 1, 256)))


def test_uint8_stays_a_picture_even_where_a_scale_is_stated() -> None:
    line = decide("uint8", (1e-4,) * 3, (0.0,) * 3)
    assert line is not None and line.note == "uint8"


def test_scale_and_offset_give_reflectance_with_white_at_a_stated_value() -> None:
    line = decide("uint16", (1e-4, 1e-4, 2e-4), (-0.1, -0.1, 0.0))
    assert line is not None and "raster:scale/offset" in line.note
    dn = np.array([1000, 1000 + 1e4 * WHITE, 1e4 * WHITE / 4], np.uint16).reshape(3, 1, 1)
    np.testing.assert_allclose(line.apply(dn).ravel(), [0.0, 1.0, 0.5], atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_without_any_statement_the_scene_must_be_stretched(dtype: str) -> None:
    assert decide(dtype, None, None) is None
    assert decide(dtype, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)) is None


def test_a_stretch_puts_the_2nd_and_98th_percentile_at_0_and_1() -> None:
    samples = RNG.normal(800, 150, (3, 200, 200)).astype(np.uint16)
    line = stretch(samples, np.ones((200, 200), bool))
    picture = line.apply(samples)
    assert np.mean(picture == 0) == pytest.approx(0.02, abs=0.005)
    assert np.mean(picture == 1) == pytest.approx(0.02, abs=0.005)
    low, high = np.percentile(samples, [2, 98])
    assert line.note.endswith(f"{low:g} to {high:g}")


def test_a_stretch_is_one_line_for_all_bands_so_green_stays_green() -> None:
    samples = np.stack([RNG.normal(mean, 50, (100, 100)) for mean in (300, 600, 200)])
    picture = stretch(samples, np.ones((100, 100), bool)).apply(samples)
    assert len(set(stretch(samples, np.ones((100, 100), bool)).gain)) == 1
    assert picture[1].mean() > picture[0].mean() > picture[2].mean()


def test_a_stretch_does_not_see_invalid_pixels_or_nan() -> None:
    samples = RNG.uniform(100, 200, (3, 50, 50))
    valid = np.ones((50, 50), bool)
    line = stretch(samples, valid)
    spoiled = np.concatenate([samples, np.full((3, 50, 50), 1e6)], axis=2)
    spoiled[:, 0, 60] = np.nan
    assert stretch(spoiled, np.concatenate([valid, ~valid], axis=1)) == line
    spoiled[0, 3, 55] = np.nan
    assert stretch(spoiled, np.concatenate([valid, ~valid], axis=1)) == line


@pytest.mark.parametrize(("value", "expected"), [(7.0, 0.5), (np.nan, 0.0)])
def test_a_scene_of_one_value_or_none_still_has_a_line(value: float, expected: float) -> None:
    samples = np.full((3, 4, 4), value)
    picture = stretch(samples, np.ones((4, 4), bool)).apply(np.full((3, 4, 4), 7.0))
    np.testing.assert_array_equal(picture, np.float32(expected))


@given(st.sampled_from(sorted(PROFILES)), st.integers(0, 65535), st.integers(1, 30))
def test_pixels_do_not_depend_on_their_neighbours(name: str, dn: int, side: int) -> None:
    around = np.random.default_rng(dn).integers(0, 65535, (3, side, side)).astype(np.uint16)
    around[:, 0, 0] = dn
    alone = np.full((3, 1, 1), dn, np.uint16)
    picture = profile(name).apply(around)
    assert picture.dtype == np.float32 and picture.min() >= 0 and picture.max() <= 1
    np.testing.assert_array_equal(picture[:, :1, :1], profile(name).apply(alone))


def test_the_reflectance_profiles_agree_on_the_same_ground() -> None:
    reflectance = np.linspace(0, 0.5, 30).reshape(3, 2, 5)
    as_integers = profile("reflectance-10000").apply(reflectance * 1e4)
    np.testing.assert_allclose(profile("reflectance-1").apply(reflectance), as_integers, atol=1e-6)


def test_an_unknown_profile_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="no radiometry profile named reflectance-1000; did you mean reflectance-1"):
        profile("reflectance-1000")
