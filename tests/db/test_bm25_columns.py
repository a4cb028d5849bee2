"""Which column a search means, and what statistics tell of themselves."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError


def test_one_of_several_fields_is_not_searched_by_its_own_name(conn: Connection) -> None:
    conn.exec_driver_sql("CREATE TABLE page (id int PRIMARY KEY, title text, body text)")
    fields = text("""CALL sqlvec.add_bm25('page', NULL, fields => CAST(:fields AS jsonb))""")
    conn.execute(fields, {"fields": '{"title": 2, "body": 1}'})
    conn.exec_driver_sql("INSERT INTO page VALUES (1, 'apple', 'fig')")
    search = text("SELECT (hit).id FROM sqlvec.bm25_search(NULL::page, :name, 'apple')")
    with conn.begin_nested() as attempt:
        with pytest.raises(
            DBAPIError, match='one of several fields of BM25 column "title_body_bm25"'
        ):
            conn.execute(search, {"name": "body"})
        attempt.rollback()
    assert conn.scalars(search, {"name": "title_body_bm25"}).all() == [1]
    headline = "SELECT sqlvec.bm25_headline(p, 'title', 'apple') FROM page AS p"
    assert conn.scalar(text(headline)) == "<b>apple</b>"
    conn.exec_driver_sql("CALL sqlvec.add_bm25('page', 'body')")
    assert conn.scalars(search, {"name": "body"}).all() == []


def test_statistics_that_were_counted_after_a_load_are_fresh(autocommit: Connection) -> None:
    for statement in (
        "CREATE TABLE doc (id int PRIMARY KEY, body text)",
        "CALL sqlvec.add_bm25('doc', 'body')",
        "INSERT INTO doc SELECT n, 'word' || n FROM generate_series(1, 500) AS n",
        "CALL sqlvec.analyze_bm25('doc')",
        "SELECT pg_stat_force_next_flush()",
        "SELECT 1",
    ):
        autocommit.exec_driver_sql(statement)
    health = "SELECT changes_since, stale FROM sqlvec.bm25_health"
    assert tuple(autocommit.execute(text(health)).one()) == (0, False)


@pytest.mark.parametrize("name", ["h", "t", "c", "d", "sqlvec found"])
def test_a_table_may_have_any_name(conn: Connection, name: str) -> None:
    conn.exec_driver_sql(f'CREATE TABLE "{name}" (id int PRIMARY KEY, body text)')
    conn.execute(
        text("CALL sqlvec.add_bm25(CAST(:name AS regclass), 'body')"), {"name": f'"{name}"'}
    )
    conn.exec_driver_sql(f"""INSERT INTO "{name}" VALUES (1, 'apple'), (2, 'fig')""")
    for search in (
        f"""SELECT (hit).id FROM sqlvec.bm25_search(NULL::"{name}", 'body', 'apple', where_sql => '"{name}".id > 0')""",
        f"""SELECT key FROM sqlvec.bm25_search_keys(NULL::"{name}", 'body', 'apple', key => NULL::int)""",
    ):
        assert conn.scalars(text(search)).all() == [1]
