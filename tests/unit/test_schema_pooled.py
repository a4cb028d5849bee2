"""Declarations of pooled multi-vectors, and the DDL they render."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import ARRAY, REAL, Column, Float, Integer, MetaData, Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import CompileError

from sqlvec.ddl import AddPooled
from sqlvec.encoders import Pool
from sqlvec.errors import DeclarationError
from sqlvec.schema import FDE, Pooled, derived_columns
from sqlvec.types import MULTIVECTOR, VECTOR, dimensions, type_name

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]


def table(*items: Any, type_: Any = None) -> Table:
    return Table(
        "doc",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("tokens", type_ or MULTIVECTOR(128)),
        Column("embedding", VECTOR(3)),
        Column("weights", ARRAY(REAL)),
        Column("wide", ARRAY(Float)),
        *items,
    )


def rendered(element: Any) -> str:
    return " ".join(str(element.compile(dialect=PSYCOPG)).split())


@pytest.mark.parametrize("type_", [MULTIVECTOR(128), MULTIVECTOR(128, "vector")])
def test_the_column_is_declared(type_):
    doc = table(Pooled("tokens"), type_=type_)
    column = doc.c.tokens_pool
    assert (type_name(column.type), dimensions(column.type)) == ("halfvec[]", 128)
    assert column.server_default is not None and column.server_onupdate is not None
    assert derived_columns(doc) == ("tokens_pool",)


def test_a_model_may_declare_the_column_itself():
    doc = table(Column("few", MULTIVECTOR(128)), Pooled("tokens", target="few"))
    assert doc.c.few.server_default is not None
    with pytest.raises(DeclarationError, match="of type MULTIVECTOR"):
        table(Column("few", MULTIVECTOR(64)), Pooled("tokens", target="few"))


def test_an_encoding_of_pooled_tokens():
    doc = table(Pooled("tokens"), FDE("tokens_pool"))
    assert derived_columns(doc) == ("tokens_pool", "tokens_pool_fde")
    with pytest.raises(DeclarationError, match="no column 'tokens_pool'"):
        table(FDE("tokens_pool"), Pooled("tokens"))


def test_ddl():
    doc = table()
    assert rendered(AddPooled("tok'ens", "co%de", "prefix").against(doc)) == (
        "CALL sqlvec.add_pooled('doc'::regclass, 'tok''ens', method => 'prefix', "
        "target => 'co%%de')"
    )
    statement: Any = Pooled("tokens", factor=3)._statement()
    assert rendered(statement.against(doc)) == (
        "CALL sqlvec.add_pooled('doc'::regclass, 'tokens', method => 'hierarchical', "
        "target => 'tokens_pool', "
        """options => '{"factor": 3, "protected": 1, "normalize": false}')"""
    )
    statement = Pooled("tokens", method="top", weights="weights", target="best")._statement()
    assert rendered(statement.against(doc)) == (
        "CALL sqlvec.add_pooled('doc'::regclass, 'tokens', method => 'top', target => 'best', "
        """options => '{"share": 0.6}', weights_column => 'weights')"""
    )
    with pytest.raises(CompileError, match="needs PostgreSQL"):
        str(AddPooled("tokens", "code", "rows").against(doc).compile(dialect=sqlite.dialect()))


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("embedding", {}, "not MULTIVECTOR"),
        ("none", {}, "no column 'none'"),
        ("tokens", {"method": "average"}, "unknown method of pooling"),
        ("tokens", {"method": "prefix", "factor": 2}, "has no option 'factor'"),
        ("tokens", {"facet": 2}, "unexpected keyword argument 'facet'"),
        ("tokens", {"method": "top"}, "needs weights="),
        ("tokens", {"weights": "weights"}, "takes no weights"),
        ("tokens", {"method": "top", "weights": "none"}, "no column 'none'"),
        ("tokens", {"method": "top", "weights": "wide"}, "not ARRAY"),
        ("tokens", {"method": "top", "weights": "id"}, "not ARRAY"),
    ],
)
def test_what_does_not_go_together(source, options, message):
    with pytest.raises(DeclarationError, match=message):
        table(Pooled(source, **options))


def test_a_column_without_dimensions():
    with pytest.raises(DeclarationError, match="names no dimensions"):
        table(Pooled("tokens"), type_=MULTIVECTOR())


def test_it_shows_itself():
    assert repr(Pooled("tokens", factor=4)) == (
        "Pooled('tokens', method='hierarchical', factor=4, protected=1, normalize=False, "
        "weights=None, target='tokens_pool')"
    )
    assert Pooled("tokens", factor=4).encoder == Pool(factor=4)
