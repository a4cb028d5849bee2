"""Hybrid search against legs that were searched one by one and fused in numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql
from psycopg.errors import (
    AmbiguousColumn,
    DataException,
    InsufficientPrivilege,
    InvalidParameterValue,
    UndefinedColumn,
    UndefinedObject,
    WrongObjectType,
)
from psycopg.types.json import Jsonb

from sqlvec.encoders import maxsim
from sqlvec.types.multivector import to_text

D = 16
ROWS = 400
WORDS = [f"{a}{b}" for a in ("tree", "apple", "carrot", "moss", "stone") for b in "abcdefgh"]
COLUMNS = (
    "score, relevance, text_score, text_rank, vector_distance, vector_rank, tokens_score, "
    "tokens_rank, complete"
)


def vector(values: Any) -> str:
    return json.dumps([float(value) for value in values])


RANDOM = np.random.default_rng(5)
TEXTS = [" ".join(RANDOM.choice(WORDS, RANDOM.integers(1, 30))) for _ in range(ROWS)]
VECTORS = RANDOM.standard_normal((ROWS, D)).astype(np.float32)
TOKENS = [
    RANDOM.standard_normal((RANDOM.integers(1, 9), D)).astype(np.float16).astype(np.float32)
    for _ in range(ROWS)
]
TEXT = "applea treeb mossc"
VECTOR = RANDOM.standard_normal(D).astype(np.float32)
QUERY_TOKENS = RANDOM.standard_normal((4, D)).astype(np.float16).astype(np.float32)
LEGS: dict[str, Any] = {
    "query_text": TEXT,
    "query_vector": vector(VECTOR),
    "query_tokens": to_text(QUERY_TOKENS),
}
CASTS = {"query_vector": "vector", "query_tokens": "halfvec[]", "weights": "jsonb"}


def hybrid(
    db: psycopg.Connection[Any],
    table: str = "doc",
    columns: str = f"(hit).id, {COLUMNS}",
    **arguments: Any,
) -> list[Any]:
    """Call ``sqlvec.hybrid_search``."""
    parts = [
        sql.SQL("{} => {}{}").format(
            sql.SQL(name),
            Jsonb(value) if isinstance(value, dict) else value,
            sql.SQL(f"::{CASTS[name]}" if name in CASTS else ""),
        )
        for name, value in arguments.items()
    ]
    call = sql.SQL("SELECT {} FROM sqlvec.hybrid_search(NULL::{}{})").format(
        sql.SQL(columns),
        sql.SQL(table),
        sql.SQL("").join(sql.SQL(", ") + part for part in parts),
    )
    return db.execute(call).fetchall()


def ids(rows: list[Any]) -> list[Any]:
    return [row[0] for row in rows]


@pytest.fixture(scope="module")
def _docs(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(
            "CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(16),"
            " tokens halfvec(16)[], tenant int, book text)"
        )
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        with db.cursor().copy(
            "COPY doc (id, body, embedding, tokens, tenant, book) FROM STDIN"
        ) as copy:
            for n in range(ROWS):
                copy.write_row(
                    (n, TEXTS[n], vector(VECTORS[n]), to_text(TOKENS[n]), n % 7, f"book {n % 23}")
                )
        db.execute("CREATE INDEX ON doc USING gin (body_bm25_tsv)")
        db.execute("CALL sqlvec.analyze_bm25('doc')")
        db.execute("ANALYZE doc")


@pytest.fixture
def docs(_docs: None, db: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    return db


@pytest.fixture(scope="module")
def truth(_docs: None, dsn: str) -> dict[str, NDArray[np.float64]]:
    """Return the score of every row by every leg."""
    with psycopg.connect(dsn) as db:
        found = db.execute(
            "SELECT id, sqlvec.bm25_score(doc, 'body', %s) FROM doc ORDER BY id", (TEXT,)
        ).fetchall()
    cosines = VECTORS @ VECTOR / np.linalg.norm(VECTORS, axis=1) / np.linalg.norm(VECTOR)
    return {
        "text": np.array([row[1] for row in found]),
        "vector": cosines.astype(np.float64),
        "tokens": np.array([maxsim(tokens, QUERY_TOKENS) for tokens in TOKENS], dtype=np.float64),
    }


def legs_of(truth: dict[str, NDArray[np.float64]], depth: int) -> dict[str, list[int]]:
    """Return the rows that each leg gives, the best first."""
    return {
        leg: [
            int(n)
            for n in np.argsort(-scores, kind="stable")[:depth]
            if leg != "text" or scores[n] > 0
        ]
        for leg, scores in truth.items()
    }


def fused(
    truth: dict[str, NDArray[np.float64]],
    fusion: str,
    depth: int,
    weights: dict[str, float],
) -> dict[int, float]:
    """Fuse the rows that the legs give."""
    lists = legs_of(truth, depth)
    rows = sorted({n for leg, found in lists.items() if weights[leg] for n in found})
    scores = dict.fromkeys(rows, 0.0)
    for leg, weight in weights.items():
        given = truth[leg][lists[leg]]
        top = max(truth[leg][n] for n in rows)
        bottom = -1.0 if leg == "vector" else 0.0
        for n in rows:
            if fusion == "convex":
                scores[n] += (
                    weight * (truth[leg][n] - bottom) / (top - bottom) / sum(weights.values())
                )
            elif n in lists[leg]:
                if fusion == "rrf":
                    scores[n] += weight / (60 + 1 + int((given > truth[leg][n]).sum()))
                else:
                    spread = 3 * np.std(given, ddof=1)
                    low = np.mean(given) - spread
                    scores[n] += weight * (truth[leg][n] - low) / (2 * spread)
    return scores


@pytest.mark.parametrize("fusion", ["rrf", "convex", "dbsf"])
@pytest.mark.parametrize(
    "weights", [{"text": 1, "vector": 1, "tokens": 1}, {"text": 0.5, "vector": 2, "tokens": 0}]
)
@pytest.mark.parametrize("depth", [10, 40, 400])
def test_fusion_of_legs_that_were_searched_alone(docs, truth, fusion, weights, depth):
    rows = hybrid(docs, **LEGS, fusion=fusion, weights=weights, candidates=depth, k=10)
    wanted = fused(truth, fusion, depth, weights)
    if weights["tokens"] == 0 and fusion != "convex":
        # What only a leg without weight gives has no score.
        wanted = {n: score for n, score in wanted.items() if score > 0}
    best = sorted(wanted, key=lambda n: -wanted[n])[:10]
    np.testing.assert_allclose([row[1] for row in rows], [wanted[n] for n in best], rtol=1e-5)
    assert all(math.isclose(row[1], wanted[row[0]], rel_tol=1e-5) for row in rows)
    assert all(row[-1] for row in rows)


def test_each_hit_tells_what_its_legs_say(docs, truth):
    lists = legs_of(truth, 20)
    for fusion in ("rrf", "convex"):
        for row in hybrid(docs, **LEGS, fusion=fusion, candidates=20, k=20):
            (
                n,
                _,
                relevance,
                text_score,
                text_rank,
                distance,
                vector_rank,
                tokens,
                tokens_rank,
                _,
            ) = row
            assert relevance is None
            for leg, rank, score, scale in (
                ("text", text_rank, text_score, 1),
                ("vector", vector_rank, None if distance is None else 1 - distance, 1),
                ("tokens", tokens_rank, tokens, 1),
            ):
                if n in lists[leg]:
                    assert rank == 1 + sum(truth[leg] > truth[leg][n] + 1e-9)
                else:
                    assert rank is None
                if n in lists[leg] or fusion == "convex":
                    assert score == pytest.approx(scale * truth[leg][n], rel=1e-4, abs=1e-6)
                else:
                    assert score is None


@pytest.mark.parametrize("leg", ["query_text", "query_vector", "query_tokens"])
def test_one_leg_alone_keeps_its_order(docs, truth, leg):
    scores = truth[leg.removeprefix("query_")]
    wanted = [int(n) for n in np.argsort(-scores, kind="stable")[:10]]
    for fusion in ("rrf", "convex", "dbsf"):
        rows = hybrid(docs, **{leg: LEGS[leg]}, fusion=fusion)
        np.testing.assert_allclose(scores[ids(rows)], scores[wanted], rtol=1e-6)


def test_keys_are_those_of_the_rows(docs):
    rows = hybrid(docs, **LEGS, fusion="convex")
    statement = """
        SELECT key, score, relevance, text_score, text_rank, vector_distance, vector_rank,
               tokens_score, tokens_rank, complete
        FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::text, %s, %s::vector, %s::halfvec[],
                                       fusion => 'convex')
    """
    found = docs.execute(statement, tuple(LEGS.values())).fetchall()
    assert [(str(row[0]), *row[1:]) for row in rows] == found
    with pytest.raises(UndefinedColumn, match='column "nosuch"'):
        docs.execute(
            "SELECT * FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::text, 'x', key_column => 'nosuch')"
        )


def test_filters_apply_inside_every_leg(docs):
    for condition in (
        {"filter": {"tenant": 3}},
        {"where_sql": "doc.tenant = (($1)[1])::int", "params": ["3"]},
    ):
        rows = hybrid(docs, columns="(hit).id, (hit).tenant", **LEGS, k=60, **condition)
        assert len(rows) == len([n for n in range(ROWS) if n % 7 == 3])
        assert {row[1] for row in rows} == {3}
    assert hybrid(docs, **LEGS, filter={"tenant": 99}) == []


def test_groups_keep_their_best_and_are_searched_deeper(docs):
    everything = hybrid(docs, columns="(hit).id, (hit).book", **LEGS, candidates=400, k=400)
    best: list[tuple[int, str]] = []
    for row in everything:
        if row[1] not in {book for _, book in best}:
            best.append(row)
    rows = hybrid(
        docs, columns="(hit).id, (hit).book", **LEGS, k=23, candidates=23, group_column="book"
    )
    # Rows of 23 books are not among the 23 best: the legs had to be asked for more.
    assert len({row[1] for row in rows}) == 23
    full = hybrid(
        docs, columns="(hit).id, (hit).book", **LEGS, k=23, candidates=400, group_column="book"
    )
    assert full == best
    pairs = hybrid(
        docs, columns="(hit).book", **LEGS, k=20, candidates=400, group_column="book", group_size=2
    )
    assert max(pairs.count(pair) for pair in pairs) == 2


def test_rows_without_a_group_stand_for_themselves(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(1), book text)")
    fresh.execute(
        "INSERT INTO doc SELECT n, ARRAY[n]::vector, CASE WHEN n > 3 THEN 'b' END"
        " FROM generate_series(1, 6) AS n"
    )
    rows = hybrid(fresh, columns="(hit).id", query_vector="[1]", metric="l2", group_column="book")
    assert ids(rows) == [1, 2, 3, 4]


def test_diversity_is_marginal_relevance_over_the_fused_scores(docs):
    rows = hybrid(docs, columns="(hit).id, score", **LEGS, fusion="convex", k=400, candidates=400)
    found, scores = np.array(ids(rows)), np.array([row[1] for row in rows])
    gain = (scores - scores.min()) / (scores.max() - scores.min())
    unit = VECTORS[found] / np.linalg.norm(VECTORS[found], axis=1, keepdims=True)
    alike = unit @ unit.T
    picked: list[int] = []
    for _ in range(10):
        near = alike[:, picked].max(axis=1) if picked else np.zeros(len(found))
        value = 0.4 * gain - 0.6 * near if picked else gain
        value[picked] = -np.inf
        picked.append(int(value.argmax()))
    differing = hybrid(
        docs, columns="(hit).id, score", **LEGS, fusion="convex", candidates=400, diversity=0.6
    )
    assert ids(differing) == found[picked].tolist()
    assert differing != rows[:10]
    # The vectors are found without a vector being asked.
    assert len(hybrid(docs, query_text=TEXT, diversity=0.5)) == 10
    assert ids(hybrid(docs, **LEGS, diversity=0)) == ids(hybrid(docs, **LEGS))


def test_autocut_ends_before_the_jump(docs):
    rows = hybrid(docs, columns="(hit).id, score", **LEGS, fusion="convex", k=100)
    [[wanted]] = docs.execute(
        "SELECT sqlvec.autocut(array_agg(score ORDER BY score DESC), 2)"
        " FROM sqlvec.hybrid_search(NULL::doc, %s, %s::vector, %s::halfvec[], k => 400,"
        " fusion => 'convex')",
        tuple(LEGS.values()),
    ).fetchall()
    cut = hybrid(docs, columns="(hit).id, score", **LEGS, fusion="convex", k=100, autocut=2)
    assert len(cut) == min(wanted, 100)
    assert cut == rows[: len(cut)]


def model(
    db: psycopg.Connection[Any], name: str, leg: str, slope: float, intercept: float, column: str
) -> None:
    db.execute(
        "CALL sqlvec.create_relevance_model(%s, %s, 'raw', ARRAY[%s::float8], ARRAY[%s::float8],"
        " '{1}', 'doc', %s)",
        (name, leg, slope, intercept, column),
    )


@pytest.fixture
def models(docs: psycopg.Connection[Any]) -> psycopg.Connection[Any]:
    model(docs, "v", "vector", 6, -2, "embedding")
    model(docs, "t", "text", 4, -3, "body")
    model(docs, "m", "tokens", 1, -2, "tokens")
    docs.execute(
        "CALL sqlvec.create_relevance_model('all', 'fused', 'logistic', '{0.8,0.7,0.2}',"
        " '{0.3,-0.5,-0.4,-0.3}', '{}', models => '{v,t,m}')"
    )
    return docs


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def relevances(db: psycopg.Connection[Any], truth: dict[str, NDArray[np.float64]]) -> NDArray[Any]:
    """Relevance of every row by model ``all``, as its parts say."""
    [[maximum]] = db.execute(
        "SELECT sqlvec.bm25_maximum(NULL::doc, 'body', %s)", (TEXT,)
    ).fetchall()
    logits = {
        "vector": softplus(6) * truth["vector"] - 2,
        "text": np.where(truth["text"] > 0, softplus(4) * truth["text"] / maximum - 3, np.nan),
        "tokens": softplus(1) * truth["tokens"] / len(QUERY_TOKENS) - 2,
    }
    total = 0.3 + 0.8 * logits["vector"] + 0.2 * logits["tokens"]
    total = total + np.where(np.isnan(logits["text"]), -0.4, 0.7 * logits["text"])
    return np.asarray(sigmoid(total))


def test_fusion_by_relevance(models, truth):
    wanted = relevances(models, truth)
    rows = hybrid(models, **LEGS, fusion="relevance", relevance="all", k=10, candidates=400)
    best = np.argsort(-wanted, kind="stable")[:10]
    assert ids(rows) == best.tolist()
    np.testing.assert_allclose([row[1] for row in rows], wanted[best], rtol=1e-5)
    assert [row[2] for row in rows] == [row[1] for row in rows]


@pytest.mark.parametrize("fusion", ["rrf", "convex", "relevance"])
def test_min_relevance_cuts_whatever_the_fusion(models, truth, fusion):
    wanted = relevances(models, truth)
    uncut = hybrid(models, **LEGS, fusion=fusion, relevance="all", k=100, candidates=400)
    for least in (0.1, 0.35, 0.6):
        rows = hybrid(
            models,
            **LEGS,
            fusion=fusion,
            relevance="all",
            k=100,
            candidates=400,
            min_relevance=least,
        )
        kept = [row for row in uncut if wanted[row[0]] >= least]
        assert ids(rows)[: len(kept)] == ids(kept)
        assert len(rows) == min(int((wanted >= least).sum()), 100)
        np.testing.assert_allclose([row[2] for row in rows], wanted[ids(rows)], rtol=1e-5)


def test_nothing_relevant_is_a_legal_answer_and_says_why(models):
    asked = {**LEGS, "relevance": "all", "min_relevance": 0.9999}
    assert hybrid(models, **asked) == []
    assert len(hybrid(models, **asked, min_results=3)) == 3
    explained = dict(
        models.execute(
            "SELECT * FROM sqlvec.explain_hybrid_search(NULL::doc, %s, %s::vector, %s::halfvec[],"
            " relevance => 'all', min_relevance => 0.9999)",
            tuple(LEGS.values()),
        ).fetchall()
    )
    assert "0 of " in explained["cut"]
    assert "relevance of 0.9999 or more; the best has 0." in explained["cut"]
    assert explained["model"] == "all of leg fused: v, t, m"


def test_nothing_is_answered_where_the_best_row_is_too_bad(models, truth):
    best = float(relevances(models, truth).max())
    explain = (
        "SELECT detail FROM sqlvec.explain_hybrid_search(NULL::doc, %s, %s::vector, %s::halfvec[],"
        " relevance => %s, min_relevance => 0.1) WHERE topic = 'cut'"
    )
    for name, needed in (("strict", best + 1e-4), ("lenient", best - 1e-4)):
        models.execute(
            "CALL sqlvec.create_relevance_model(%s, 'fused', 'logistic', '{0.8,0.7,0.2}',"
            " '{0.3,-0.5,-0.4,-0.3}', '{}', models => '{v,t,m}', min_best => %s)",
            (name, needed),
        )
    cut = {**LEGS, "min_relevance": 0.1}
    assert ids(hybrid(models, **cut, relevance="lenient")) == ids(
        hybrid(models, **cut, relevance="all")
    )
    assert hybrid(models, **cut, relevance="strict") == []
    assert len(hybrid(models, **cut, relevance="strict", min_results=3)) == 3
    # Whoever asks for no cut gets none.
    assert len(hybrid(models, **LEGS, relevance="strict")) == 10
    [[said]] = models.execute(explain, (*LEGS.values(), "strict")).fetchall()
    assert "none is relevant, for the best row of a question with an answer has 0." in said
    [[said]] = models.execute(explain, (*LEGS.values(), "lenient")).fetchall()
    assert "none is relevant" not in said


@pytest.mark.parametrize("leg", ["vector", "text"])
def test_a_leg_that_is_cut_while_it_is_searched_has_its_best_row(models, leg):
    asked = {"query_vector": vector(VECTOR)} if leg == "vector" else {"query_text": TEXT}
    slope, intercept, column = {"vector": (6, -2, "embedding"), "text": (4, -3, "body")}[leg]
    rows = hybrid(models, **asked, relevance=leg[0], min_relevance=0.05, k=5)
    best = max(row[2] for row in rows)
    for name, needed in (("strict", best + 1e-6), ("lenient", best - 1e-6)):
        models.execute(
            "CALL sqlvec.create_relevance_model(%s, %s, 'raw', ARRAY[%s::float8],"
            " ARRAY[%s::float8], '{1}', 'doc', %s, min_best => %s)",
            (name, leg, slope, intercept, column, needed),
        )
    assert hybrid(models, **asked, relevance="lenient", min_relevance=0.05, k=5) == rows
    assert hybrid(models, **asked, relevance="strict", min_relevance=0.05, k=5) == []


def test_a_model_of_one_leg_gives_its_relevance(models, truth):
    rows = hybrid(models, query_text=TEXT, query_vector=vector(VECTOR), relevance="v", k=30)
    np.testing.assert_allclose(
        [row[2] for row in rows],
        sigmoid(softplus(6) * truth["vector"][ids(rows)] - 2),
        rtol=1e-5,
    )
    # By inner product, the cosine is computed for the model.
    rows = hybrid(
        models,
        query_vector=vector(VECTOR),
        relevance="v",
        metric="inner_product",
        fusion="relevance",
    )
    wanted = sigmoid(softplus(6) * truth["vector"][ids(rows)] - 2)
    np.testing.assert_allclose([row[2] for row in rows], wanted, rtol=1e-5)
    # A row that the words do not find is not relevant by a model of words.
    rows = hybrid(
        models, query_text="applea", query_vector=vector(VECTOR), relevance="t", min_relevance=0.0
    )
    assert rows and all(row[3] > 0 for row in rows)


@pytest.mark.parametrize(("leg", "least"), [("t", 0.2), ("v", 0.8)])
@pytest.mark.parametrize("fusion", ["rrf", "convex", "relevance", "dbsf"])
def test_a_leg_whose_model_cuts_is_not_asked_for_more(models, leg, least, fusion):
    asked: dict[str, Any] = {
        "query_text": TEXT,
        "query_vector": vector(VECTOR),
        "relevance": leg,
        "fusion": fusion,
        "candidates": 400,
    }
    uncut = [
        row for row in hybrid(models, **asked, k=400) if row[2] is not None and row[2] >= least
    ]
    assert 3 < len(uncut) < 100
    rows = hybrid(models, **asked, k=400, min_relevance=least)
    assert ids(rows) == ids(uncut)
    np.testing.assert_allclose([row[1] for row in rows], [row[1] for row in uncut], rtol=1e-9)
    explained = dict(
        models.execute(
            "SELECT * FROM sqlvec.explain_hybrid_search(NULL::doc, %s, %s::vector, relevance => %s,"
            " min_relevance => %s, candidates => 400)",
            (TEXT, vector(VECTOR), leg, least),
        ).fetchall()
    )
    name = {"t": "text", "v": "vector"}[leg]
    assert int(explained[name].split()[0]) < 100


def test_excluded_and_required_words_hold_for_scores_that_are_computed(docs):
    rows = hybrid(
        docs, query_text=f"{TEXT} -treeb", query_vector=vector(VECTOR), fusion="convex", k=200
    )
    excluded = [row for row in rows if "treeb" in TEXTS[row[0]].split()]
    assert excluded and all(row[3] == 0 and row[4] is None for row in excluded)


def test_equal_rows_share_a_rank_and_come_by_key(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(2))")
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute(
        "INSERT INTO doc SELECT n, 'apple tree', '[1,0]' FROM generate_series(40, 1, -1) AS n"
    )
    for fusion in ("rrf", "convex", "dbsf"):
        rows = hybrid(
            fresh,
            columns="(hit).id, score, text_rank, vector_rank",
            query_text="apple",
            query_vector="[1,1]",
            fusion=fusion,
            k=5,
            candidates=40,
        )
        assert ids(rows) == [1, 2, 3, 4, 5]
        assert {row[1:] for row in rows} == {(rows[0][1], 1, 1)}


def test_null_zero_and_missing_sources(fresh):
    fresh.execute(
        "CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(2), tokens halfvec(2)[])"
    )
    assert hybrid(fresh, columns="(hit).id", query_vector="[1,0]") == []
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute("""
        INSERT INTO doc VALUES
            (1, 'apple', '[1,0]', ARRAY['[1,0]']::halfvec[]), (2, 'apple', NULL, NULL),
            (3, NULL, '[1,1]', NULL), (4, 'tree', '[0,0]', ARRAY['[0,1]']::halfvec[]),
            (5, NULL, NULL, NULL)
    """)
    for fusion in ("rrf", "convex", "dbsf"):
        rows = hybrid(
            fresh,
            query_text="apple",
            query_vector="[1,0]",
            query_tokens='{"[1,0]"}',
            fusion=fusion,
        )
        assert {row[0] for row in rows} == {1, 2, 3, 4}
        assert rows[0][0] == 1
        assert all(row[1] is not None and not math.isnan(row[1]) for row in rows)
    assert hybrid(fresh, query_text="the of and") == []
    with pytest.raises(InvalidParameterValue, match="zero vector"):
        hybrid(fresh, query_text="apple", query_vector="[0,0]")


def test_tables_that_are_partitioned_composite_and_oddly_named(fresh):
    name = '"Odd ""na$2me"'
    fresh.execute(
        f'CREATE TABLE {name} ("A b" int, part text, "bo$2dy" text, "v\'$4ec" vector(2),'
        ' PRIMARY KEY ("A b", part)) PARTITION BY LIST (part)'
    )
    for part in ("x", "y"):
        fresh.execute(f"CREATE TABLE \"odd {part}\" PARTITION OF {name} FOR VALUES IN ('{part}')")
    fresh.execute("CALL sqlvec.add_bm25(%s, 'bo$2dy')", (name,))
    fresh.execute(
        f"INSERT INTO {name} SELECT n / 2, CASE n %% 2 WHEN 0 THEN 'x' ELSE 'y' END, 'word' || n,"
        " ARRAY[n, 1]::vector FROM generate_series(1, 60) AS n",
        (),
    )
    for fusion in ("rrf", "convex"):
        rows = hybrid(
            fresh,
            table=name,
            columns='(hit)."A b", (hit).part, score',
            query_text="word7 word8",
            query_vector="[7,1]",
            metric="l2",
            fusion=fusion,
        )
        assert len(rows) == 10
        assert {row[:2] for row in rows[:2]} == {(3, "y"), (4, "x")}


def test_views_answer_keys(docs):
    docs.execute("CREATE VIEW some_docs AS SELECT * FROM doc WHERE tenant <> 3")
    statement = """
        SELECT key FROM sqlvec.hybrid_search_keys(NULL::some_docs, NULL::int, NULL, %s::vector,
            %s::halfvec[], key_column => 'id', fusion => 'convex')
    """
    found = docs.execute(statement, (LEGS["query_vector"], LEGS["query_tokens"])).fetchall()
    assert len(found) == 10
    assert found == [
        (row[0],)
        for row in hybrid(
            docs,
            query_vector=LEGS["query_vector"],
            query_tokens=LEGS["query_tokens"],
            fusion="convex",
            where_sql="tenant <> 3",
        )
    ]
    with pytest.raises(WrongObjectType, match="no address"):
        hybrid(docs, table="some_docs", query_vector=LEGS["query_vector"])


ARRAY_KEYS = """
    SELECT 'hybrid', key, score FROM sqlvec.hybrid_search_keys({0}, 'apple', {1}, {2}, k => 7)
    UNION ALL
    SELECT 'vector', key, distance FROM sqlvec.vector_search_keys({3}, 'embedding', {1}, {4}, k => 7)
    UNION ALL
    SELECT 'tokens', key, score FROM sqlvec.maxsim_search_keys({3}, 'tokens', {2}, {4}, k => 7)
    UNION ALL
    SELECT 'text', key, score FROM sqlvec.bm25_search_keys({3}, 'body', 'apple', {4}, k => 7)
    UNION ALL
    SELECT 'boolean', key, relevance FROM sqlvec.boolean_search_keys({3}, 'embedding',
        ARRAY[{1}]::vector[], '1', {4}, k => 7, relevance => '{5}')
"""


@pytest.mark.parametrize("key", ["int[]", "text[]", "pair"])
def test_keys_that_are_arrays(fresh, key):
    """They answer what keys of other types do."""
    fresh.execute("CREATE DOMAIN pair AS int[] CHECK (cardinality(VALUE) = 2)")
    for table, type_, made in (("plain", "int", "i"), ("doc", key, f"ARRAY[i, i + 1]::{key}")):
        fresh.execute(
            f"CREATE TABLE {table} (id {type_} PRIMARY KEY, body text, embedding vector(2),"
            " tokens halfvec(2)[])"
        )
        fresh.execute(
            f"INSERT INTO {table} SELECT {made}, CASE WHEN i % 3 = 0 THEN 'apple' ELSE 'pear' END,"
            " ARRAY[cos(i), sin(i)]::vector, ARRAY[ARRAY[sin(i), 1]::vector::halfvec]"
            " FROM generate_series(11, 50) AS i"
        )
        fresh.execute(f"CALL sqlvec.add_bm25('{table}', 'body')")
        fresh.execute(f"CALL sqlvec.add_quantized('{table}', 'embedding', 'binary')")
        fresh.execute(
            f"CALL sqlvec.add_fde('{table}', 'tokens', repetitions => 3, simhash_bits => 2,"
            " projection => 2)"
        )
        fresh.execute(f"CALL sqlvec.backfill('{table}')")
        fresh.execute(
            f"CALL sqlvec.create_relevance_model('{table}', 'vector', 'raw', '{{4}}', '{{-2}}',"
            f" '{{1}}', '{table}', 'embedding')"
        )

    def found(table: str, type_: str) -> Any:
        query, tokens = "'[1,0.2]'::vector", "ARRAY['[1,0.5]']::halfvec[]"
        row, null = f"NULL::{table}", f"NULL::{type_}"
        statement = ARRAY_KEYS.format(f"{row}, {null}", query, tokens, row, null, table)
        return fresh.execute(statement).fetchall()

    base = "int[]" if key == "pair" else key
    expected = found("plain", "int")
    assert len(expected) == 5 * 7
    element = str if key == "text[]" else int
    assert found("doc", base) == [
        (leg, [element(i), element(i + 1)], score) for leg, i, score in expected
    ]


def test_columns_are_found_where_there_is_one_of_a_kind(fresh):
    fresh.execute(
        "CREATE TABLE doc (id int PRIMARY KEY, body text, a vector(2), b halfvec(2),"
        " tokens halfvec(2)[])"
    )
    fresh.execute(
        "INSERT INTO doc VALUES (1, 'apple', '[1,0]', '[0,1]', ARRAY['[1,0]']::halfvec[])"
    )
    with pytest.raises(
        AmbiguousColumn, match="several columns of type vector or halfvec"
    ) as caught:
        hybrid(fresh, query_vector="[1,0]")
    assert caught.value.diag.message_hint == ("Name one: vector_column => 'a'; there are a, b.")
    assert hybrid(fresh, query_vector="[1,0]", vector_column="b")[0][5] == 1
    with pytest.raises(UndefinedColumn, match="has no BM25 column"):
        hybrid(fresh, query_text="apple")
    # A code is not what is searched.
    fresh.execute("ALTER TABLE doc DROP COLUMN b")
    fresh.execute("CALL sqlvec.add_quantized('doc', 'a', 'halfvec')")
    assert len(hybrid(fresh, query_vector="[1,0]")) == 1
    fresh.execute("ALTER TABLE doc DROP COLUMN tokens")
    with pytest.raises(UndefinedColumn, match=r"no column of type halfvec\[\] or vector\[\]"):
        hybrid(fresh, query_tokens='{"[1,0]"}')


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, InvalidParameterValue, "needs something to search for"),
    ({**LEGS, "fusion": "sum"}, InvalidParameterValue, 'fusion "sum" is not known'),
    ({**LEGS, "fusion": None}, InvalidParameterValue, "is not known"),
    ({**LEGS, "weights": {"text": -1, "vector": 1, "tokens": 1}}, InvalidParameterValue, "-1"),
    ({**LEGS, "weights": {"text": 0, "vector": 0, "tokens": 0}}, InvalidParameterValue, "are 0"),
    ({**LEGS, "weights": {"text": 1}}, InvalidParameterValue, 'no weight for leg "vector"'),
    ({**LEGS, "weights": {"words": 1}}, InvalidParameterValue, 'no leg "words"'),
    ({**LEGS, "weights": {"text": "1"}}, InvalidParameterValue, 'leg "text" has weight "1"'),
    ({"query_text": "x", "weights": {"text": 0, "vector": 1}}, InvalidParameterValue, "are 0"),
    ({**LEGS, "fusion": "relevance"}, InvalidParameterValue, "needs a relevance model"),
    ({**LEGS, "min_relevance": 0.5}, InvalidParameterValue, "needs a relevance model"),
    ({**LEGS, "relevance": "nosuch"}, UndefinedObject, 'model "nosuch" does not exist'),
    ({**LEGS, "relevance": "v", "min_relevance": 1.5}, InvalidParameterValue, "from 0 to 1"),
    ({**LEGS, "relevance": "v", "min_relevance": "NaN"}, InvalidParameterValue, "from 0 to 1"),
    (
        {**LEGS, "relevance": "all", "fusion": "relevance", "weights": {"text": 1}},
        InvalidParameterValue,
        "from the model",
    ),
    ({"query_text": "x", "relevance": "v"}, InvalidParameterValue, "does not ask"),
    ({**LEGS, "autocut": 0}, InvalidParameterValue, "1 or more"),
    ({**LEGS, "min_results": 11}, InvalidParameterValue, r"from 0 to k \(10\)"),
    ({**LEGS, "min_results": -1}, InvalidParameterValue, "from 0 to k"),
    ({**LEGS, "k": 0}, InvalidParameterValue, "k is a number"),
    ({**LEGS, "k": 10001}, InvalidParameterValue, "k is a number"),
    ({**LEGS, "candidates": 9}, InvalidParameterValue, "candidates is a number from k"),
    ({**LEGS, "candidates": 10001}, InvalidParameterValue, "10000 candidates at most"),
    ({**LEGS, "mode": "embedding"}, InvalidParameterValue, "auto or exact"),
    ({**LEGS, "rrf_k": 0}, InvalidParameterValue, "rrf_k"),
    ({**LEGS, "group_column": "nosuch"}, UndefinedColumn, 'column "nosuch"'),
    ({**LEGS, "group_size": 0}, InvalidParameterValue, "group_size"),
    ({**LEGS, "diversity": 2}, InvalidParameterValue, "diversity"),
    ({**LEGS, "metric": "jaccard"}, InvalidParameterValue, "jaccard"),
    ({**LEGS, "filter": {"nosuch": 1}}, UndefinedColumn, 'column "nosuch"'),
    ({"query_vector": "[1,2]"}, DataException, "16 dimensions, the query has 2"),
    ({"query_tokens": '{"[1,2]"}'}, DataException, "of 16 dimensions, the query of 2"),
    ({"query_text": "x", "text_column": "book"}, UndefinedColumn, 'no BM25 column on "book"'),
]


@pytest.mark.parametrize(("arguments", "error", "message"), WRONG)
def test_wrong_arguments(models, arguments, error, message):
    with pytest.raises(error, match=message):
        hybrid(models, **arguments)


def test_a_model_of_another_column_is_refused(models):
    models.execute("ALTER TABLE doc ADD other vector(16), ADD title text")
    with pytest.raises(InvalidParameterValue, match='fitted for column "embedding" of table'):
        hybrid(models, query_vector=vector(VECTOR), vector_column="other", relevance="v")
    models.execute("ROLLBACK")


def test_policies_of_the_caller_apply_to_every_leg_and_to_what_is_read_after(docs):
    docs.execute("CREATE ROLE hybrid_reader")
    docs.execute("GRANT SELECT ON doc TO hybrid_reader")
    docs.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
    docs.execute("CREATE POLICY own ON doc USING (tenant = current_setting('app.tenant')::int)")
    docs.execute("SET LOCAL app.tenant = 2")
    docs.execute("SET LOCAL ROLE hybrid_reader")
    for fusion in ("rrf", "convex"):
        rows = hybrid(docs, columns="(hit).tenant", **LEGS, fusion=fusion, k=100)
        assert len(rows) == len([n for n in range(ROWS) if n % 7 == 2])
        assert set(rows) == {(2,)}


def test_keys_need_rights_to_what_is_searched_only(docs):
    docs.execute("CREATE ROLE hybrid_narrow")
    docs.execute(
        "GRANT SELECT (id, embedding, tokens, body_bm25, body_bm25_tsv) ON doc TO hybrid_narrow"
    )
    docs.execute("SET LOCAL ROLE hybrid_narrow")
    call = (
        "SELECT key FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::int, %s, %s::vector,"
        " %s::halfvec[], fusion => 'convex')"
    )
    assert len(docs.execute(call, tuple(LEGS.values())).fetchall()) == 10
    with pytest.raises(InsufficientPrivilege):
        hybrid(docs, **LEGS)


def test_nothing_on_the_search_path_is_run(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(2))")
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute("INSERT INTO doc VALUES (1, 'apple', '[1,0]'), (2, 'tree', '[0,1]')")
    fresh.execute("CREATE SCHEMA evil")
    for left, right in (
        ("text", "text"),
        ("int", "int"),
        ("oid", "oid"),
        ("tid", "tid"),
        ("float8", "float8"),
        ("anyarray", "anyarray"),
        ("anycompatiblearray", "anycompatiblearray"),
    ):
        fresh.execute(
            f"CREATE FUNCTION evil.caught(a {left}, b {right}) RETURNS boolean LANGUAGE plpgsql"
            " AS $$BEGIN RAISE EXCEPTION 'planted operator was run'; END$$"
        )
        for operator in ("=", "<>", "<", ">", "<=", ">=", "||", "-", "+", "*"):
            fresh.execute(
                f"CREATE OPERATOR evil.{operator}"
                f" (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = evil.caught)"
            )
    fresh.execute("CREATE FUNCTION evil.coalesce(text) RETURNS text LANGUAGE sql RETURN 'x'")
    fresh.execute("SET search_path = evil, pg_catalog, public")
    for fusion in ("rrf", "convex", "dbsf"):
        rows = hybrid(
            fresh,
            columns="(hit).id",
            query_text="apple",
            query_vector="[1,0]",
            fusion=fusion,
            autocut=1,
            min_results=2,
            group_column="body",
        )
        assert ids(rows) == [1, 2]
        fresh.execute(
            "SELECT * FROM sqlvec.explain_hybrid_search(NULL::doc, 'apple', '[1,0]', fusion => %s)",
            (fusion,),
        ).fetchall()


def test_rows_that_wait_for_their_codes_are_found(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(4))")
    fresh.execute(
        "INSERT INTO doc SELECT n, 'word' || n, ARRAY[n, 1, 0, 0]::vector FROM generate_series(1, 50) AS n"
    )
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec')")
    fresh.execute("INSERT INTO doc VALUES (51, 'word51', '[51,1,0,0]')")
    for fusion in ("rrf", "convex"):
        rows = hybrid(
            fresh,
            query_text="word7 word51",
            query_vector="[7,1,0,0]",
            metric="l2",
            fusion=fusion,
            k=51,
        )
        assert rows[0][0] == 7
        assert {row[0] for row in rows if row[3]} == {7, 51}


def test_all_legs_see_one_snapshot(
    docs: psycopg.Connection[Any], tmp_database: Callable[..., str]
) -> None:
    dsn = tmp_database()
    with (
        psycopg.connect(dsn, autocommit=True) as one,
        psycopg.connect(dsn, autocommit=True) as two,
    ):
        one.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(2))")
        one.execute("CALL sqlvec.add_bm25('doc', 'body')")
        one.execute("INSERT INTO doc VALUES (1, 'apple', '[1,0]')")
        one.execute("BEGIN")
        one.execute(
            "DECLARE c CURSOR FOR SELECT (hit).id FROM sqlvec.hybrid_search(NULL::doc, 'apple', '[1,0]')"
        )
        two.execute("INSERT INTO doc VALUES (2, 'apple', '[1,0]')")
        assert one.execute("FETCH ALL FROM c").fetchall() == [(1,)]
        one.execute("COMMIT")


def test_settings_are_put_back(docs):
    names = ("jit", "enable_seqscan", "hnsw.ef_search", "hnsw.iterative_scan", "search_path")
    docs.execute("SELECT '[1]'::vector")
    before = [docs.execute("SELECT current_setting(%s)", (name,)).fetchone() for name in names]
    hybrid(docs, **LEGS, fusion="convex")
    assert [docs.execute("SELECT current_setting(%s)", (n,)).fetchone() for n in names] == before


def test_a_session_searches_tables_of_every_kind(docs):
    for table, kind in (("one", "vector"), ("two", "halfvec")):
        docs.execute(f"CREATE TABLE {table} (id text PRIMARY KEY, embedding {kind}(2))")
        docs.execute(f"INSERT INTO {table} VALUES ('a', '[1,0]')")
    for _ in range(3):
        assert ids(hybrid(docs, table="one", query_vector="[1,0]")) == ["a"]
        assert len(hybrid(docs, **LEGS)) == 10
        assert ids(hybrid(docs, table="two", query_vector="[1,0]", fusion="convex")) == ["a"]


def test_rrf_is_a_function(db):
    assert db.execute("SELECT sqlvec.rrf(1), sqlvec.rrf(3, 2), sqlvec.rrf(NULL)").fetchone() == (
        1 / 61,
        0.2,
        None,
    )


def test_a_tenant_has_all_legs_to_itself(fresh):
    fresh.execute(
        "CREATE TABLE doc (id int PRIMARY KEY, tenant int, body text, embedding vector(2))"
    )
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body', tenant => 'tenant')")
    fresh.execute(
        "INSERT INTO doc SELECT n, n % 3, 'apple ' || n, ARRAY[n, 1]::vector"
        " FROM generate_series(1, 30) AS n"
    )
    for asked in ({"query_text": "apple", "query_vector": "[1,0]"}, {"query_vector": "[1,0]"}):
        rows = hybrid(fresh, columns="(hit).tenant", **asked, tenant="1", k=30)
        assert rows == [(1,)] * 10
    fresh.execute("CREATE TABLE other (id int PRIMARY KEY, body text, embedding vector(2))")
    with pytest.raises(UndefinedColumn, match="no BM25 column"):
        hybrid(fresh, table="other", query_vector="[1,0]", tenant="1")
    fresh.execute("CALL sqlvec.add_bm25('other', 'body')")
    with pytest.raises(InvalidParameterValue, match="was not declared with a tenant"):
        hybrid(fresh, table="other", query_vector="[1,0]", tenant="1")


def test_unknown_relevance_stays_last_where_rows_are_to_differ(models):
    models.execute("UPDATE doc SET embedding = NULL WHERE id % 2 = 0")
    rows = hybrid(
        models,
        query_text=TEXT,
        query_vector=vector(VECTOR),
        fusion="relevance",
        relevance="v",
        diversity=0.1,
    )
    assert all(row[2] is not None for row in rows)


def test_a_key_identifies_rows(docs):
    docs.execute("ALTER TABLE doc ADD code int UNIQUE")
    call = "SELECT * FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::int, 'x', key_column => %s)"
    for column in ("tenant", "code"):
        expected = pytest.raises(
            InvalidParameterValue, match=f'"{column}" of table .* not identify'
        )
        with expected, docs.transaction():
            docs.execute(call, (column,))


def test_groups_go_as_deep_as_it_takes_or_say_that_they_did_not(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, g text, embedding vector(1))")
    fresh.execute(
        "INSERT INTO doc SELECT n, CASE WHEN n < 98 THEN 'a' ELSE n::text END, ARRAY[n]::vector"
        " FROM generate_series(1, 400) AS n"
    )
    asked: dict[str, Any] = {"query_vector": "[1]", "metric": "l2", "group_column": "g"}
    rows = hybrid(fresh, columns="(hit).id, complete", **asked, group_size=3)
    assert rows == [(n, True) for n in (1, 2, 3, *range(98, 105))]
    fresh.execute("INSERT INTO doc SELECT n, 'b', '[0]' FROM generate_series(1000, 11500) AS n")
    rows = hybrid(fresh, columns="(hit).g, complete", **asked | {"query_vector": "[0]"})
    assert rows == [("b", False)]


def test_vectors_of_other_dimensions_are_not_compared(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector)")
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute("INSERT INTO doc VALUES (1, 'apple', '[1,0]'), (2, 'apple', '[1,0,0]')")
    options: list[dict[str, Any]] = [{}, {"diversity": 0.5}]
    for more in options:
        rows = hybrid(
            fresh,
            query_text="apple",
            query_vector="[1,0]",
            fusion="convex",
            metric="cosine",
            **more,
        )
        assert [(row[0], row[5]) for row in rows] == [(1, 0), (2, None)]


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("fusion", ["convex", "dbsf"])
def test_a_distance_that_overflows_spoils_no_other(fresh, metric, fusion):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(2))")
    fresh.execute("INSERT INTO doc VALUES (1, '[1,0]'), (2, '[2,1]'), (3, '[3e38,3e38]')")
    rows = hybrid(
        fresh,
        columns="(hit).id, score",
        query_vector="[3e38,1]" if metric == "inner_product" else "[1,0]",
        metric=metric,
        fusion=fusion,
        autocut=1,
        min_results=3,
        diversity=0.1,
    )
    assert len(rows) == 3
    assert not any(math.isnan(row[1]) for row in rows)


def test_a_flat_curve_loses_no_rows(models, truth):
    model(models, "flat", "vector", -22, -1, "embedding")
    rows = hybrid(models, query_vector=vector(VECTOR), relevance="flat", k=200)
    for place in (5, 50, 120):
        least = rows[place][2]
        cut = hybrid(
            models, query_vector=vector(VECTOR), relevance="flat", k=200, min_relevance=least
        )
        assert len(cut) >= place + 1


def test_a_row_with_a_vector_comes_before_one_without(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(2))")
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute("INSERT INTO doc VALUES (1, 'apple', NULL), (2, 'apple', '[1,0]')")
    for metric in ("l2", "cosine", "inner_product"):
        rows = hybrid(
            fresh, query_text="apple", query_vector="[1,0]", metric=metric, fusion="convex"
        )
        assert ids(rows) == [2, 1]


def test_rows_that_wait_for_their_terms_score_by_their_text(fresh):
    fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, embedding vector(2))")
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
    fresh.execute(
        "INSERT INTO doc SELECT n, 'w1 w' || n % 9, ARRAY[n, 1]::vector FROM generate_series(1, 60) AS n"
    )
    fresh.execute("CREATE INDEX ON doc USING gin (body_bm25_tsv)")
    fresh.execute("SET sqlvec.maintain = off")
    fresh.execute("UPDATE doc SET body = 'w1 w2 w3 w4' WHERE id % 5 = 0")
    for words in ("w1 w2", "+w1 w2", "w1 -w4"):
        rows = hybrid(
            fresh,
            columns="(hit).id, text_score, sqlvec.bm25_score(hit, 'body', 'w1 w2')",
            query_text=words,
            query_vector="[60,1]",
            metric="l2",
            fusion="convex",
            candidates=20,
            k=20,
        )
        assert any(row[0] % 5 == 0 for row in rows)
        for n, score, wanted in rows:
            if words == "w1 -w4":
                assert (score > 0) == (n % 5 != 0 and n % 9 != 4)
            else:
                assert score == pytest.approx(wanted, rel=1e-5)


def test_a_leg_without_weight_finds_nothing(docs):
    asked = {"query_text": "applea", "query_vector": vector(VECTOR)}
    for fusion in ("rrf", "convex", "dbsf"):
        alone = hybrid(docs, query_text="applea", fusion=fusion, k=400, candidates=400)
        rows = hybrid(
            docs, **asked, fusion=fusion, k=400, candidates=400, weights={"text": 1, "vector": 0}
        )
        assert ids(rows) == ids(alone)
    with pytest.raises(InvalidParameterValue, match='leg "text" has weight'):
        docs.execute(
            "SELECT * FROM sqlvec.hybrid_search(NULL::doc, 'x', weights => '{\"text\": 1e400}')"
        )


def test_query_tokens_may_be_numbered_in_any_way(docs):
    rows = hybrid(docs, query_tokens=LEGS["query_tokens"], fusion="convex")
    tokens = ",".join(f'"{vector(token)}"' for token in QUERY_TOKENS)
    for written in (f"[5:{4 + len(QUERY_TOKENS)}]={{{tokens}}}", f"{{{{{tokens}}}}}"):
        assert hybrid(docs, query_tokens=written, fusion="convex") == rows


def test_equal_distances_at_the_edge_come_by_key(fresh):
    fresh.execute(
        "CREATE TABLE doc (id int, part text, embedding vector(2), PRIMARY KEY (part, id))"
    )
    fresh.execute("INSERT INTO doc SELECT n, 'a', '[1,0]' FROM generate_series(300, 1, -1) AS n")
    for _ in range(2):
        rows = hybrid(fresh, columns="(hit).id", query_vector="[1,0]", k=3, candidates=10)
        assert ids(rows) == [1, 2, 3]
        fresh.execute("UPDATE doc SET embedding = '[1,0]' WHERE id < 50")


def test_a_model_stays_with_its_column(models):
    models.execute("ALTER TABLE doc RENAME embedding TO old")
    models.execute("ALTER TABLE doc ADD embedding vector(16)")
    assert hybrid(models, query_vector=vector(VECTOR), vector_column="old", relevance="v")
    expected = pytest.raises(InvalidParameterValue, match="was fitted for column")
    with expected, models.transaction():
        hybrid(models, query_vector=vector(VECTOR), vector_column="embedding", relevance="v")
    model(models, "code", "text", 4, -3, "body_bm25")
    models.execute("ALTER TABLE doc RENAME body_bm25 TO code")
    assert hybrid(models, query_text=TEXT, relevance="code")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("float8", "n + 0.1 + 0.2"),
        ("real", "n + 0.1"),
        ("timestamptz", "now() + n * interval '1 s'"),
    ],
)
def test_keys_of_types_whose_text_depends_on_settings(fresh, kind, value):
    fresh.execute(
        f"CREATE TABLE doc (id {kind} PRIMARY KEY, body text, embedding vector(2), tokens halfvec(2)[])"
    )
    fresh.execute("CALL sqlvec.add_bm25('doc', 'body')")
    fresh.execute("CALL sqlvec.add_fde('doc', 'tokens', projection => 2)")
    fresh.execute(
        f"INSERT INTO doc SELECT {value}, 'apple', '[1,0]', ARRAY['[1,0]']::halfvec[]"
        " FROM generate_series(1, 300) AS n"
    )
    fresh.execute("SET extra_float_digits = -8")
    fresh.execute("SET datestyle = 'SQL, DMY'")
    fresh.execute("SET timezone = 'Asia/Kolkata'")
    rows = fresh.execute(
        "SELECT count(*) FROM (SELECT key FROM sqlvec.hybrid_search_keys(NULL::doc, NULL::"
        f"{kind}, 'apple', '[1,0]', ARRAY['[1,0]']::halfvec[], k => 300, fusion => 'convex')"
        " INTERSECT SELECT id FROM doc) AS found"
    ).fetchall()
    assert rows == [(300,)]


def test_a_fused_model_of_which_one_leg_is_asked_is_that_leg(models, truth):
    for leg, single in (("query_vector", "v"), ("query_text", "t"), ("query_tokens", "m")):
        for least in (None, 0.15):
            asked = {leg: LEGS[leg], "k": 50, "min_relevance": least}
            rows = hybrid(models, **asked, relevance="all")
            assert rows == hybrid(models, **asked, relevance=single)
            assert rows
    explained = dict(
        models.execute(
            "SELECT * FROM sqlvec.explain_hybrid_search(NULL::doc, NULL, %s::vector, relevance => 'all')",
            (vector(VECTOR),),
        ).fetchall()
    )
    assert explained["model"] == "v of leg vector"
