"""Declarations of fixed dimensional encodings, and the DDL they render."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.exc import CompileError
from sqlalchemy.schema import CreateIndex

from sqlvec.ddl import AddFDE, StoreExternal
from sqlvec.errors import DeclarationError
from sqlvec.schema import FDE, derived_columns
from sqlvec.types import HALFVEC, MULTIVECTOR, VECTOR, dimensions, type_name

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


@pytest.mark.parametrize("type_", [MULTIVECTOR(128), MULTIVECTOR(128, "vector")])
def test_the_column_is_declared(type_):
    doc = table(FDE("tokens"), type_=type_)
    column = doc.c.tokens_fde
    assert (type_name(column.type), dimensions(column.type)) == ("halfvec", 2560)
    assert column.server_default is not None and column.server_onupdate is not None
    assert derived_columns(doc) == ("tokens_fde",)


def test_a_model_may_declare_the_column_itself():
    doc = table(Column("code", HALFVEC(100)), FDE("tokens", final_dimensions=100, target="code"))
    assert doc.c.code.server_default is not None
    with pytest.raises(DeclarationError, match="of type HALFVEC"):
        table(Column("code", HALFVEC(101)), FDE("tokens", final_dimensions=100, target="code"))


def test_an_index_is_an_ordinary_index():
    tokens = FDE("tokens")
    index = tokens.index(m=8)
    table(tokens, index)
    assert rendered(CreateIndex(index)) == (
        "CREATE INDEX ix_doc_tokens_fde ON doc USING hnsw (tokens_fde halfvec_ip_ops) WITH (m = 8)"
    )


def test_ddl():
    doc = table()
    assert rendered(AddFDE("tok'ens", "co%de").against(doc)) == (
        "CALL sqlvec.add_fde('doc'::regclass, 'tok''ens', target => 'co%%de')"
    )
    statement: Any = FDE("tokens", final_dimensions=1000, seed=-3)._statement()
    assert rendered(statement.against(doc)) == (
        "CALL sqlvec.add_fde('doc'::regclass, 'tokens', target => 'tokens_fde', repetitions => 20, "
        "simhash_bits => 4, projection => 8, final_dimensions => 1000, seed => -3, "
        "bits => false)"
    )
    for element in (AddFDE("tokens", "code"), StoreExternal("tokens")):
        with pytest.raises(CompileError, match="needs PostgreSQL"):
            str(element.against(doc).compile(dialect=sqlite.dialect()))


@pytest.mark.parametrize(
    ("source", "type_", "options", "message"),
    [
        ("embedding", None, {}, "not MULTIVECTOR"),
        ("none", None, {}, "no column 'none'"),
        ("tokens", MULTIVECTOR(), {}, "names no dimensions"),
        ("tokens", MULTIVECTOR(4), {}, "at most the dimensions of column 'tokens', 4, not 8"),
        ("tokens", None, {"simhash_bits": 6}, "an index on halfvec takes 4000"),
    ],
)
def test_what_does_not_go_together(source, type_, options, message):
    with pytest.raises(DeclarationError, match=message):
        table(FDE(source, **options), type_=type_)


def test_it_shows_itself():
    assert repr(FDE("tokens")) == (
        "FDE('tokens', repetitions=20, simhash_bits=4, projection=8, final_dimensions=None, "
        "seed=0, bits=False, target='tokens_fde')"
    )


def test_signs():
    signs = FDE("tokens", repetitions=40, simhash_bits=5, bits=True)
    index = signs.index()
    doc = table(signs, index)
    column = doc.c.tokens_fde
    assert (type_name(column.type), dimensions(column.type)) == ("bit", 20480)
    assert "(tokens_fde bit_hamming_ops)" in rendered(CreateIndex(index))
    with pytest.raises(DeclarationError, match="an index on its signs takes 32000"):
        FDE("tokens", repetitions=40, simhash_bits=6, projection=16, bits=True)
