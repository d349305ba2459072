"""The nearest of many rows by cosine, block against block."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_STRIP_ROWS = 1024
"""Rows of one product: its 4 MiB are compared with the bounds while they are in the cache."""

_ANY = np.finfo(np.float32).min
"""Bound that every cosine reaches, except the -inf of a row with itself."""


class Found(NamedTuple):
    """Pairs that may be among the nearest of a block's rows; in no certain order.

    Parameters
    ----------
    row : (n,) int32
        Row in the block.
    other : (n,) int64
        Its neighbour, by the number that the caller gave.
    cosine : (n,) float32
    """

    row: NDArray[np.int32]
    other: NDArray[np.int64]
    cosine: NDArray[np.float32]


class Nearest:
    """The `k` nearest of each of some rows, among those that they were compared with so far.

    The result depends on the pairs alone, in whatever order they come: of equal cosines the lower
    number is the nearer.

    Parameters
    ----------
    n_rows, k : int

    Attributes
    ----------
    index : (n_rows, k) int64
        Numbers of the neighbours, the nearest first; -1 where there are fewer.
    cosine : (n_rows, k) float32
        Theirs; -inf where there are fewer.

    Examples
    --------
    >>> nearest = Nearest(1, 2)
    >>> row = np.zeros(3, np.int32)
    >>> nearest.add(Found(row, np.array([7, 3, 5]), np.array([0.5, 0.9, 0.5], np.float32)))
    >>> nearest.index
    array([[3, 5]])
    """

    def __init__(self, n_rows: int, k: int) -> None:
        self.index = np.full((n_rows, k), -1, np.int64)
        self.cosine = np.full((n_rows, k), -np.inf, np.float32)

    @property
    def least(self) -> NDArray[np.float32]:
        """The cosine (n_rows,) that a further neighbour needs: that of the last one kept."""
        return self.cosine[:, -1]

    def add(self, found: Found) -> None:
        """Keep the nearest of what is kept and what was found."""
        k = self.index.shape[1]
        touched = np.unique(found.row)
        before = self.index[touched] >= 0
        row = np.concatenate([np.repeat(touched, before.sum(axis=1)), found.row])
        index = np.concatenate([self.index[touched][before], found.other])
        cosine = np.concatenate([self.cosine[touched][before], found.cosine])
        order = np.lexsort((index, -cosine, row))
        row, index, cosine = row[order], index[order], cosine[order]
        first = np.searchsorted(row, touched)
        rank = np.arange(len(row)) - np.repeat(first, np.diff(first, append=len(row)))
        kept = rank < k
        place = row[kept], rank[kept]
        self.index[place], self.cosine[place] = index[kept], cosine[kept]

    def list_found(self) -> Found:
        """Return what is kept as pairs."""
        row, rank = np.nonzero(self.index >= 0)
        return Found(row.astype(np.int32), self.index[row, rank], self.cosine[row, rank])


class _Strip:
    """Some rows of a block, and the nearest of them; it must see their neighbours by number."""

    def __init__(self, rows: slice, k: int, least: NDArray[np.float32]) -> None:
        self.rows, self._k = rows, k
        self._nearest = Nearest(rows.stop - rows.start, k)
        self._least = np.maximum(least[rows], _ANY)
        self._waiting: list[Found] = []
        self._n_waiting = 0

    def see(self, cosine: NDArray[np.float32], numbers: NDArray[np.int64], axis: int = 0) -> None:
        """Take those that may be among the nearest; the strip's rows lie along `axis`."""
        unknown = self._least == _ANY
        if unknown.any() and len(numbers) >= self._k:
            # No other than the k nearest of these can be among the k nearest of all.
            within = cosine if axis == 0 else cosine.T
            kth = np.partition(within[unknown], -self._k, axis=1)[:, -self._k]
            self._least[unknown] = np.maximum(kth, _ANY)
        at = np.flatnonzero(cosine >= np.expand_dims(self._least, 1 - axis))
        if not len(at):
            return
        place = np.divmod(at, cosine.shape[1])
        row, other = place[axis], place[1 - axis]
        self._waiting.append(Found(row.astype(np.int32), numbers[other], cosine.reshape(-1)[at]))
        self._n_waiting += len(at)
        if self._n_waiting > 2 * self._nearest.index.size:
            self._settle()

    def _settle(self) -> None:
        """Sort what waits, and raise the bounds."""
        self._nearest.add(Found(*map(np.concatenate, zip(*self._waiting, strict=True))))
        self._waiting, self._n_waiting = [], 0
        # What comes later has a higher number, so that an equal cosine is not enough any more.
        enough = np.nextafter(self._nearest.least, np.float32(np.inf))
        np.maximum(self._least, enough, out=self._least)

    def finish(self) -> Found:
        """Return the nearest."""
        if self._waiting:
            self._settle()
        found = self._nearest.list_found()
        return found._replace(row=found.row + np.int32(self.rows.start))


class Block(NamedTuple):
    """Rows that are compared.

    Parameters
    ----------
    unit : (n, n_features) float32
        Rows of length 1, or of zeros.
    numbers : (n,) int64
        Theirs, which rise.
    least : (n,) float32
        Cosine that a neighbour needs; -inf: any.
    """

    unit: NDArray[np.float32]
    numbers: NDArray[np.int64]
    least: NDArray[np.float32]

    def cut(self, k: int) -> list[_Strip]:
        """Cut the block into strips."""
        starts = range(0, len(self.numbers), _STRIP_ROWS)
        ends = [min(start + _STRIP_ROWS, len(self.numbers)) for start in starts]
        return [_Strip(slice(s, e), k, self.least) for s, e in zip(starts, ends, strict=True)]


def compare(block: Block, other: Block, k: int) -> Found:
    """Find the `k` nearest of the rows of a block among those of another, but not a row itself.

    Parameters
    ----------
    block, other : Block
        `other.least` is not read.
    k : int

    Returns
    -------
    Found
        At most `k` pairs for each row, of at least its `least`.
    """
    strips, others = block.cut(k), other.cut(k)
    for strip in strips:
        for cosine, second in _multiply(block, other, strip, others):
            strip.see(cosine, other.numbers[second.rows])
    return _join(strips)


def compare_both(block: Block, other: Block | None, k: int) -> tuple[Found, Found | None]:
    """Find the `k` nearest of the rows of two blocks, of each in the other, by one product.

    Parameters
    ----------
    block, other : Block
        Without a row in common; None: a block with itself.
    k : int

    Returns
    -------
    found, found_of_other : Found
        As `compare` returns them; None for a block with itself.
    """
    strips = block.cut(k)
    others = strips if other is None else other.cut(k)
    second_block = block if other is None else other
    for i, strip in enumerate(strips):
        for cosine, second in _multiply(block, second_block, strip, others[i * (other is None) :]):
            strip.see(cosine, second_block.numbers[second.rows])
            if second is not strip:
                second.see(cosine, block.numbers[strip.rows], axis=1)
    return _join(strips), None if other is None else _join(others)


def _multiply(
    block: Block, other: Block, strip: _Strip, others: list[_Strip]
) -> Iterator[tuple[NDArray[np.float32], _Strip]]:
    """Yield the cosines of a strip with each other one, -inf for a row with itself."""
    numbers = block.numbers[strip.rows]
    for second in others:
        cosine = block.unit[strip.rows] @ other.unit[second.rows].T
        theirs = other.numbers[second.rows]
        if numbers[0] <= theirs[-1] and theirs[0] <= numbers[-1]:
            _, mine, its = np.intersect1d(numbers, theirs, True, return_indices=True)
            cosine[mine, its] = -np.inf
        yield cosine, second


def _join(strips: list[_Strip]) -> Found:
    return Found(*map(np.concatenate, zip(*(strip.finish() for strip in strips), strict=True)))
