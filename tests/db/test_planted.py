"""Nothing of sqlvec may run what somebody planted on the search_path of its caller.

A type in pg_temp goes before one of pg_catalog, an operator does in a schema that search_path names first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.unit.test_planted import KEYWORDS

Db = psycopg.Connection[Any]

COLUMNS = (
    "id int PRIMARY KEY, code uuid UNIQUE NOT NULL, name text UNIQUE NOT NULL, made timestamptz UNIQUE NOT NULL,"
    " short char(4) UNIQUE NOT NULL, day date, price float8, tags text[], details jsonb, flag bool,"
    " body text, embedding vector(4), bits bit(4), words sparsevec(4), tokens halfvec(4)[]"
)
ROWS = """
    SELECT i, gen_random_uuid(), 'n' || i, '2026-01-01'::timestamptz + i * interval '1 h', 'r' || i,
           '2026-01-01'::date + i, i, '{a,b}'::text[], '{"a": 1}'::jsonb, true,
           CASE i % 2 WHEN 0 THEN 'apple' ELSE 'apple pear' END, format('[1,%s,%s,%s]', i, i % 7, i % 5)::vector,
           (i % 16)::bit(4), format('{1:1,3:%s}/4', i)::sparsevec, ARRAY[format('[1,%s,0,0]', i % 9), '[0,1,0,0]']::halfvec[]
    FROM generate_series(1, 60) AS i
"""
FILTER = (
    '{"name": {"$ne": "x"}, "code": {"$gt": "00000000-0000-0000-0000-000000000000"},'
    ' "day": {"$between": ["2020-01-01", "2030-01-01"]}, "short": {"$in": ["r1", "r2", "r3"]},'
    ' "made": {"$lt": "2030-01-01"}, "tags": {"$contains": "a"}, "details": {"$contains": {"a": 1}},'
    ' "price": {"$lte": 1000}, "flag": true}'
)
KEYS = {
    "id": "NULL::int",
    "code": "NULL::pg_catalog.uuid",
    "name": "NULL::pg_catalog.text",
    "made": "NULL::pg_catalog.timestamptz",
    "short": "NULL::pg_catalog.bpchar",
}
VECTOR, TOKENS = "'[1,2,3,4]'", """'{"[1,1,0,0]","[0,1,0,0]"}'"""
LEGS = f"query_text => 'apple pear', query_vector => {VECTOR}, query_tokens => {TOKENS}"
BOOLEAN = f"""'embedding', ARRAY[{VECTOR}, '[4,1,0,0]']::public.vector[], '{{"and": [1, {{"not": 2}}]}}'"""
SEARCHES = {
    "vector_search": f"'embedding', {VECTOR}",
    "bit_search": "'bits', B'1010'",
    "sparse_search": "'words', '{1:1}/4'",
    "maxsim_search": f"'tokens', {TOKENS}",
    "bm25_search": "'body', 'apple pear'",
    "boolean_search": BOOLEAN,
}
EXPLAINED = {
    "explain_search": SEARCHES["vector_search"],
    "explain_maxsim_search": SEARCHES["maxsim_search"],
    "explain_bm25_search": SEARCHES["bm25_search"],
    "explain_hybrid_search": LEGS,
}
# Pseudo-types have no domains; a type of that name serves.
PLANT_TYPES = """
DO $$
DECLARE
    planted pg_catalog.record;
BEGIN
    CREATE FUNCTION pg_temp.run(type_name pg_catalog.text) RETURNS boolean LANGUAGE plpgsql
        AS 'BEGIN RAISE EXCEPTION ''ran the planted type %'', type_name; END';
    FOR planted IN
        SELECT t.typname AS name, CASE WHEN t.typtype = 'p' THEN 'int' ELSE format('%I.%I', n.nspname, t.typname) END AS base
        FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
        WHERE t.typtype IN ('b', 'r', 'm', 'p') AND t.typcategory <> 'A'
          AND (n.nspname = 'pg_catalog' OR t.typname IN ('vector', 'halfvec', 'sparsevec'))
    LOOP
        EXECUTE format('CREATE DOMAIN pg_temp.%I AS %s CHECK (pg_temp.run(%L))', planted.name, planted.base, planted.name);
    END LOOP;
END
$$
"""


# All operators of pg_catalog but those of pseudo-types that PL/pgSQL does not take.
PLANT_OPERATORS = """
DO $$
DECLARE
    planted pg_catalog.record;
BEGIN
    CREATE SCHEMA planted;
    GRANT USAGE ON SCHEMA planted TO planter;
    FOR planted IN
        SELECT o.oprname AS name, 'op' || o.oid AS function, NULLIF(o.oprleft, 0)::regtype AS l, o.oprright::regtype AS r, o.oprresult::regtype AS result
        FROM pg_operator AS o
        WHERE o.oprnamespace = 'pg_catalog'::regnamespace AND o.oprcode <> 0
          AND NOT EXISTS (SELECT FROM pg_type AS t WHERE t.oid IN (o.oprleft, o.oprright, o.oprresult) AND t.typtype = 'p')
    LOOP
        EXECUTE format('CREATE FUNCTION planted.%I(%s) RETURNS %s LANGUAGE plpgsql AS %L', planted.function, concat_ws(', ', planted.l, planted.r), planted.result,
                       format('BEGIN RAISE EXCEPTION ''ran the planted operator %s''; END', replace(planted.name, '%', '%%')));
        EXECUTE format('CREATE OPERATOR planted.%s (FUNCTION = planted.%I, %sRIGHTARG = %s)', planted.name, planted.function,
                       'LEFTARG = ' || planted.l || ', ', planted.r);
    END LOOP;
END
$$
"""


@pytest.fixture(scope="module", autouse=True)
def documents(dsn: str) -> Iterator[None]:
    """Create doc, whose rows all have their codes, late, whose rows wait for them, and bare."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("CREATE ROLE planter")
        for table in ("doc", "late", "bare"):
            db.execute(f"CREATE TABLE {table} ({COLUMNS})")
            db.execute(f"INSERT INTO {table} {ROWS}")
        for table in ("doc", "late"):
            declare(db, table)
            db.execute(
                f"CREATE INDEX {table}_code ON {table} USING hnsw (code2 halfvec_cosine_ops)"
            )
        db.execute("CALL sqlvec.backfill('doc')")
        db.execute("CALL sqlvec.analyze_bm25('doc')")
        db.execute("ANALYZE")
        db.execute(PLANT_OPERATORS)
    yield
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute("DROP OWNED BY planter; DROP ROLE planter")


def declare(db: Db, table: str) -> None:
    db.execute(f"CALL sqlvec.add_bm25('{table}', 'body')")
    db.execute(f"CALL sqlvec.add_fde('{table}', 'tokens', repetitions => 2, projection => 2)")
    db.execute(f"CALL sqlvec.add_pooled('{table}', 'tokens')")
    db.execute(
        f"CALL sqlvec.add_quantized('{table}', 'embedding', 'truncate', 'code2',"
        """ options => '{"dimensions": 2}')"""
    )
    db.execute(
        f"CALL sqlvec.create_relevance_model('m_{table}', 'vector', 'raw', '{{12}}', '{{-6}}', '{{1}}',"
        f" '{table}', 'embedding')"
    )


@pytest.fixture
def session(dsn: str) -> Iterator[Db]:
    """Open a session of its own, because PL/pgSQL keeps what it once compiled."""
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as db:
        yield db


@pytest.fixture
def planted_types(session: Db) -> Db:
    session.execute(PLANT_TYPES)
    return session


@pytest.fixture
def planted_operators(session: Db) -> Db:
    session.execute("SET search_path = planted, pg_catalog, public")
    return session


@pytest.fixture(params=["planted_types", "planted_operators"])
def planted(request: pytest.FixtureRequest) -> Db:
    found: Db = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("name", ["text", "oid", "record", "uuid", "jsonb", "vector", "int4range"])
def test_a_planted_type_runs(planted_types: Db, name: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match=f"ran the planted type {name}"):
        planted_types.execute(f"SELECT CAST(NULL AS {name})")


@pytest.mark.parametrize("expression", ["1 = 1", "'a'::text || 'b'::text", "now() > now()"])
def test_a_planted_operator_runs(planted_operators: Db, expression: str) -> None:
    with pytest.raises(psycopg.errors.RaiseException, match="ran the planted operator"):
        planted_operators.execute(f"SELECT {expression}")


def test_words_of_the_grammar_are_types_of_pg_catalog(planted_types: Db) -> None:
    for name in KEYWORDS:
        planted_types.execute(f"SELECT CAST(NULL AS {name}), CAST(NULL AS {name}[])")


@pytest.mark.parametrize("table", ["doc", "late"])
@pytest.mark.parametrize("search", SEARCHES)
def test_searches(planted: Db, search: str, table: str) -> None:
    start = f"NULL::{table}, {SEARCHES[search]}"
    options = [
        "",
        f", filter => '{FILTER}'",
        ", where_sql => 'price OPERATOR(pg_catalog.<) ($1)[1]::int', params => '{50}'",
    ]
    if search == "boolean_search":
        options = [f", relevance => 'm_{table}'{option}" for option in options]
    if search != "bm25_search":
        options += [f"{options[1]}, mode => 'exact'"]
    if search == "vector_search":
        options += [f"{options[1]}, mode => '{table}_code'"]
    if search == "maxsim_search":
        options += [f"{options[1]}, carve => 0.9", ", rescore => false", ", recall => 1"]
        options += [
            f"{options[1]}, mode => 'tokens_fde'",
            ", mode => 'tokens_fde', pooled => 'tokens_pool'",
        ]
    for option in options:
        assert planted.execute(f"SELECT (hit).id FROM sqlvec.{search}({start}{option})").fetchall()
        for column, null in KEYS.items():
            assert planted.execute(
                f"SELECT key FROM sqlvec.{search}_keys({start}, {null}{option}, key_column => '{column}')"
            ).fetchall()


@pytest.mark.parametrize("table", ["doc", "late"])
def test_hybrid_searches(planted: Db, table: str) -> None:
    for option in (
        "",
        f", filter => '{FILTER}'",
        ", mode => 'exact'",
        ", group_column => 'name'",
        ", diversity => 0.5",
    ):
        arguments = f"{LEGS}, text_column => 'body', vector_column => 'embedding', tokens_column => 'tokens'{option}"
        assert planted.execute(
            f"SELECT (hit).id FROM sqlvec.hybrid_search(NULL::{table}, {arguments})"
        ).fetchall()
        for column, null in KEYS.items():
            assert planted.execute(
                f"SELECT key FROM sqlvec.hybrid_search_keys(NULL::{table}, {null}, {arguments}, key_column => '{column}')"
            ).fetchall()


@pytest.mark.parametrize("table", ["doc", "late"])
@pytest.mark.parametrize("function", EXPLAINED)
def test_explanations(planted: Db, function: str, table: str) -> None:
    assert planted.execute(
        f"SELECT * FROM sqlvec.{function}(NULL::{table}, {EXPLAINED[function]}, filter => '{FILTER}')"
    ).fetchall()


def test_scores_and_headlines(planted: Db) -> None:
    assert planted.execute(
        "SELECT sqlvec.bm25_score(d, 'body', 'apple'), sqlvec.bm25_headline(d, 'body', 'apple'),"
        " sqlvec.bm25_query(NULL::doc, 'body', 'apple'), sqlvec.bm25_tsquery(NULL::doc, 'body', 'apple'),"
        " sqlvec.bm25_maximum(NULL::doc, 'body', 'apple') FROM doc AS d"
    ).fetchall()


def test_tenants_under_row_security(planted: Db) -> None:
    planted.execute("CREATE TABLE shared (LIKE bare INCLUDING ALL)")
    planted.execute("INSERT INTO shared SELECT * FROM bare")
    planted.execute("CALL sqlvec.add_bm25('shared', 'body', tenant => 'code')")
    planted.execute("CALL sqlvec.backfill('shared')")
    planted.execute("CALL sqlvec.analyze_bm25('shared')")
    planted.execute("ALTER TABLE shared ENABLE ROW LEVEL SECURITY")
    planted.execute("CREATE POLICY few ON shared USING (id OPERATOR(pg_catalog.<) 10)")
    planted.execute("GRANT SELECT ON shared TO planter")
    tenant = planted.execute("SELECT code FROM shared WHERE id OPERATOR(pg_catalog.=) 3").fetchone()
    assert tenant is not None
    for role in ("planter", "postgres"):
        planted.execute(f"SET ROLE {role}")
        for arguments in (f"tenant => '{tenant[0]}'", f"""filter => '{{"code": "{tenant[0]}"}}'"""):
            rows = planted.execute(
                f"SELECT (hit).id FROM sqlvec.bm25_search(NULL::shared, 'body', 'apple', {arguments})"
            ).fetchall()
            assert rows == [(3,)]
        assert planted.execute("SELECT * FROM sqlvec.bm25_frequency").fetchall()


def test_declaring_and_filling(planted: Db) -> None:
    # Models and encoders of one name cannot be made twice.
    pid = planted.info.backend_pid
    mine = f"mine{pid}"
    planted.execute(f"CREATE TABLE {mine} (LIKE bare INCLUDING ALL)")
    planted.execute(f"INSERT INTO {mine} SELECT * FROM bare WHERE id OPERATOR(pg_catalog.<=) 30")
    declare(planted, mine)
    for call in (
        f"create_encoder('signs{pid}', 'binary', 4, '{{\"rotate\": true}}')",
        f"fit_centroids('nearest{pid}', '{mine}', 'tokens', 2)",
        f"fit_hubness('hubs{pid}', '{mine}', 'embedding')",
        f"add_quantized('{mine}', 'embedding', 'signs{pid}')",
        f"add_centroid('{mine}', 'tokens', 'nearest{pid}')",
        f"add_hubness('{mine}', 'embedding', 'hubs{pid}')",
        f"backfill('{mine}')",
        f"backfill('{mine}', verify => true)",
        f"analyze_bm25('{mine}')",
        f"repair('{mine}')",
        "check()",
    ):
        planted.execute(f"CALL sqlvec.{call}")
    planted.execute(
        f"INSERT INTO {mine} (id, code, name, made, short, body, embedding, tokens) SELECT id, code, name, made, short, body, embedding, tokens FROM bare WHERE id OPERATOR(pg_catalog.>) 30"
    )
    planted.execute(
        f"UPDATE {mine} SET body = 'fig', embedding = '[1,1,1,1]', tokens = NULL WHERE id OPERATOR(pg_catalog.<) 10"
    )
    planted.execute(f"CALL sqlvec.analyze_bm25('{mine}', drift => 0)")
    for view in ("derived_column", "bm25_health", "backfill_progress"):
        assert planted.execute(f"SELECT * FROM sqlvec.{view}").fetchall()
    assert planted.execute(f"SELECT * FROM sqlvec.plan_index('{mine}', 'embedding')").fetchall()
    assert planted.execute(
        f"SELECT sqlvec.encode('signs{pid}', '[1,2,3,4]', NULL::bit varying)"
    ).fetchall()
    for column in ("code2", "body_bm25"):
        planted.execute(f"CALL sqlvec.drop_derived('{mine}', '{column}')")


@pytest.mark.parametrize("key", KEYS)
def test_neighbours(planted: Db, key: str) -> None:
    table = f"by_{key}"
    planted.execute(f"CREATE TABLE {table} AS SELECT {key} AS key, embedding FROM bare")
    planted.execute(f"ALTER TABLE {table} ADD PRIMARY KEY (key)")
    planted.execute(f"CREATE INDEX ON {table} USING hnsw (embedding public.vector_cosine_ops)")
    for option in ("", ", mutual => true", ", rebuild => true"):
        planted.execute(
            f"CALL sqlvec.build_neighbours('{table}', 'embedding', 3, batch => 20{option})"
        )
    assert planted.execute(
        f"SELECT e.* FROM (SELECT pg_catalog.array_agg(key) AS keys FROM {table}) AS k,"
        f" sqlvec.expand('{table}_neighbours', k.keys, pg_catalog.array_fill(0.5::double precision, ARRAY[60]), 2, blend => 0.5) AS e"
    ).fetchall()
