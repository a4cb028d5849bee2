"""Binary codes of several levels, from the declaration to the search."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlvec import Binary, Quantized, vector_search
from sqlvec.catalog import load_encoder
from sqlvec.types import VECTOR
from tests.db import vectors

ROWS, DIMENSIONS = 4000, 64
LEVELS = (1, 2, 3, 4)
Db = psycopg.Connection[Any]


def anisotropic(rows: int, seed: int) -> Any:
    """Return vectors whose dimensions carry very different weight."""
    normal = np.random.default_rng(seed).standard_normal((rows, DIMENSIONS))
    return (normal * np.geomspace(1, 0.3, DIMENSIONS)).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> Any:
    return anisotropic(ROWS, 0)


@pytest.fixture(scope="module")
def db(dsn: str, data: Any) -> Iterator[Db]:
    """Table leveled: one vector column with a code and an index for each number of levels."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE leveled (id int PRIMARY KEY, embedding vector(64))")
        with connection.cursor().copy("COPY leveled FROM STDIN") as copy:
            for i, row in enumerate(data):
                copy.write_row((i, vectors.text(row)))
        for levels in LEVELS:
            connection.execute(
                "CALL sqlvec.add_quantized('leveled', 'embedding', 'binary', %s, options => %s)",
                [f"code_{levels}", json.dumps({"levels": levels})],
            )
        connection.execute("CALL sqlvec.backfill('leveled')")
        for (statement,) in connection.execute(
            "SELECT statement FROM sqlvec.plan_index('leveled', 'embedding') WHERE name LIKE 'code%'"
        ).fetchall():
            connection.execute(statement)
        connection.execute("ANALYZE leveled")
        yield connection
        connection.execute("DROP TABLE leveled")


def recall(db: Db, data: Any, levels: int, candidates: int) -> float:
    found = []
    for query in anisotropic(40, 1):
        keys = db.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::leveled, 'embedding', %s::vector,"
            " key => NULL::int, mode => %s, candidates => %s)",
            [vectors.text(query), f"code_{levels}", candidates],
        ).fetchall()
        nearest = np.argsort(vectors.distances("cosine", data, query), kind="stable")[:10]
        found.append(len({key for (key,) in keys} & set(nearest.tolist())) / 10)
    return float(np.mean(found))


def test_more_levels_find_more_among_as_many_candidates(db: Db, data: Any) -> None:
    found = [recall(db, data, levels, 100) for levels in LEVELS]
    assert min(found[1:]) > found[0]
    assert found[-1] > found[0] + 0.1


@pytest.mark.parametrize(("levels", "candidates"), [(1, 400), (2, 300), (3, 300), (4, 300)])
def test_several_levels_take_fewer_candidates(db: Db, levels: int, candidates: int) -> None:
    def plan(k: int) -> str:
        row = db.execute(
            "SELECT detail FROM sqlvec.explain_search(NULL::leveled, 'embedding', %s::vector,"
            " k => %s, mode => %s) WHERE topic = 'plan'",
            [vectors.text([1.0] * DIMENSIONS), k, f"code_{levels}"],
        ).fetchone()
        assert row is not None
        return str(row[0])

    assert f"{candidates} candidates" in plan(10)
    assert f"{candidates} candidates" in plan(1)
    assert f"{2 * candidates} candidates" in plan(20)


def test_an_expression_has_one_level(db: Db, data: Any) -> None:
    plans = db.execute(
        "SELECT name, statement FROM sqlvec.plan_index('leveled', 'embedding') WHERE name LIKE '%:binary'"
    ).fetchall()
    assert [name for name, _ in plans] == ["expression:binary"]
    db.execute(plans[0][1])
    row = db.execute(
        "SELECT detail FROM sqlvec.explain_search(NULL::leveled, 'embedding', %s::vector,"
        " mode => 'expression:binary') WHERE topic = 'plan'",
        [vectors.text(data[0])],
    ).fetchone()
    assert row is not None and "400 candidates" in row[0]


def codes(conn: Connection, table: str) -> Any:
    rows = conn.scalars(text(f"SELECT code::text FROM {table} ORDER BY id")).all()
    return np.array([[bit == "1" for bit in row] for row in rows])


@pytest.mark.parametrize("source", ["vector", "halfvec"])
@pytest.mark.parametrize(
    "encoder",
    [Binary(levels=3), Binary(levels=4), Binary(levels=2, center=True)],
    ids=repr,
)
def test_trigger_and_backfill_give_the_code_of_numpy(
    conn: Connection, source: str, encoder: Binary
) -> None:
    values = anisotropic(60, 2).astype(np.float16).astype(np.float32)
    values[7] = 0
    conn.execute(text(f"CREATE TABLE doc (id int PRIMARY KEY, embedding {source}(64))"))
    insert = text("INSERT INTO doc VALUES (:id, :embedding)")
    rows = [{"id": i, "embedding": vectors.text(row)} for i, row in enumerate(values)]
    conn.execute(insert, rows[:30])
    conn.execute(
        text(
            "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code', options => :options)"
        ),
        {"options": json.dumps(encoder.options())},
    )
    conn.execute(insert, rows[30:])
    conn.execute(text("UPDATE doc SET code = NULL WHERE id < 30"))
    name, code_type = conn.execute(
        text("SELECT encoder, code_type FROM sqlvec.derived_column WHERE target_column = 'code'")
    ).one()
    assert code_type == encoder.code_type(64)
    loaded, parts = load_encoder(conn, name)
    assert loaded == encoder
    assert (codes(conn, "doc") == encoder.encode(values, parts)).all()
    conn.execute(text("UPDATE doc SET embedding = (SELECT embedding FROM doc WHERE id = 1)"))
    assert (codes(conn, "doc") == encoder.encode(values[[1] * 60], parts)).all()


def test_backfill_gives_the_code_of_the_trigger(db: Db) -> None:
    db.execute("SET sqlvec.maintain = off")
    db.execute("UPDATE leveled SET code_3 = ~code_3 WHERE id = 5")
    db.execute("RESET sqlvec.maintain")
    db.execute("CALL sqlvec.backfill('leveled', verify => true)")
    for levels in LEVELS:
        row = db.execute(
            f"SELECT bool_and(code_{levels} = sqlvec.encode(c.encoder, embedding, NULL::bit varying))"
            " FROM leveled, sqlvec.derived_column AS c WHERE c.target_column = %s",
            [f"code_{levels}"],
        ).fetchone()
        assert row == (True,)


def test_a_zero_vector_is_found_where_it_can_be(db: Db) -> None:
    zero = vectors.text([0.0] * DIMENSIONS)
    db.execute("INSERT INTO leveled (id, embedding) VALUES (-1, %s)", [zero])
    try:
        keys = db.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::leveled, 'embedding', %s::vector,"
            " key => NULL::int, k => 1, metric => 'l2')",
            [zero],
        ).fetchall()
        assert keys == [(-1,)]
        row = db.execute(
            "SELECT min(d), max(d) FROM (SELECT code_4 <~> (SELECT code_4 FROM leveled WHERE id = -1)"
            " FROM leveled WHERE id >= 0) AS t (d)"
        ).fetchone()
        assert row is not None and row[1] < 2 * row[0]
    finally:
        db.execute("DELETE FROM leveled WHERE id = -1")


def test_plan_index_says_how_many_levels_fit(conn: Connection) -> None:
    conn.execute(text("CREATE TABLE wide (id int, embedding vector(16000))"))
    for levels in (4, 5):
        conn.execute(
            text(
                "CALL sqlvec.add_quantized('wide', 'embedding', 'binary', :target, options => :o)"
            ),
            {"target": f"code_{levels}", "o": json.dumps({"levels": levels})},
        )
    found = conn.execute(
        text(
            "SELECT statement IS NULL, note FROM sqlvec.plan_index('wide', 'embedding')"
            " WHERE name LIKE 'code%' ORDER BY name"
        )
    ).all()
    assert found == [
        (False, None),
        (True, '80000 dimensions are over the limit of 64000; "levels" up to 4 fit'),
    ]


class Base(DeclarativeBase):
    pass


class Leaf(Base):
    __tablename__ = "leaf"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[list[float]] = mapped_column(VECTOR(8))
    codes = Quantized("embedding", Binary(levels=4))
    __table_args__ = (codes, codes.index())


def test_a_model_declares_levels(engine: Engine) -> None:
    Base.metadata.create_all(engine)
    try:
        values = np.random.default_rng(4).standard_normal((50, 8))
        with Session(engine) as session, session.begin():
            session.add_all(Leaf(id=i, embedding=row.tolist()) for i, row in enumerate(values))
            session.flush()
            found = session.scalars(vector_search(Leaf, values[9].tolist(), k=3)).all()
            assert found[0].id == 9
            code = session.scalar(text("SELECT embedding_binary::text FROM leaf WHERE id = 9"))
            expected = Binary(levels=4).encode(values[9])
            assert code == "".join("01"[int(bit)] for bit in expected)
    finally:
        Base.metadata.drop_all(engine)
