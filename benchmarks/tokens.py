"""Collections of real token vectors, and MaxSim over them in numpy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Tokens = list[NDArray[np.float32]]


def collections() -> list[Path]:
    """Return the folders of the collections that have token vectors.

    They are looked for in the folder that ``SQLVEC_DATA`` names, else in ``../shared/data`` beside
    the repository.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("SQLVEC_DATA", default))
    found = sorted(path.parent for path in root.glob("*/doc_tokens.npy"))
    if not found:
        raise SystemExit(f"no token vectors under {root}; SQLVEC_DATA names the folder")
    return found


def tokens(folder: Path, side: str) -> Tokens:
    """Return the multi-vectors of a collection; ``side`` is ``doc`` or ``query``."""
    rows = np.load(folder / f"{side}_tokens.npy").astype(np.float32)
    offsets = np.load(folder / f"{side}_offsets.npy")
    return [rows[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]


def maxsim(documents: Tokens, query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the MaxSim of every document, none of which is without tokens."""
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
    similarity = np.concatenate(documents) @ query.T
    scores: NDArray[np.float32] = np.maximum.reduceat(similarity, starts).sum(axis=1)
    return scores


def best(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return where the largest scores stand, the earlier of equal ones first."""
    return np.argsort(-scores, kind="stable")[:count]
