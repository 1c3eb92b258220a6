"""Sums over groups of numbers, such as the choices of one document."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_sums(values: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of the exponentials of each group's values, `[groups]`.

    Args:
        values: `[values]`, logarithms.
        groups: `[values]`, which group each is of, as whole numbers from 0; every group has one or more.

    Example:
        >>> log_sums(np.log([0.5, 0.3, 2.0]), np.array([0, 0, 1])).round(3)
        array([-0.223,  0.693])
    """
    largest = np.full(groups.max(initial=-1) + 1, -np.inf)
    np.maximum.at(largest, groups, values)
    return np.asarray(largest + np.log(np.bincount(groups, np.exp(values - largest[groups]), len(largest))))
