"""Declarations of corrected hubs, and the DDL they render."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateIndex

from sqlvec import Hubness, functions, vector_search
from sqlvec.ddl import AddHubness
from sqlvec.errors import DeclarationError
from sqlvec.schema import derived_columns
from sqlvec.types import HALFVEC, VECTOR, dimensions, type_name

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]


def table(*items: Any, type_: Any = None) -> Table:
    return Table(
        "doc",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", type_ or VECTOR(384)),
        *items,
    )


def rendered(element: Any) -> str:
    return " ".join(str(element.compile(dialect=PSYCOPG)).split())


@pytest.mark.parametrize("type_", [VECTOR(384), HALFVEC(384)])
def test_the_column_is_declared(type_):
    doc = table(Hubness("embedding", name="hubs"), type_=type_)
    column = doc.c.embedding_hubness
    assert (type_name(column.type), dimensions(column.type)) == ("vector", 385)
    assert column.server_default is not None and column.server_onupdate is not None
    assert derived_columns(doc) == ("embedding_hubness",)


def test_a_model_may_declare_the_column_itself():
    doc = table(Column("code", VECTOR(385)), Hubness("embedding", "hubs", target="code"))
    assert doc.c.code.server_default is not None
    with pytest.raises(DeclarationError, match=r"makes VECTOR\(dim=385\)"):
        table(Column("code", VECTOR(384)), Hubness("embedding", "hubs", target="code"))


def test_ddl():
    doc = table()
    assert rendered(AddHubness("embed'ding", "co%de", "o'ne").against(doc)) == (
        "CALL sqlvec.add_hubness('doc'::regclass, 'embed''ding', 'o''ne', target => 'co%%de')"
    )
    statement: Any = Hubness("embedding", "hubs")._statement()
    assert rendered(statement.against(doc)) == (
        "CALL sqlvec.add_hubness('doc'::regclass, 'embedding', 'hubs', "
        "target => 'embedding_hubness')"
    )
    with pytest.raises(CompileError, match="needs PostgreSQL"):
        str(AddHubness("embedding", "code", "x").against(doc).compile(dialect=sqlite.dialect()))


def test_the_index():
    hubs = Hubness("embedding", "hubs")
    doc = table(hubs, hubs.index(m=8))
    (index,) = doc.indexes
    assert rendered(CreateIndex(index)) == (
        "CREATE INDEX ix_doc_embedding_hubness ON doc USING hnsw "
        "(embedding_hubness vector_ip_ops) WITH (m = 8)"
    )


@pytest.mark.parametrize(
    ("source", "type_", "message"),
    [
        ("id", None, "not vector or halfvec"),
        ("none", None, "no column 'none'"),
        ("embedding", VECTOR(), "names no dimensions"),
    ],
)
def test_what_does_not_go_together(source, type_, message):
    with pytest.raises(DeclarationError, match=message):
        table(Hubness(source, "hubs"), type_=type_)


def test_a_search_names_the_column():
    doc = table(Hubness("embedding", "hubs"))
    search = vector_search(doc, functions.hubness_query([1.0] * 384), doc.c.embedding_hubness)
    assert "query => sqlvec.hubness_query(query => " in rendered(search)
    assert "column_name => %(param_1)s" in rendered(search)
    assert "sqlvec.hubness_query" in rendered(select(functions.hubness_query([1.0, 2.0])))


def test_it_shows_itself():
    assert repr(Hubness("embedding", "hubs")) == (
        "Hubness('embedding', 'hubs', target='embedding_hubness')"
    )
