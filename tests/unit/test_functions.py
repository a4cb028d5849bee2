"""The function classes themselves; tests/db/test_functions.py compares them with the server."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, func, join, select
from sqlalchemy.dialects.postgresql import psycopg

from sqlvec import functions
from sqlvec.errors import DeclarationError
from sqlvec.types import BIT, VECTOR

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]
DOC = Table(
    "doc",
    MetaData(),
    Column("id", Integer),
    Column("body", Text),
    Column("embedding", VECTOR(3)),
    schema="app",
)


def rendered(element: functions.SqlvecFunction) -> str:
    return str(select(element).compile(dialect=PSYCOPG))


def test_functions_are_called_in_their_schema_by_argument_name():
    assert rendered(functions.version()) == "SELECT sqlvec.version() AS version_1"
    assert rendered(functions.encode("rotated", [1, 2, 3], BIT(3))) == (
        "SELECT sqlvec.encode(encoder => %(param_1)s::VARCHAR, x => %(param_2)s, "
        "code => CAST(NULL AS BIT(3))) AS encode_1"
    )
    assert rendered(functions.encode("rotated", DOC.c.embedding, BIT(3))).endswith("FROM app.doc")
    assert rendered(functions.plan_index(DOC, "embedding")) == (
        "SELECT sqlvec.plan_index(rel => 'app.doc'::regclass, "
        "column_name => %(param_1)s::VARCHAR) AS plan_index_1"
    )


def test_the_type_of_the_key_keeps_its_place():
    sql = rendered(functions.vector_search_keys(DOC, "embedding", [1, 2, 3], Integer(), k=5))
    assert sql.startswith(
        "SELECT sqlvec.vector_search_keys(rel => NULL::app.doc, "
        "column_name => %(param_1)s::VARCHAR, query => %(param_2)s, key => CAST(NULL AS INTEGER), "
        "k => %(param_3)s::INTEGER)"
    )


def test_nothing_is_registered_for_everyone():
    assert type(func.version()) is not functions.version
    assert str(func.version()) == "version()"
    assert type(func.vector_search()) is not functions.vector_search


def test_values_are_no_part_of_the_cache_key():
    one, two = (
        functions.vector_search(DOC, "embedding", [n, 2, 3], k=n, oversample=n, filter={"id": n})
        for n in (1, 2)
    )
    assert one._generate_cache_key() == two._generate_cache_key()
    other = functions.vector_search(DOC.to_metadata(MetaData(), schema="x"), "embedding", [1, 2, 3])
    shorter = functions.vector_search(DOC, "embedding", [1, 2, 3])
    assert other._generate_cache_key() != shorter._generate_cache_key()


def test_words_are_searched_by_argument_name():
    assert rendered(functions.bm25_search(DOC, "body", "tree", k=5, tenant="7")) == (
        "SELECT sqlvec.bm25_search(rel => NULL::app.doc, column_name => %(param_1)s::VARCHAR, "
        "query => %(param_2)s::VARCHAR, tenant => %(param_3)s::VARCHAR, "
        "k => %(param_4)s::INTEGER) AS bm25_search_1"
    )
    sql = rendered(functions.bm25_search_keys(DOC, "body", "tree", Integer(), backend="sqlvec"))
    assert "query => %(param_2)s::VARCHAR, key => CAST(NULL AS INTEGER), backend =>" in sql
    sql = rendered(functions.explain_bm25_search(DOC, "body", "tree"))
    assert sql.startswith("SELECT sqlvec.explain_bm25_search(rel => NULL::app.doc, ")
    assert rendered(functions.bm25_tsquery(DOC, "body", "tree")) == (
        "SELECT sqlvec.bm25_tsquery(rel => NULL::app.doc, column_name => %(param_1)s::VARCHAR, "
        "query => %(param_2)s::VARCHAR) AS bm25_tsquery_1"
    )
    assert "tenant => %(param_3)s" in rendered(functions.bm25_query(DOC, "body", "tree", "7"))


def test_rows_are_those_of_the_statement():
    assert rendered(functions.bm25_score(DOC, "body", "tree")) == (
        "SELECT sqlvec.bm25_score(hit => doc.*, column_name => %(param_1)s::VARCHAR, "
        "query => %(param_2)s::VARCHAR) AS bm25_score_1 \nFROM app.doc"
    )
    other = DOC.alias("Other")
    sql = rendered(functions.bm25_headline(other, "body", "tree", "MaxWords=5"))
    assert sql == (
        'SELECT sqlvec.bm25_headline(hit => "Other".*, column_name => %(param_1)s::VARCHAR, '
        "query => %(param_2)s::VARCHAR, options => %(param_3)s::VARCHAR) AS bm25_headline_1 "
        '\nFROM app.doc AS "Other"'
    )
    hits = functions.bm25_search(DOC, "body", "tree").table_valued("hit", "score")
    assert "hit => anon_1.hit," in rendered(functions.bm25_score(hits.c.hit, "body", "tree"))
    with pytest.raises(DeclarationError, match="not stand for one table"):
        functions.bm25_score(join(DOC, other, DOC.c.id == other.c.id), "body", "tree")


def test_text_is_no_part_of_the_cache_key():
    one, two = (
        functions.bm25_score(DOC, "body", query, tenant=query)._generate_cache_key()
        for query in ("a", "b")
    )
    assert one is not None and one == two
    other = functions.bm25_score(DOC.alias(), "body", "a", tenant="a")._generate_cache_key()
    assert other is not None and other.key != one.key


def test_keys_to_expand_have_the_type_of_the_edges():
    edges = Table("edges", MetaData(), *(Column(name, Text) for name in ("key", "neighbour")))
    assert rendered(functions.expand(edges, ["a"], [0.5], hops=2)) == (
        "SELECT sqlvec.expand(edges => 'edges'::regclass, keys => %(param_1)s::TEXT[], "
        "scores => %(param_2)s::DOUBLE PRECISION[], hops => %(param_3)s::INTEGER) AS expand_1"
    )
