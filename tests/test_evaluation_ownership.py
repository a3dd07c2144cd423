"""Ground that several chips of a scene see is owned by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from geodino.evaluation.ownership import owned_windows
from geodino.grid import Window


def spread(length: int, size: int) -> list[int]:
    """Starts of as few chips as cover a length, spread evenly."""
    count = -(-length // size)
    return [0] if count == 1 else [round(i * (length - size) / (count - 1)) for i in range(count)]


def table(rows: list[int], cols: list[int], scene: str, gsd_m: float) -> pd.DataFrame:
    corners = [(col, row) for row in rows for col in cols]
    west, north = ([500_000 + c * gsd_m for c, _ in corners], [4_000_000 - r * gsd_m for _, r in corners])
    return pd.DataFrame({"scene": scene, "west": west, "north": north})


@given(height=st.integers(32, 400), width=st.integers(32, 400), size=st.sampled_from([32, 64, 96]))
def test_what_chips_cover_is_owned_once(height: int, width: int, size: int) -> None:
    rows, cols = spread(max(height, size), size), spread(max(width, size), size)
    owned = owned_windows(table(rows, cols, "a", 0.6), size, 0.6)
    times = np.zeros((max(height, size), max(width, size)), int)
    corners = [(row, col) for row in rows for col in cols]
    for (row, col), window in zip(corners, owned, strict=True):
        assert Window(0, 0, size, size).intersection(window) == window
        times[row + window.row : row + window.row_stop, col + window.col : col + window.col_stop] += 1
    assert (times == 1).all()


def test_chips_of_two_scenes_do_not_share() -> None:
    both = pd.concat([table([0], [0, 40], "2018", 0.6), table([0], [10], "2020", 0.6)])
    owned = owned_windows(both, 64, 0.6)
    assert owned == [Window(0, 0, 64, 52), Window(0, 12, 64, 52), Window(0, 0, 64, 64)]
