"""BM25 indexes of other extensions: the SQL that each is asked, and the contract they share.

The contract runs against every extension that the server has. pg_textsearch has a stand-in besides:
a hash index under the name of its access method, with an operator that scores by ts_rank. It shows
that candidates come from the other index and everything else stays the same.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

DOCUMENTS = [
    "apple pie with cream",
    "an apple and another apple",
    "cream of tomato soup",
    "tomato, tomato and a pie",
    "nothing of that kind",
    None,
    "",
]

STAND_IN = """
    CREATE ACCESS METHOD bm25 TYPE INDEX HANDLER hashhandler;
    CREATE OPERATOR CLASS text_bm25_ops DEFAULT FOR TYPE text USING bm25 AS
        OPERATOR 1 =, FUNCTION 1 hashtext(text);
    CREATE FUNCTION to_bm25query(words text, index_name text) RETURNS text LANGUAGE sql AS 'SELECT words';
    CREATE FUNCTION stand_in_score(body text, words text) RETURNS float8 LANGUAGE sql AS $$
        SELECT -ts_rank(to_tsvector('english', body),
                        replace(plainto_tsquery('english', words)::text, '&', '|')::tsquery) $$;
    CREATE OPERATOR <@> (LEFTARG = text, RIGHTARG = text, FUNCTION = stand_in_score);
    SET allow_system_table_mods = on;
    INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    VALUES (4000000000, 'pg_textsearch', 10, 'public'::regnamespace, false, '0');
    INSERT INTO pg_depend (classid, objid, objsubid, refclassid, refobjid, refobjsubid, deptype)
    SELECT 'pg_am'::regclass, oid, 0, 'pg_extension'::regclass, 4000000000, 0, 'e' FROM pg_am WHERE amname = 'bm25'
    UNION ALL
    SELECT 'pg_operator'::regclass, oid, 0, 'pg_extension'::regclass, 4000000000, 0, 'e' FROM pg_operator WHERE oprname = '<@>' AND oprleft = 'text'::regtype;
    RESET allow_system_table_mods;
"""

INDEXES = {
    "pg_textsearch": "CREATE INDEX ON doc USING bm25 (body) WITH (text_config = 'english')",
    "pg_search": "CREATE INDEX ON doc USING bm25 (id, body) WITH (key_field = 'id')",
}


@pytest.fixture
def doc(conn: Connection) -> Connection:
    conn.exec_driver_sql("CREATE TABLE doc (id int PRIMARY KEY, kind int, body text)")
    conn.exec_driver_sql("CALL sqlvec.add_bm25('doc', 'body')")
    for number, body in enumerate(DOCUMENTS):
        conn.execute(
            text("INSERT INTO doc VALUES (:id, :kind, :body)"),
            {"id": number, "kind": number % 2, "body": body},
        )
    conn.exec_driver_sql("CALL sqlvec.analyze_bm25('doc', 10)")
    return conn


def search(conn: Connection, query: str, **arguments: object) -> list[tuple[int, float, bool]]:
    named = "".join(f", {name} => :{name}" for name in arguments)
    statement = f"SELECT (hit).id, score, complete FROM sqlvec.bm25_search(NULL::doc, 'body', :query{named})"
    rows = conn.execute(text(statement), {"query": query, **arguments}).all()
    return [(row[0], row[1], row[2]) for row in rows]


def plan(conn: Connection, query: str, backend: str = "auto") -> str:
    statement = "SELECT detail FROM sqlvec.explain_bm25_search(NULL::doc, 'body', :query, backend => :backend) WHERE topic = 'plan'"
    found: str = conn.execute(text(statement), {"query": query, "backend": backend}).scalar_one()
    return found


def stand_in(conn: Connection, options: str = "{text_config=english}") -> None:
    conn.exec_driver_sql(STAND_IN)
    conn.exec_driver_sql("CREATE INDEX words ON doc USING bm25 (body)")
    conn.exec_driver_sql(f"UPDATE pg_class SET reloptions = '{options}' WHERE relname = 'words'")


@pytest.mark.parametrize(
    ("backend", "condition", "ordering"),
    [
        (
            "pg_textsearch",
            "true",
            'doc."my body" OPERATOR(ext.<@>) ext.to_bm25query($7, \'public."my index"\')',
        ),
        ("paradedb", 'doc."my body" OPERATOR(ext.|||) $7', 'pdb.score(doc."my key") DESC'),
        (
            "vchord_bm25",
            "true",
            'doc."my body" OPERATOR(ext.<&>) ext.to_bm25query(\'public."my index"\'::pg_catalog.regclass, '
            "tokenizer_catalog.tokenize($7, 'it''s')::ext.bm25vector)",
        ),
    ],
)
def test_the_sql_that_each_is_asked(
    conn: Connection, backend: str, condition: str, ordering: str
) -> None:
    row = conn.execute(
        text(
            "SELECT * FROM sqlvec._bm25_native_sql(:backend, 'doc', :column, :index, 'ext', :key, :tokenizer)"
        ),
        {
            "backend": backend,
            "column": "my body",
            "index": 'public."my index"',
            "key": "my key",
            "tokenizer": "it's",
        },
    ).one()
    assert tuple(row) == (condition, ordering)


def test_auto_does_without(doc: Connection) -> None:
    assert "tiers" in plan(doc, "apple")
    assert search(doc, "apple") == search(doc, "apple", backend="sqlvec")


@pytest.mark.parametrize("backend", ["pg_textsearch", "paradedb", "vchord_bm25"])
def test_a_backend_that_is_not_there(doc: Connection, backend: str) -> None:
    with pytest.raises(DBAPIError, match=f'no index of {backend} serves column "body"'):
        search(doc, "apple", backend=backend)


@pytest.mark.parametrize("query", ["apple", "the"])
def test_a_backend_that_nobody_knows(doc: Connection, query: str) -> None:
    with pytest.raises(DBAPIError, match='backend "elastic" is unknown'):
        search(doc, query, backend="elastic")


@pytest.mark.parametrize("query", ["apple", "tomato pie", "cream", "unheard", "the"])
def test_the_stand_in_finds_the_same_rows_and_scores(doc: Connection, query: str) -> None:
    expected = search(doc, query, backend="sqlvec")
    stand_in(doc)
    assert plan(doc, query) == "candidates from an index of pg_textsearch" if expected else True
    found = search(doc, query)
    assert found == expected
    assert search(doc, query, backend="pg_textsearch") == found


def test_conditions_apply_to_candidates_of_the_stand_in(doc: Connection) -> None:
    expected = search(doc, '+apple -pie "another apple"', backend="sqlvec")
    filtered = search(doc, "apple tomato", backend="sqlvec", filter='{"kind": 1}')
    stand_in(doc)
    assert [row[0] for row in expected] == [1]
    assert [
        row[0] for row in search(doc, '+apple -pie "another apple"', backend="pg_textsearch")
    ] == [1]
    found = search(doc, "apple tomato", filter='{"kind": 1}')
    assert [row[:2] for row in found] == [row[:2] for row in filtered] and len(found) == 2


def test_a_budget_that_ran_out_is_told(doc: Connection) -> None:
    stand_in(doc)
    assert {row[2] for row in search(doc, "apple", k=5, candidates=5)} == {False}
    assert {row[2] for row in search(doc, "apple", k=2)} == {True}


def test_auto_leaves_an_index_of_another_analysis_alone(doc: Connection) -> None:
    stand_in(doc, "{text_config=simple}")
    assert "tiers" in plan(doc, "apple")
    doc.exec_driver_sql(
        "UPDATE pg_class SET reloptions = '{text_config=english,k1=0.9}' WHERE relname = 'words'"
    )
    assert "tiers" in plan(doc, "apple")
    doc.exec_driver_sql(
        "UPDATE pg_class SET reloptions = '{text_config=english,k1=1.2}' WHERE relname = 'words'"
    )
    assert "pg_textsearch" in plan(doc, "apple")
    assert "tiers" in plan(doc, "+apple")


@pytest.mark.parametrize(("extension", "index"), INDEXES.items())
def test_the_contract_on_a_real_extension(doc: Connection, extension: str, index: str) -> None:
    available = doc.execute(
        text("SELECT count(*) FROM pg_available_extensions WHERE name = :name"), {"name": extension}
    ).scalar_one()
    if not available:
        pytest.skip(f"the server has no extension {extension}")
    doc.exec_driver_sql(f"CREATE EXTENSION {extension}")
    doc.exec_driver_sql(index)
    backend = "paradedb" if extension == "pg_search" else extension
    for query in ("apple", "tomato pie"):
        found = search(doc, query, backend=backend)
        assert [row[:2] for row in found] == [
            row[:2] for row in search(doc, query, backend="sqlvec")
        ]
