"""Relevance models fitted to the candidates of hybrid searches, and applied by the server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text

from sqlvec import relevance
from sqlvec.fit.background import fit_background
from sqlvec.fit.hybrid import HybridCandidates, collect, fit_hybrid
from sqlvec.relevance import FusedModel, LegModel

ROWS, QUERIES, D = 240, 48, 8
WORDS = [f"{a}{b}" for a in ("tree", "apple", "carrot", "moss") for b in "abcdefgh"]
RANDOM = np.random.default_rng(3)
TOPIC = RANDOM.integers(0, 24, ROWS)
CENTRES = RANDOM.standard_normal((24, D))
VECTORS = (CENTRES[TOPIC] + 0.5 * RANDOM.standard_normal((ROWS, D))).astype(np.float32)
TEXTS = [f"{WORDS[topic]} {' '.join(RANDOM.choice(WORDS, 6))}" for topic in TOPIC]
ASKED = (
    (CENTRES[np.arange(QUERIES) % 24] + 0.5 * RANDOM.standard_normal((QUERIES, D)))
    .astype(np.float32)
    .astype(np.float64)
)
COLUMNS = {"vector": "embedding", "text": "body"}
ASKS = {
    "vector": [json.dumps(vector.tolist()) for vector in ASKED],
    "text": [f"{WORDS[n % 24]} {WORDS[24 + n % 8]}" for n in range(QUERIES)],
}


@pytest.fixture(scope="module")
def docs(engine: Engine) -> Iterator[Connection]:
    options = {"isolation_level": "AUTOCOMMIT"}
    with engine.execution_options(**options).connect() as connection:
        connection.execute(
            text(f"CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector({D}))")
        )
        connection.execute(text("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')"))
        rows = [
            {"id": n, "body": body, "embedding": json.dumps(vector.tolist())}
            for n, (body, vector) in enumerate(zip(TEXTS, VECTORS, strict=True))
        ]
        connection.execute(text("INSERT INTO doc VALUES (:id, :body, :embedding)"), rows)
        connection.execute(text("CALL sqlvec.analyze_bm25('doc')"))
    with engine.connect() as connection:
        yield connection


@pytest.fixture(scope="module")
def found(docs: Connection) -> HybridCandidates:
    return collect(docs, "doc", COLUMNS, ASKS, key="id", candidates=20)


def test_every_candidate_has_the_scores_of_all_legs(docs, found):
    rows = np.array(found.rows, dtype=int)
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    cosines = (ASKED @ unit.T) / np.linalg.norm(ASKED, axis=1, keepdims=True)
    np.testing.assert_allclose(found.x["vector"], cosines[found.query, rows], atol=1e-6)
    statement = """
        SELECT sqlvec.bm25_score(doc, 'body', :words)
            / (SELECT sqlvec.bm25_maximum(NULL::doc, 'body', :words))
        FROM doc ORDER BY id
    """
    for query in range(QUERIES):
        own = found.query == query
        mine = set(rows[own])
        assert set(np.argsort(-cosines[query], kind="stable")[:20]) <= mine
        if query % 4 == 0:  # The function is told the words anew for every row.
            asked = {"words": ASKS["text"][query]}
            shares = np.array(docs.scalars(text(statement), asked).all(), float)
            wanted = shares[rows[own]]
            wanted[wanted == 0] = np.nan
            np.testing.assert_allclose(found.x["text"][own], wanted, rtol=1e-5)
            assert set(np.flatnonzero(shares > np.sort(shares)[-20])) <= mine


def test_of_queries_is_what_collecting_them_gives(docs, found):
    some = np.arange(QUERIES) % 3 == 1
    alone = collect(
        docs,
        "doc",
        COLUMNS,
        {
            leg: [q for q, kept in zip(asks, some, strict=True) if kept]
            for leg, asks in ASKS.items()
        },
        key="id",
        candidates=20,
    )
    part = found.of_queries(some)
    assert part.rows == alone.rows
    np.testing.assert_array_equal(part.query, alone.query)
    for leg in COLUMNS:
        np.testing.assert_array_equal(part.x[leg], alone.x[leg])
        np.testing.assert_array_equal(part.features[leg], alone.features[leg])


def test_the_server_applies_what_was_fitted(docs, found):
    label = TOPIC[np.array(found.rows, dtype=int)] == found.query % 24
    families = {"vector": "linear", "text": "linear"}
    background = fit_background(VECTORS, ASKED)
    models = {"vector": "of vectors", "text": "of words"}
    fits = fit_hybrid(found, label, families=families, background=background, models=models)
    assert fits["fused"].brier < min(fits["vector"].brier, np.mean((label.mean() - label) ** 2))
    for leg, name in models.items():
        relevance.save(docs, name, fits[leg].model, table="doc", column=COLUMNS[leg])
    relevance.save(docs, "both", fits["fused"].model)

    own = {}
    for leg in COLUMNS:
        model = fits[leg].model
        assert isinstance(model, LegModel)
        features = found.features[leg]
        curve = model.vector_curve(features) if leg == "vector" else model.curve(features)
        by_query = [
            curve.relevance(found.x[leg][None, found.query == n].repeat(QUERIES, 0))[n]
            for n in range(QUERIES)
        ]
        own[leg] = np.concatenate(by_query)
    fused = fits["fused"].model
    assert isinstance(fused, FusedModel)
    wanted = fused.relevance(**own)
    statement = text("""
        SELECT key, relevance
        FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::text, :words, CAST(:vector AS vector),
            k => 40, candidates => 40, fusion => 'relevance', relevance => 'both')
    """)
    for query in (0, 7, 30):
        asked = {"words": ASKS["text"][query], "vector": ASKS["vector"][query]}
        given = dict(docs.execute(statement, asked).all())
        mine = found.query == query
        rows = [row for row, kept in zip(found.rows, mine, strict=True) if kept]
        both = [row for row in rows if row in given]
        assert len(both) > 20
        np.testing.assert_allclose(
            [given[row] for row in both],
            [value for row, value in zip(rows, wanted[mine], strict=True) if row in given],
            rtol=1e-4,
        )
