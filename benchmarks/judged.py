"""Collections of sentence vectors with judgements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.folders import apart, some_folders
from benchmarks.tokens import judgements

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Collection:
    """Unit vectors of documents (n, d) and queries (q, d), and the grades between them (q, n)."""

    name: str
    documents: Floats
    queries: Floats
    grades: Floats

    def ndcg(self, ranked: NDArray[np.intp], queries: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return nDCG of rankings (q, k) with linear gain, as trec_eval computes it.

        :param ranked: rows of the documents found, best first; -1 stands for none.
        :param queries: whose they are.
        """
        k = ranked.shape[1]
        discount = 1 / np.log2(np.arange(k) + 2)
        grades = self.grades[queries]
        gains = np.where(ranked < 0, 0, np.take_along_axis(grades, ranked, axis=1))
        ideal = -np.sort(-grades, axis=1)[:, :k]
        result: NDArray[np.float64] = (gains * discount).sum(axis=1) / (ideal * discount).sum(1)
        return result


def judged() -> Iterator[Collection]:
    """Yield the collections, leaving out those that are a part of another."""
    for folder in apart(some_folders("doc_emb.npy")):
        documents, queries = (_unit(folder / f"{side}_emb.npy") for side in ("doc", "query"))
        grades = np.zeros((len(queries), len(documents)), dtype=np.float32)
        for query, own in enumerate(judgements(folder)):
            for document, grade in own.items():
                grades[query, document] = grade
        yield Collection(folder.name, documents, queries, grades)


def ranking(scores: NDArray[np.floating], k: int) -> NDArray[np.intp]:
    """Return where the k largest scores of each row stand, the earlier of equal ones first."""
    result: NDArray[np.intp] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return result


def _unit(path: Path) -> Floats:
    vectors = np.load(path).astype(np.float64)
    unit: Floats = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
