"""Collections of real token vectors, and MaxSim over them in numpy."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.folders import some_folders

Tokens = list[NDArray[np.float32]]


def collections() -> list[Path]:
    """Return the folders of the collections that have token vectors."""
    return some_folders("doc_tokens.npy")


def tokens(folder: Path, side: str) -> Tokens:
    """Return the multi-vectors of a collection; ``side`` is ``doc`` or ``query``."""
    rows = np.load(folder / f"{side}_tokens.npy").astype(np.float32)
    offsets = np.load(folder / f"{side}_offsets.npy")
    return [rows[start:end] for start, end in zip(offsets, offsets[1:], strict=False)]


def maxsim(documents: Tokens, queries: Tokens) -> NDArray[np.float32]:
    """Return MaxSim, shape (queries, documents); no document is without tokens."""
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
    every = np.concatenate(documents)
    scores = [np.maximum.reduceat(every @ query.T, starts).sum(axis=1) for query in queries]
    return np.array(scores, dtype=np.float32)


def best(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return where the largest scores stand, the earlier of equal ones first."""
    return np.argsort(-scores, kind="stable")[:count]


def judgements(folder: Path) -> list[dict[int, int]]:
    """Return for every query the grades of the documents that are relevant to it."""
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = {json.loads(line)["_id"]: row for row, line in enumerate(lines)}
    with open(folder / "queries.jsonl", encoding="utf-8") as lines:
        queries = {json.loads(line)["_id"]: row for row, line in enumerate(lines)}
    grades: list[dict[int, int]] = [{} for _ in queries]
    with open(folder / "qrels.tsv", encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            if row["query-id"] in queries and row["corpus-id"] in documents:
                own = grades[queries[row["query-id"]]]
                own[documents[row["corpus-id"]]] = int(row["score"])
    return grades


def ndcg(found: NDArray[np.intp], grades: dict[int, int]) -> float:
    """Return nDCG of one ranking with linear gain, as trec_eval computes it."""
    discount = 1 / np.log2(np.arange(len(found)) + 2)
    gains = np.array([grades.get(int(row), 0) for row in found])
    ideal = np.array(sorted(grades.values(), reverse=True)[: len(found)])
    return float((gains * discount).sum() / (ideal * discount[: len(ideal)]).sum())
