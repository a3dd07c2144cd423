"""Bands that wait for their neighbours, as bytes: safetensors, because it is read without a copy and runs no code.

Arrays go by names such as `0 east -12` (layer, side, lattice row or column) and `0 5 -3` (layer and place).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from geodino.stitch import Edges
from geodino.stream import Computed, Ground
from geodino.windows import Place

Floats = npt.NDArray[np.float32]

_SIDES = ("west", "east", "south")


def edges_to_bytes(layers: Sequence[Edges]) -> bytes:
    """The edges of a band, of each layer."""
    return bytes(
        save(
            {
                f"{layer} {side} {number}": np.ascontiguousarray(values)
                for layer, edges in enumerate(layers)
                for side in _SIDES
                for number, values in getattr(edges, side).items()
            }
        )
    )


def edges_from_bytes(data: bytes, layers: int) -> list[Edges]:
    """The edges of a band, of each of so many layers."""
    found = [Edges() for _ in range(layers)]
    for name, values in load(data).items():
        layer, side, number = name.split(" ")
        getattr(found[int(layer)], side)[int(number)] = values
    return found


def core_to_bytes(computed: Computed) -> bytes:
    """What a band says but for its edges: the cells of each layer, and what is known of the ground."""
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for layer, unfinished in enumerate(computed.layers):
        for place, values in unfinished.cells.items():
            arrays[f"{layer} {place.r} {place.c}"] = np.ascontiguousarray(values)
    for place, ground in computed.ground.items():
        arrays[f"wanted {place.r} {place.c}"] = np.ascontiguousarray(ground.wanted)
        arrays[f"scene {place.r} {place.c}"] = np.ascontiguousarray(ground.scene)
    return bytes(save(arrays))


def core_from_bytes(data: bytes, layers: int) -> tuple[list[dict[Place, Floats]], dict[Place, Ground]]:
    """The cells of each of so many layers, and what is known of the ground, in lattice order."""
    arrays = {tuple(name.split(" ")): values for name, values in load(data).items()}
    places = sorted(Place(int(r), int(c)) for kind, r, c in arrays if kind == "wanted")

    def of(kind: str, place: Place) -> npt.NDArray[np.generic]:
        return np.asarray(arrays[kind, str(place.r), str(place.c)])

    cells = [{place: np.asarray(of(str(layer), place), np.float32) for place in places} for layer in range(layers)]
    ground = {
        place: Ground(np.asarray(of("wanted", place), bool), np.asarray(of("scene", place), np.uint16))
        for place in places
    }
    return cells, ground
