"""Fusion against ranx and the local mode of qdrant-client: random lists, and the legs of a table.

Both are imported where they are used. They take seconds, and every worker collects this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

List: TypeAlias = dict[int, float]
"""Scores of rows."""

LEGS = ("text", "vector", "tokens")
BOTTOM = {"text": 0.0, "vector": -1.0, "tokens": 0.0}
SENTINEL = "bottom"
ROWS = 300
D = 8
WORDS = [f"{a}{b}" for a in ("tree", "apple", "carrot", "moss") for b in "abcdefgh"]


def ranx_rrf(lists: Mapping[str, List], k: int, weights: Mapping[str, float]) -> List:
    """Return reciprocal rank fusion; weights apply to the reciprocal ranks of each list."""
    from ranx import Run, fuse

    ranked = [
        fuse(runs=[run, Run({"q": {"": 0.0}})], norm=None, method="rrf", params={"k": k})
        for run in map(_run, lists.values())
    ]
    for run in ranked:
        # Fusion takes two runs at the least; the row of the second is none of ours.
        del run.run["q"][""]
    return _sum(ranked, [weights[leg] for leg in lists])


def ranx_convex(lists: Mapping[str, List], weights: Mapping[str, float]) -> List:
    """Return the sum of lists scaled by minimum and maximum, each with a row at the bottom."""
    from ranx import fuse

    runs = [_run(scores | {SENTINEL: BOTTOM[leg]}) for leg, scores in lists.items()]
    shares = [weights[leg] / sum(weights[leg] for leg in lists) for leg in lists]
    found = fuse(runs=runs, norm="min-max", method="wsum", params={"weights": shares})
    return _scores(found)


def _run(scores: Mapping[Any, float]) -> Any:
    from ranx import Run

    return Run({"q": {str(row): score for row, score in scores.items()}})


def _sum(runs: list[Any], weights: list[float]) -> List:
    from ranx import fuse

    return _scores(fuse(runs=runs, norm=None, method="wsum", params={"weights": weights}))


def _scores(run: Any) -> List:
    return {int(row): float(score) for row, score in run.to_dict()["q"].items() if row != SENTINEL}


def qdrant(lists: Mapping[str, List], query: Any) -> List:
    """Fuse lists with Qdrant: a vector of one dimension per list, whose product is the score."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    one = models.VectorParams(size=1, distance=models.Distance.DOT)
    client.create_collection("c", vectors_config=dict.fromkeys(lists, one))
    rows = sorted({row for scores in lists.values() for row in scores})
    client.upsert(
        "c",
        [
            models.PointStruct(
                id=row,
                vector={leg: [scores[row]] for leg, scores in lists.items() if row in scores},
            )
            for row in rows
        ],
    )
    legs = [models.Prefetch(query=[1.0], using=leg, limit=len(rows)) for leg in lists]
    found = client.query_points("c", prefetch=legs, query=query, limit=len(rows)).points
    return {int(point.id): point.score for point in found}


def qdrant_fusion(fusion: str, k: int = 60) -> Any:
    from qdrant_client import models

    if fusion == "dbsf":
        return models.FusionQuery(fusion=models.Fusion.DBSF)
    # Qdrant counts ranks from 0.
    return models.RrfQuery(rrf=models.Rrf(k=k + 1))


def server(
    db: psycopg.Connection[Any],
    fusion: str,
    lists: Mapping[str, List],
    weights: Mapping[str, float],
    k: int = 60,
) -> List:
    """Fuse lists as a search does."""
    arguments: list[Any] = []
    for leg in LEGS:
        scores = lists.get(leg, {})
        arguments += [
            [str(row) for row in scores],
            [0] * len(scores),
            [1 - score if leg == "vector" else score for score in scores.values()],
        ]
    statement = """
        WITH found AS MATERIALIZED (
            SELECT sqlvec._hybrid_union(%s::text[], %s::oid[], %s::float8[], %s::text[], %s::oid[],
                %s::float8[], %s::text[], %s::oid[], %s::float8[]) AS rows
        )
        SELECT (rows).row_ids, sqlvec._fuse(%s, %s, %s, 'cosine', rows, NULL) FROM found
    """
    own = [float(weights[leg]) if leg in lists else 0.0 for leg in LEGS]
    [(ids, scores)] = db.execute(statement, [*arguments, fusion, own, k]).fetchall()
    return dict(zip(map(int, ids), scores, strict=True))


def same(found: List, wanted: List) -> None:
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose(
        [found[row] for row in wanted], list(wanted.values()), rtol=1e-5, atol=1e-6
    )


EQUAL = dict.fromkeys(LEGS, 1.0)
ids = st.integers(0, 40)
# Sixteen bits are exact as float32, which Qdrant stores; cosines lie below 1.
values = st.integers(1, 2**16 - 1).map(lambda n: n / 2**16)


@st.composite
def lists(draw: st.DrawFn) -> dict[str, List]:
    """Draw two or three lists; no two scores are equal: of those every library ranks one first."""
    legs = draw(st.sampled_from([LEGS, *(tuple(x for x in LEGS if x != leg) for leg in LEGS)]))
    pairs = st.lists(
        st.tuples(ids, values),
        unique_by=(lambda pair: pair[0], lambda pair: pair[1]),
        min_size=1,
        max_size=40,
    )
    return {leg: {row: score for row, score in draw(pairs)} for leg in legs}


weights = st.fixed_dictionaries(dict.fromkeys(LEGS, st.integers(1, 8).map(lambda n: n / 4)))
check = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@check
@given(lists(), st.integers(1, 100))
def test_rrf_of_random_lists(db, some, k):
    found = server(db, "rrf", some, EQUAL, k)
    same(found, ranx_rrf(some, k, EQUAL))
    same(found, qdrant(some, qdrant_fusion("rrf", k)))


@check
@given(lists(), st.integers(1, 100), weights)
def test_rrf_of_random_lists_by_weight(db, some, k, weights):
    same(server(db, "rrf", some, weights, k), ranx_rrf(some, k, weights))


@check
@given(lists(), weights)
def test_convex_of_random_lists(db, some, weights):
    same(server(db, "convex", some, weights), ranx_convex(some, weights))


@check
@given(lists())
def test_dbsf_of_random_lists(db, some):
    same(server(db, "dbsf", some, EQUAL), qdrant(some, qdrant_fusion("dbsf")))


@pytest.fixture(scope="module")
def _docs(dsn: str) -> None:
    random = np.random.default_rng(2)
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(f"CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector({D}))")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        with db.cursor().copy("COPY doc (id, body, embedding) FROM STDIN") as copy:
            for row in range(ROWS):
                # Every text has a length of its own: scores of one word then differ.
                words = random.choice(WORDS, 10 + row)
                vector = random.standard_normal(D).astype(np.float32)
                copy.write_row((row, " ".join(words), json.dumps(vector.tolist())))
        db.execute("CREATE INDEX ON doc USING gin (body_bm25_tsv)")
        db.execute("CALL sqlvec.analyze_bm25('doc', drift => 0)")


@pytest.fixture
def docs(_docs: None, db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    return db


QUERIES = [("treea applec", 0), ("mossh", 1), ("carrota carrotb treec mossd applee", 2)]
K = 80


def query_vector(seed: int) -> list[float]:
    vector: list[float] = np.random.default_rng(seed).standard_normal(D).astype(np.float32).tolist()
    return vector


def hybrid(
    db: psycopg.Connection[Any], query: tuple[str, int], fusion: str, weights: str | None = None
) -> list[tuple[int, float]]:
    """Search with two legs that give as many rows as are answered."""
    words, seed = query
    return db.execute(
        "SELECT key, score FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::int, %s, %s::vector,"
        " k => %s, candidates => %s, fusion => %s, weights => %s::jsonb)",
        (words, json.dumps(query_vector(seed)), K, K, fusion, weights),
    ).fetchall()


def legs_of(db: psycopg.Connection[Any], query: tuple[str, int]) -> dict[str, List]:
    """Return what the two searches give one by one."""
    words, seed = query
    text = db.execute(
        "SELECT key, score FROM sqlvec.bm25_search_keys(NULL::doc, 'body', %s, NULL::int, k => %s)",
        (words, K),
    )
    found = {"text": dict(text.fetchall())}
    vector = db.execute(
        "SELECT key, 1 - distance FROM sqlvec.vector_search_keys(NULL::doc, 'embedding', %s::vector, NULL::int, k => %s)",
        (json.dumps(query_vector(seed)), K),
    )
    return found | {"vector": dict(vector.fetchall())}


def same_best(found: list[tuple[int, float]], wanted: List) -> None:
    assert len(wanted) > K == len(found)
    best = sorted(wanted.values(), reverse=True)[:K]
    np.testing.assert_allclose([score for _, score in found], best, rtol=1e-5)
    same(dict(found), {row: wanted[row] for row, _ in found})


@pytest.mark.parametrize("query", QUERIES)
def test_rrf_of_the_legs_of_a_table(docs, query):
    own = {"text": 1, "vector": 0.25}
    lists = legs_of(docs, query)
    same_best(hybrid(docs, query, "rrf"), ranx_rrf(lists, 60, EQUAL))
    same_best(hybrid(docs, query, "rrf", json.dumps(own)), ranx_rrf(lists, 60, own))


@pytest.mark.parametrize("query", QUERIES)
def test_convex_of_the_legs_of_a_table(docs, query):
    own = {"text": 0.3, "vector": 0.7}
    found = legs_of(docs, query)
    union = sorted(found["text"].keys() | found["vector"].keys())
    # What a leg has not given is asked of the rows themselves.
    statement = """
        SELECT id, sqlvec.bm25_score(doc, 'body', %s), 1 - (embedding <=> %s::vector)
        FROM doc WHERE id = ANY (%s)
    """
    words, seed = query
    rows = docs.execute(statement, (words, json.dumps(query_vector(seed)), union)).fetchall()
    complete = {"text": {r[0]: r[1] for r in rows}, "vector": {r[0]: r[2] for r in rows}}
    same_best(hybrid(docs, query, "convex", json.dumps(own)), ranx_convex(complete, own))


@pytest.fixture(scope="module")
def in_qdrant(_docs: None, dsn: str) -> Any:
    """Return a client with the vectors and the BM25 weights of the table."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    client.create_collection(
        "doc",
        vectors_config={"embedding": models.VectorParams(size=D, distance=models.Distance.COSINE)},
        sparse_vectors_config={"body": models.SparseVectorParams()},
    )
    with psycopg.connect(dsn) as db:
        rows = db.execute("SELECT id, embedding::real[], body_bm25::text FROM doc").fetchall()
    points = [
        models.PointStruct(id=row, vector={"embedding": embedding, "body": _sparse(body)})
        for row, embedding, body in rows
    ]
    client.upsert("doc", points)
    return client


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("fusion", ["rrf", "dbsf"])
def test_the_same_search_in_qdrant(docs, in_qdrant, query, fusion):
    from qdrant_client import models

    words, seed = query
    [(weights,)] = docs.execute(
        "SELECT sqlvec.bm25_query(NULL::doc, 'body', %s)::text", (words,)
    ).fetchall()
    legs = [
        models.Prefetch(query=_sparse(weights), using="body", limit=K),
        models.Prefetch(query=query_vector(seed), using="embedding", limit=K),
    ]
    points = in_qdrant.query_points(
        "doc", prefetch=legs, query=qdrant_fusion(fusion), limit=2 * K
    ).points
    same_best(hybrid(docs, query, fusion), {int(point.id): point.score for point in points})


def _sparse(text: str) -> Any:
    from qdrant_client import models

    pairs = [pair.split(":") for pair in text[1 : text.index("}")].split(",") if pair]
    return models.SparseVector(
        indices=[int(index) for index, _ in pairs], values=[float(value) for _, value in pairs]
    )
