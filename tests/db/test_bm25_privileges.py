"""Who may search by BM25 with which rights, and that statistics follow them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

KEYS = "SELECT key, score FROM sqlvec.bm25_search_keys(NULL::doc, 'body', 'apple pear', key => NULL::int)"
RIGHTS = {
    "everything": "doc",
    "the codes": "(id, body_bm25, body_bm25_tsv) ON doc",
    "the text": "(id, body) ON doc",
}


@pytest.fixture
def doc(conn: Connection) -> Iterator[Connection]:
    conn.exec_driver_sql("CREATE TABLE doc (id int PRIMARY KEY, body text)")
    conn.exec_driver_sql("CALL sqlvec.add_bm25('doc', 'body')")
    conn.exec_driver_sql(
        "INSERT INTO doc SELECT n, CASE mod(n, 3) WHEN 0 THEN 'apple' WHEN 1 THEN 'apple pear pear' ELSE 'fig' END"
        " FROM generate_series(1, 12) AS n"
    )
    conn.exec_driver_sql("CALL sqlvec.analyze_bm25('doc', 10)")
    conn.exec_driver_sql("CREATE ROLE searcher")
    yield conn


def rows(conn: Connection) -> list[tuple[int, float]]:
    return [(key, round(score, 4)) for key, score in conn.execute(text(KEYS))]


@pytest.mark.parametrize("right", RIGHTS)
def test_keys_need_the_key_and_either_the_codes_or_the_text(doc: Connection, right: str) -> None:
    expected = rows(doc)
    what = RIGHTS[right]
    doc.exec_driver_sql(
        f"GRANT SELECT {what if what.startswith('(') else 'ON ' + what} TO searcher"
    )
    doc.exec_driver_sql("SET LOCAL ROLE searcher")
    assert rows(doc) == expected and len(expected) == 8


def test_a_role_with_neither_is_told_what_it_lacks(doc: Connection) -> None:
    doc.exec_driver_sql("GRANT SELECT (id) ON doc TO searcher")
    doc.exec_driver_sql("SET LOCAL ROLE searcher")
    with pytest.raises(DBAPIError, match="neither the text nor the BM25 columns") as caught:
        rows(doc)
    assert "GRANT SELECT (body_bm25, body_bm25_tsv) ON public.doc TO searcher" in str(caught.value)


def test_statistics_are_for_those_who_may_read_the_column(doc: Connection) -> None:
    counted = text("SELECT count(*) FROM sqlvec.bm25_frequency")
    assert doc.scalar(counted) == 3
    doc.exec_driver_sql("SET LOCAL ROLE searcher")
    assert doc.scalar(counted) == 0
    doc.exec_driver_sql(
        "RESET ROLE; GRANT SELECT (body) ON doc TO searcher; SET LOCAL ROLE searcher"
    )
    assert doc.scalar(counted) == 3
    with pytest.raises(DBAPIError, match="row-level security"):
        doc.exec_driver_sql(
            "INSERT INTO sqlvec.bm25_frequency SELECT corpus_id, 'x', 1, '{}' FROM sqlvec.bm25_frequency"
        )


@pytest.fixture
def secured(doc: Connection) -> Connection:
    doc.exec_driver_sql("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
    doc.exec_driver_sql("CREATE POLICY even ON doc USING (mod(id, 2) = 0)")
    doc.exec_driver_sql("GRANT SELECT ON doc TO searcher")
    doc.exec_driver_sql("INSERT INTO doc SELECT n, 'fig' FROM generate_series(100, 5000) AS n")
    doc.exec_driver_sql("ANALYZE doc")
    return doc


def explained(conn: Connection) -> str:
    statement = "SELECT topic || ' ' || detail FROM sqlvec.explain_bm25_search(NULL::doc, 'body', 'apple pear')"
    return "\n".join(conn.scalars(text(statement)))


def test_under_a_policy_rows_are_fetched_by_their_addresses(secured: Connection) -> None:
    secured.exec_driver_sql("SET LOCAL ROLE searcher")
    plan = explained(secured)
    assert "one pass: under row security" in plan
    assert "Tid Scan" in plan.split("answer SELECT")[1]
    assert {key % 2 for key, _ in rows(secured)} == {0}


def test_the_index_serves_a_policy_where_its_operator_is_leakproof(secured: Connection) -> None:
    expected = rows(secured)
    secured.exec_driver_sql("ALTER FUNCTION ts_match_vq(tsvector, tsquery) LEAKPROOF")
    secured.exec_driver_sql("SET LOCAL ROLE searcher")
    assert "tiers of weight" in explained(secured)
    assert rows(secured) == [row for row in expected if row[0] % 2 == 0]
