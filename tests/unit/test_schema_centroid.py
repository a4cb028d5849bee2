"""Declarations of centroid codes, and the DDL they render."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import BYTEA, psycopg
from sqlalchemy.exc import CompileError

from sqlvec import Centroid, encoders, functions
from sqlvec.ddl import AddCentroid
from sqlvec.errors import DeclarationError
from sqlvec.schema import derived_columns
from sqlvec.types import MULTIVECTOR, VECTOR, from_sql, type_name

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]


def table(*items: Any, type_: Any = None) -> Table:
    return Table(
        "doc",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("tokens", type_ or MULTIVECTOR(128)),
        Column("embedding", VECTOR(3)),
        *items,
    )


def rendered(element: Any) -> str:
    return " ".join(str(element.compile(dialect=PSYCOPG)).split())


@pytest.mark.parametrize("type_", [MULTIVECTOR(128), MULTIVECTOR(128, "vector"), MULTIVECTOR()])
def test_the_column_is_declared(type_):
    doc = table(Centroid("tokens", name="nearest"), type_=type_)
    column = doc.c.tokens_centroid
    assert type_name(column.type) == "bytea"
    assert column.server_default is not None and column.server_onupdate is not None
    assert derived_columns(doc) == ("tokens_centroid",)


@pytest.mark.parametrize("type_", [LargeBinary(), BYTEA()])
def test_a_model_may_declare_the_column_itself(type_):
    doc = table(Column("code", type_), Centroid("tokens", "nearest", target="code"))
    assert doc.c.code.server_default is not None
    with pytest.raises(DeclarationError, match="of type Integer"):
        table(Column("code", Integer), Centroid("tokens", "nearest", target="code"))


def test_ddl():
    doc = table()
    assert rendered(AddCentroid("tok'ens", "co%de", "o'ne").against(doc)) == (
        "CALL sqlvec.add_centroid('doc'::regclass, 'tok''ens', 'o''ne', target => 'co%%de')"
    )
    statement: Any = Centroid("tokens", "nearest")._statement()
    assert rendered(statement.against(doc)) == (
        "CALL sqlvec.add_centroid('doc'::regclass, 'tokens', 'nearest', "
        "target => 'tokens_centroid')"
    )
    with pytest.raises(CompileError, match="needs PostgreSQL"):
        str(AddCentroid("tokens", "code", "x").against(doc).compile(dialect=sqlite.dialect()))


@pytest.mark.parametrize(
    ("source", "message"), [("embedding", "not MULTIVECTOR"), ("none", "no column 'none'")]
)
def test_what_does_not_go_together(source, message):
    with pytest.raises(DeclarationError, match=message):
        table(Centroid(source, "nearest"))


def test_the_type():
    assert isinstance(from_sql(encoders.Centroid().code_type()), LargeBinary)


def test_the_table_of_a_query_is_computed_once():
    doc = table(Centroid("tokens", "nearest"))
    prepared = functions.centroid_table("nearest", [[1.0, 2.0]])
    score = functions.maxsim_centroid(doc.c.tokens_centroid, prepared)
    assert "query => (SELECT sqlvec.centroid_table(encoder => " in rendered(select(score))


def test_it_shows_itself():
    assert repr(Centroid("tokens", "nearest")) == (
        "Centroid('tokens', 'nearest', target='tokens_centroid')"
    )
