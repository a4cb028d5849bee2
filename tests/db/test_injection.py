"""No argument of a public function or procedure is read as SQL, but for where_sql, which is SQL.

The functions come from the server: a new one, or a new argument of text, fails here until it has a
call of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import psycopg
import pytest
from psycopg import sql

Db = psycopg.Connection[Any]
Call = dict[str, str]

READ = {"text", "text[]", "jsonb", "jsonb[]", "json", "name", "name[]", "character varying"}
TRUSTED = {"where_sql"}
# So says ts_headline of options that it cannot read.
NO_SQL = "invalid parameter list format"
COMMITTING = {"backfill", "analyze_bm25", "build_neighbours"}

RUN = "public.run_by_injection()"
HOSTILE = [
    f"'; SELECT {RUN}; --",
    f'"; SELECT {RUN}; --',
    f"x' || {RUN} || '",
    f"{RUN}",
    f"embedding) FROM public.doc; SELECT {RUN}; --",
    f"$1); DROP TABLE public.planted; SELECT {RUN}; /*",
    f"$body$; SELECT {RUN}; $$ \\'; --",
    'two words, "a""b" \'c\' %I %1$s %% $1 \\',
    "",
]

COMMON = {
    "rel": "NULL::doc",
    "filter": """'{"tag": {"$in": ["t1", "t2"], "$ne": "x"}, "$or": [{"id": {"$gte": 0}}, {"tag": "t1"}], "details": {"$contains": {"a": "b"}}}'""",
    "where_sql": "'doc.id < ($1)[1]::int'",
    "params": "'{50}'",
    "metric": "'cosine'",
    "mode": "'auto'",
    "key": "NULL::int",
    "key_column": "'id'",
    "tenant": "'t1'",
    "backend": "'auto'",
    "pooled": "'auto'",
    "relevance": "'raw'",
    "combine": "'product'",
    "target": "'made'",
}
VECTOR, TOKENS = "'[1,2,3,4]'", """'{"[1,1,0,0]","[0,1,0,0]"}'"""
QUERIES = f"ARRAY[{VECTOR}, '[4,1,0,0]']::vector[]"
BANK = """'{"[1,2,3,4]","[2,1,0,1]"}'"""
VECTORS = {"column_name": "'embedding'", "query": VECTOR}
WORDS = {"column_name": "'body'", "query": "'apple pear'"}
MULTIVECTORS = {"column_name": "'tokens'", "query": TOKENS}
BITS = {"column_name": "'bits'", "query": "B'1010'", "metric": "'jaccard'"}
SPARSE = {"column_name": "'words'", "query": "'{1:1}/4'"}
BOOLEAN = {
    "column_name": "'embedding'",
    "queries": QUERIES,
    "expression": """'{"and": [1, {"not": 2}]}'""",
}
LEGS = {
    "query_text": "'apple pear'",
    "query_vector": VECTOR,
    "query_tokens": TOKENS,
    "text_column": "'body'",
    "vector_column": "'embedding'",
    "tokens_column": "'tokens'",
    "group_column": "'tag'",
    "fusion": "'convex'",
    "weights": """'{"text": 1, "vector": 2, "tokens": 3}'""",
    "relevance": "NULL",
}
FUSED = {"fusion": "'relevance'", "relevance": "'both'", "weights": "NULL", "query_tokens": "NULL"}
HYBRID = [LEGS, LEGS | FUSED]
MODEL = {"model": "'raw'", "query": VECTOR}
TEXT_MODEL = {"model": "'raw_text'", "maximum": "2"}
CURVE = {"slope": "'{1}'", "intercept": "'{1}'", "exponent": "'{1}'", "rel": "'doc'"}
DECLARED = {"rel": "'doc'"}

# Arguments that COMMON does not give; a list where one call cannot have all of them.
CALLS: dict[str, Call | list[Call]] = {
    "add_bm25": [
        DECLARED | {"column_name": "'title'", "tenant": "'tag'", "fields": "NULL"},
        DECLARED
        | {"column_name": "NULL", "fields": """'{"title": 2, "note": 1}'""", "tenant": "NULL"},
    ],
    "add_centroid": DECLARED | {"column_name": "'tokens'", "encoder": "'cells'"},
    "add_fde": DECLARED
    | {"column_name": "'tokens'", "repetitions": "2", "projection": "2", "seed": "7"},
    "add_hubness": DECLARED | {"column_name": "'embedding'", "encoder": "'hubs'"},
    "add_pooled": [
        DECLARED
        | {"column_name": "'tokens'", "method": "'top'", "options": """'{"share": 0.5}'"""}
        | {"weights_column": "'importance'"},
    ],
    "add_quantized": DECLARED
    | {
        "column_name": "'embedding'",
        "encoder": "'truncate'",
        "options": """'{"dimensions": 2, "type": "halfvec"}'""",
    },
    "backfill": DECLARED | {"target": "'code2'"},
    "best_per_group": {"groups": "'{a,b}'", "scores": "'{2,1}'"},
    "bit_search": BITS,
    "bit_search_keys": BITS,
    "bm25_headline": WORDS | {"hit": "d", "options": "'StartSel=<, StopSel=>'"},
    "bm25_maximum": WORDS,
    "bm25_query": WORDS,
    "bm25_score": WORDS | {"hit": "d"},
    "bm25_search": WORDS,
    "bm25_search_keys": WORDS,
    "bm25_tsquery": WORDS,
    "boolean_relevance": BOOLEAN | {"relevance": "'{0.5,0.2}'"},
    "boolean_search": BOOLEAN,
    "boolean_search_keys": BOOLEAN,
    "build_neighbours": DECLARED | {"column_name": "'embedding'", "into_table": "'edges'"},
    "centroid_codes": {"encoder": "'cells'", "tokens": TOKENS},
    "centroid_decode": {"encoder": "'cells'", "codes": f"sqlvec.centroid_codes('cells', {TOKENS})"},
    "centroid_table": {"encoder": "'cells'", "query": TOKENS},
    "create_centroid_encoder": {"name": "'new'", "centroids": BANK},
    "create_encoder": {
        "name": "'new'",
        "kind": "'truncate'",
        "dimensions": "4",
        "options": """'{"dimensions": 2, "type": "halfvec"}'""",
    },
    "create_hubness_encoder": {"name": "'new'", "queries": BANK},
    "create_relevance_model": [
        CURVE
        | {"name": "'new'", "leg": "'vector'", "family": "'raw'"}
        | {"column_name": "'embedding'", "models": "NULL"},
        {"name": "'new'", "leg": "'fused'", "family": "'logistic'", "rel": "NULL"}
        | {"slope": "'{1,1,1}'", "intercept": "'{0,0,0,0}'", "exponent": "'{}'"}
        | {"column_name": "NULL", "models": "'{raw,raw_text,NULL}'"},
    ],
    "drop_derived": DECLARED | {"target": "'code2'"},
    "drop_encoder": {"name": "'signs'"},
    "drop_relevance_model": {"name": "'both'"},
    "encode": {"encoder": "'signs'", "x": VECTOR, "code": "NULL::bit varying"},
    "explain_bm25_search": WORDS,
    "explain_hybrid_search": HYBRID,
    "explain_maxsim_search": MULTIVECTORS,
    "explain_search": VECTORS,
    "fde_document": {"encoder": "'public.doc.tokens_fde'", "tokens": TOKENS},
    "fde_document_bits": {"encoder": "'public.doc.fde_bits'", "tokens": TOKENS},
    "fde_query": {"encoder": "'public.doc.tokens_fde'", "tokens": TOKENS},
    "fde_query_bits": {"encoder": "'public.doc.fde_bits'", "tokens": TOKENS},
    "fit_centroids": DECLARED | {"name": "'new'", "column_name": "'tokens'", "clusters": "2"},
    "fit_hubness": {"name": "'new'", "queries": "'doc'", "queries_column": "'embedding'"}
    | {"gallery": "'doc'", "gallery_column": "'embedding'"},
    "hybrid_search": HYBRID,
    "hybrid_search_keys": HYBRID,
    "maxsim_search": MULTIVECTORS,
    "maxsim_search_keys": MULTIVECTORS,
    "plan_index": DECLARED | {"column_name": "'embedding'"},
    "pool": {"encoder": "'public.doc.tokens_pool'", "tokens": TOKENS},
    "relevance": MODEL | {"cosine": "0.5"},
    "relevance_bound": MODEL | {"min_relevance": "0.5"},
    "relevance_fused": {"model": "'both'", "vector_relevance": "0.5", "text_relevance": "0.5"},
    "relevance_parameters": MODEL,
    "relevance_score": TEXT_MODEL | {"score": "1"},
    "relevance_score_bound": TEXT_MODEL | {"min_relevance": "0.5"},
    "relevance_score_parameters": TEXT_MODEL,
    "relevance_threshold": {"model": "'raw'"},
    "sparse_search": SPARSE,
    "sparse_search_keys": SPARSE,
    "vector_search": VECTORS,
    "vector_search_keys": VECTORS,
}

SET_UP = f"""
    CREATE TABLE doc (
        id int PRIMARY KEY, tag text, details jsonb, title text, note text, body text, embedding vector(4), bits bit(4),
        words sparsevec(4), tokens halfvec(4)[], importance real[]);
    INSERT INTO doc
    SELECT i, 't' || i % 3, '{{"a": "b"}}', 'apple', 'pie', CASE i % 2 WHEN 0 THEN 'apple' ELSE 'apple pear' END,
           format('[1,%s,%s,2]', i, i % 7)::vector, (i % 16)::bit(4), format('{{1:1,3:%s}}/4', i)::sparsevec,
           ARRAY[format('[1,%s,0,0]', i % 9), '[0,1,0,0]']::halfvec[], '{{1,2}}'
    FROM generate_series(1, 20) AS i;
    CALL sqlvec.create_centroid_encoder('cells', {BANK});
    CALL sqlvec.create_hubness_encoder('hubs', {BANK});
    CALL sqlvec.create_encoder('signs', 'binary', 4);
    CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec', 'code2');
    CALL sqlvec.add_bm25('doc', 'body', tenant => 'tag');
    CALL sqlvec.add_fde('doc', 'tokens', repetitions => 2, projection => 2);
    CALL sqlvec.add_fde('doc', 'tokens', 'fde_bits', repetitions => 2, projection => 2, bits => true);
    CALL sqlvec.add_pooled('doc', 'tokens');
    CALL sqlvec.create_relevance_model('raw', 'vector', 'raw', '{{1}}', '{{1}}', '{{1}}', 'doc', 'embedding', recalls => '{{0.95}}', thresholds => '{{0.5}}');
    CALL sqlvec.create_relevance_model('raw_text', 'text', 'raw', '{{1}}', '{{1}}', '{{1}}', 'doc', 'body');
    CALL sqlvec.create_relevance_model('both', 'fused', 'logistic', '{{1,1,1}}', '{{0,0,0,0}}', '{{}}', models => '{{raw,raw_text,NULL}}');
    CREATE TABLE planted ();
    CREATE SEQUENCE injections;
    -- A sequence keeps count past every rollback and exception handler.
    CREATE FUNCTION {RUN} RETURNS text LANGUAGE sql RETURN nextval('public.injections')::text;
"""
FUNCTIONS = """
    SELECT p.proname, p.prokind,
           (SELECT array_agg(ARRAY[a.name, format_type(a.type, NULL), (a.i > p.pronargs - p.pronargdefaults)::text] ORDER BY a.i)
            FROM (SELECT n.name, t.type, row_number() OVER (ORDER BY t.i) AS i
                  FROM unnest(p.proargtypes::oid[]) WITH ORDINALITY AS t (type, i)
                  JOIN (SELECT m.name, row_number() OVER (ORDER BY m.i) AS i
                        FROM unnest(p.proargnames, p.proargmodes) WITH ORDINALITY AS m (name, mode, i)
                        WHERE m.mode IS NULL OR m.mode IN ('i', 'b', 'v')) AS n USING (i)) AS a)
    FROM pg_proc AS p
    WHERE p.pronamespace = 'sqlvec'::regnamespace AND p.proname NOT LIKE '\\_%' AND p.pronargs > 0
    ORDER BY p.proname
"""
# What a declaration left in the catalog becomes SQL once more: in the trigger and in checks.
AFTERWARDS = """
    INSERT INTO doc (id, tag, title, note, body, embedding, tokens, importance)
    SELECT 1000 + id, tag, title, note, body, embedding, tokens, importance FROM doc WHERE id = 1;
    UPDATE doc SET embedding = '[4,3,2,1]', body = 'pear', title = 'pear', tokens = ARRAY['[1,0,0,1]']::halfvec[], importance = '{1}' WHERE id = 1;
    SELECT * FROM sqlvec._findings(); SELECT * FROM sqlvec.derived_column; SELECT * FROM sqlvec.bm25_health;
    SELECT sqlvec.plan_index('doc', 'embedding'), sqlvec.plan_index('doc', 'tokens')
"""


@pytest.fixture(scope="module")
def session(dsn: str) -> Iterator[Db]:
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as db:
        db.execute(SET_UP)
        db.execute("CALL sqlvec.backfill('doc')")
        db.execute("CALL sqlvec.analyze_bm25('doc')")
        yield db


def functions(db: Db) -> Iterator[tuple[str, str, list[tuple[str, str, bool]]]]:
    """Yield name, kind and arguments, each with its type and whether it may be left out."""
    for name, kind, arguments in db.execute(FUNCTIONS).fetchall():
        yield name, kind, [(a, type_name, default == "true") for a, type_name, default in arguments]


def calls(name: str, arguments: list[tuple[str, str, bool]]) -> list[Call]:
    """Return good calls of a function, which give all its arguments of text."""
    own = CALLS.get(name, {})
    found = []
    for given in own if isinstance(own, list) else [own]:
        values = COMMON | given
        found.append({a: values[a] for a, _, _ in arguments if a in values})
        for argument, type_name, default in arguments:
            assert argument in values or (default and type_name not in READ), (
                f"CALLS gives no value for argument {argument!r} of sqlvec.{name}"
            )
    for argument, type_name, _ in arguments:
        if type_name in READ:
            assert any(call[argument] != "NULL" for call in found), (
                f"no call gives argument {argument!r} of sqlvec.{name} a value"
            )
    return found


def statement(name: str, kind: str, call: Call) -> str:
    arguments = ", ".join(f"{argument} => {value}" for argument, value in call.items())
    if kind == "p":
        return f"CALL sqlvec.{name}({arguments})"
    if "d" in call.values():
        return f"SELECT sqlvec.{name}({arguments}) FROM doc AS d"
    return f"SELECT * FROM sqlvec.{name}({arguments})"


def variants(good: Any, hostile: str) -> Iterator[Any]:
    """Yield a JSON value with the text in place of each of its parts, and beside them as a key."""
    yield hostile
    if isinstance(good, dict):
        yield {**good, hostile: 1}
        for key, value in good.items():
            rest = {k: v for k, v in good.items() if k != key}
            yield {**rest, hostile: value}
            for variant in variants(value, hostile):
                yield {**rest, key: variant}
    elif isinstance(good, list):
        for i, value in enumerate(good):
            for variant in variants(value, hostile):
                yield [*good[:i], variant, *good[i + 1 :]]


def harmful(db: Db, name: str, type_name: str, good: str, turn: Iterator[str]) -> Iterator[str]:
    """Yield values of an argument, as SQL, that would do harm as part of a statement."""
    if name == "filter":
        # It has many parts, and all searches read it alike: here, one text for each.
        filters = [list(variants(json.loads(good.strip("'")), hostile)) for hostile in HOSTILE]
        for same_part in zip(*filters, strict=True):
            chosen = same_part[HOSTILE.index(next(turn))]
            yield sql.Literal(json.dumps(chosen)).as_string(db)
        return
    for hostile in HOSTILE:
        if type_name in ("jsonb", "json"):
            for variant in variants(json.loads(good.strip("'")), hostile):
                yield sql.Literal(json.dumps(variant)).as_string(db)
        elif type_name.endswith("[]"):
            yield f"ARRAY[{sql.Literal(hostile).as_string(db)}]"
        else:
            yield sql.Literal(hostile).as_string(db)


def attempt(db: Db, call: str, *, afterwards: bool) -> None:
    """Run a statement that may well fail, though not because its text is broken."""

    def unless_refused(work: Callable[[], object]) -> bool:
        try:
            work()
        except psycopg.Error as error:
            assert error.sqlstate is not None, f"{call}: {error}"
            broken = error.sqlstate in ("42601", "42P02") and NO_SQL not in str(error)
            assert not broken, f"{call}: {error}"
            return False
        return True

    done = unless_refused(lambda: db.execute(call))
    if done and afterwards:
        unless_refused(lambda: db.execute(AFTERWARDS))


def test_every_call_is_of_a_function(session: Db) -> None:
    names = {name for name, _, _ in functions(session)}
    assert set(CALLS) <= names
    assert names >= COMMITTING


def test_what_is_read_as_sql_is_seen(session: Db) -> None:
    session.execute(
        "CREATE FUNCTION careless(a text) RETURNS void LANGUAGE plpgsql AS"
        " $$BEGIN EXECUTE 'SELECT ''' || a || ''''; EXCEPTION WHEN OTHERS THEN END$$"
    )
    ran = "SELECT is_called FROM injections"
    for hostile in HOSTILE:
        session.execute("SELECT careless(%s)", [hostile])
    assert session.execute(ran).fetchone() == (True,)
    session.execute("ALTER SEQUENCE injections RESTART")
    assert session.execute(ran).fetchone() == (False,)


def test_no_argument_is_read_as_sql(session: Db) -> None:
    attempts = 0
    turn = cycle(HOSTILE)
    for name, kind, arguments in functions(session):
        types = {argument: type_name for argument, type_name, _ in arguments}
        if not READ & set(types.values()):
            continue
        for call in calls(name, arguments):
            good = statement(name, kind, call)
            if name in COMMITTING:
                session.execute(good)
            else:
                with session.transaction(force_rollback=True):
                    session.execute(good)
            for argument, type_name in types.items():
                if type_name not in READ or argument in TRUSTED or call[argument] == "NULL":
                    continue
                for value in harmful(session, argument, type_name, call[argument], turn):
                    bad = statement(name, kind, call | {argument: value})
                    attempts += 1
                    if name in COMMITTING:
                        attempt(session, bad, afterwards=False)
                    else:
                        with session.transaction(force_rollback=True):
                            attempt(session, bad, afterwards=kind == "p")
            ran = session.execute(
                "SELECT is_called, to_regclass('public.planted') FROM injections"
            ).fetchone()
            assert ran == (False, "planted"), f"an argument of sqlvec.{name} was run"
    assert attempts > 1000
