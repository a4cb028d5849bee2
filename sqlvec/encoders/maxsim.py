"""MaxSim of two multi-vectors, as ``sqlvec.maxsim`` computes it."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def maxsim(tokens: ArrayLike, query: ArrayLike) -> float:
    """Return the sum over the query vectors of the largest inner product with a document vector.

    Late interaction (Khattab and Zaharia 2020, ColBERT), in float32: it equals the server's to the
    rounding of that.

    :param tokens: the multi-vector of a document, shape (n, d), n at least 1.
    :param query: the multi-vector of a query, shape (m, d).

    .. versionadded:: 0.1
    """
    similarity = np.asarray(tokens, dtype=np.float32) @ np.asarray(query, dtype=np.float32).T
    return float(similarity.max(axis=0).sum(dtype=np.float64))
