"""Token vectors from a model that was trained to make one vector per text.

The last hidden states of the model, frozen as it is, go into a late interaction like those of a
model made for it (SMART: "Your Embedding Model is SMARTer Than You Think", arXiv:2605.24938).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sqlvec.encoders.base import checked_finite, checked_positive
from sqlvec.errors import EncodingError


def token_vectors(
    hidden_states: ArrayLike,
    attention_mask: ArrayLike | None = None,
    *,
    drop: ArrayLike | None = None,
    components: ArrayLike | None = None,
    limit: int | None = None,
) -> list[NDArray[np.float16]]:
    """Return a multi-vector of unit vectors for each text.

    E.g.::

        states = model(input_ids, attention_mask).last_hidden_state
        vectors = token_vectors(states, attention_mask, drop=input_ids == sep_id, limit=128)

    A text of which everything would be dropped keeps all its tokens. A state of zeros has no
    direction and is left out.

    :param hidden_states: of the last layer, (batch, n, d), or (n, d) of one text.
    :param attention_mask: 0 where a batch is padded, (batch, n) or (n,); None is no padding.
    :param drop: true for tokens to leave out, such as special tokens and punctuation; same shape.
    :param components: (d, d') of :func:`token_components`, to narrow the vectors; None keeps d.
    :param limit: of the tokens of a text, after dropping; the first ones stay. None keeps all.
    :return: for each text (tokens, d or d').
    :raises EncodingError: NaN or infinity, or shapes that do not go together.

    .. versionadded:: 0.1
    """
    states = _checked_states(hidden_states)
    if states.ndim not in (2, 3):
        raise EncodingError(
            f"hidden states have the shape (batch, n, d) or (n, d), not {states.ndim} dimensions"
        )
    if limit is not None:
        checked_positive("limit", limit)
    shape = states.shape[:-1]
    present = _mask("attention_mask", attention_mask, shape, default=True)
    kept = present & ~_mask("drop", drop, shape, default=False)
    matrix = None if components is None else _checked_states(components)
    if matrix is not None and (matrix.ndim != 2 or matrix.shape[0] != states.shape[-1]):
        raise EncodingError(
            f"components of shape {matrix.shape} do not go with states of"
            f" {states.shape[-1]} dimensions"
        )
    if states.ndim == 2:
        states, present, kept = states[None], present[None], kept[None]
    return [
        _vectors(text[own if own.any() else all_], matrix, limit)
        for text, own, all_ in zip(states, kept, present, strict=True)
    ]


def token_components(states: ArrayLike, dimensions: int) -> NDArray[np.float32]:
    """Return the matrix (d, d') that keeps most of the inner products of unit token states.

    The eigenvectors of X'X with the largest eigenvalues, where the rows of X are the states scaled
    to unit length: a principal component analysis without centring, because MaxSim compares
    directions from the origin. Fit it on a sample of the documents that are searched, and use it
    for documents and queries.

    :param states: of tokens of many texts, (n, d).
    :param dimensions: d', from 1 to d.
    :raises EncodingError: NaN or infinity, no states, or more dimensions than they have.

    .. versionadded:: 0.1
    """
    checked_positive("dimensions", dimensions)
    rows = _checked_states(states)
    if rows.ndim != 2 or rows.size == 0:
        raise EncodingError(f"token states have the shape (n, d), not {rows.shape}")
    if dimensions > rows.shape[1]:
        raise EncodingError(
            f"states of {rows.shape[1]} dimensions do not have {dimensions} components"
        )
    unit = _unit(rows).astype(np.float64)
    _, vectors = np.linalg.eigh(unit.T @ unit)
    components = vectors[:, ::-1][:, :dimensions]
    # An eigenvector may point either way: the same one on every machine.
    largest = np.abs(components).argmax(axis=0)
    signs = np.sign(components[largest, np.arange(dimensions)])
    return np.ascontiguousarray(components * signs, dtype=np.float32)


def _checked_states(states: ArrayLike) -> NDArray[np.float32]:
    try:
        return checked_finite(np.asarray(states, dtype=np.float32))
    except (TypeError, ValueError) as error:
        raise EncodingError(f"not an array of numbers: {error}") from None


def _mask(
    name: str, mask: ArrayLike | None, shape: tuple[int, ...], *, default: bool
) -> NDArray[np.bool_]:
    if mask is None:
        return np.full(shape, default)
    found = np.asarray(mask).astype(bool)
    if found.shape != shape:
        raise EncodingError(f"{name} has shape {found.shape}, the states have {shape}")
    return found


def _vectors(
    states: NDArray[np.float32], components: NDArray[np.float32] | None, limit: int | None
) -> NDArray[np.float16]:
    vectors = _unit(states[:limit])
    if components is not None:
        vectors = _unit(vectors @ components)
    return vectors.astype(np.float16)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to unit length, leaving out those of zeros."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = rows[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
    return unit
