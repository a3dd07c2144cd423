"""Some rows of an array on disk, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)
Index = slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_] | list[int]


class Rows(Generic[Scalar]):
    """A choice of an array's rows that copies none before it is read.

    Indexing the first axis gives plain arrays, as would an array; a further index goes to the array that comes out.

    Parameters
    ----------
    array
        Of one row or more dimensions, most often a memory map.
    rows
        Which rows, in which order; None for all.
    """

    def __init__(self, array: npt.NDArray[Scalar], rows: npt.NDArray[np.int64] | None = None) -> None:
        self._array = array
        self._rows = np.arange(len(array)) if rows is None else rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self._rows), *self._array.shape[1:])

    @property
    def dtype(self) -> np.dtype[Scalar]:
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int | np.integer) -> npt.NDArray[Scalar]: ...
    @overload
    def __getitem__(self, index: Index) -> npt.NDArray[Scalar]: ...
    def __getitem__(self, index: int | np.integer | Index) -> npt.NDArray[Scalar]:
        found: npt.NDArray[Scalar] = self._array[self._rows[index]]
        return found

    def __iter__(self) -> Iterator[npt.NDArray[Scalar]]:
        return (self._array[row] for row in self._rows)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Scalar]:
        return np.asarray(self._array[self._rows], dtype=dtype)

    def take(self, indices: npt.NDArray[np.int64]) -> Rows[Scalar]:
        """The rows of these rows, still unread."""
        return Rows(self._array, self._rows[indices])
