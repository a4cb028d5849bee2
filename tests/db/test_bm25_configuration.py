"""The text search configuration of a BM25 column: renamed it is followed, gone it is told."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

SEARCH = "SELECT (hit).id FROM sqlvec.bm25_search(NULL::doc, 'body', 'apple') ORDER BY 1"


@pytest.fixture
def doc(autocommit: Connection) -> Connection:
    # A role with a search_path of its own would not find the configuration by a bare name.
    for statement in (
        'CREATE SCHEMA "my words"',
        'CREATE TEXT SEARCH CONFIGURATION "my words".mine (COPY = english)',
        "CREATE TABLE doc (id int PRIMARY KEY, body text)",
        """CALL sqlvec.add_bm25('doc', 'body', '"my words".mine')""",
        "INSERT INTO doc VALUES (1, 'apples and pears')",
    ):
        autocommit.exec_driver_sql(statement)
    return autocommit


def found(conn: Connection) -> list[int]:
    return list(conn.scalars(text(SEARCH)))


def reconnect(conn: Connection) -> None:
    """Forget the plans of this session, which know the configuration by its oid."""
    conn.exec_driver_sql("DISCARD ALL")


def test_a_rename_is_followed(doc: Connection) -> None:
    doc.exec_driver_sql('ALTER TEXT SEARCH CONFIGURATION "my words".mine RENAME TO "your words"')
    reconnect(doc)
    doc.exec_driver_sql("INSERT INTO doc VALUES (2, 'an apple')")
    assert found(doc) == [1, 2]
    doc.exec_driver_sql("CALL sqlvec.repair('doc')")
    doc.exec_driver_sql("INSERT INTO doc VALUES (3, 'apple pie')")
    assert found(doc) == [1, 2, 3]


def test_without_it_writes_go_on_and_searches_say_what_is_wrong(doc: Connection) -> None:
    doc.exec_driver_sql('DROP TEXT SEARCH CONFIGURATION "my words".mine')
    reconnect(doc)
    doc.exec_driver_sql("INSERT INTO doc VALUES (2, 'an apple')")
    assert doc.scalar(
        text("SELECT body_bm25 IS NULL AND body_bm25_tsv IS NULL FROM doc WHERE id = 2")
    )
    with pytest.raises(DBAPIError, match='text search configuration "my words".mine is gone'):
        found(doc)
    problem = doc.scalar(text("SELECT problem FROM sqlvec.derived_column"))
    assert problem.startswith(
        'text search configuration "my words".mine is gone; CALL sqlvec.drop_derived'
    )
    doc.exec_driver_sql("CALL sqlvec.check()")
    doc.exec_driver_sql("CALL sqlvec.drop_derived('doc', 'body_bm25')")
    doc.exec_driver_sql("INSERT INTO doc VALUES (3, 'no code for this')")
