"""What the searches render, and how the statement cache sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.exc import CompileError
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column, relationship

from sqlvec.encoders import Halfvec
from sqlvec.errors import DeclarationError
from sqlvec.schema import Quantized
from sqlvec.search import bit_search, complete, explain_search, vector_search
from sqlvec.types import BIT, VECTOR

ASYNCPG: Any = asyncpg.dialect()  # type: ignore[no-untyped-call]
PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int]
    lang: Mapped[str] = mapped_column(String(2))
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()
    embedding: Mapped[list[float]] = mapped_column(VECTOR(3))
    __table_args__ = (Quantized("embedding", Halfvec()), {"schema": "app"})


class Special(Doc):
    """Joined-table inheritance: two tables."""

    __tablename__ = "special"
    id: Mapped[int] = mapped_column(ForeignKey("app.doc.id"), primary_key=True)


def rendered(statement: Any, dialect: Any = PSYCOPG) -> str:
    return " ".join(str(statement.compile(dialect=dialect)).split())


def where_sql(*criteria: Any, entity: Any = Doc) -> str:
    sql = rendered(vector_search(entity, [1, 2, 3], where=criteria))
    return sql.split("where_sql => ")[1].split("$where$")[1]


def test_the_whole_statement():
    statement = vector_search(Doc, [1, 2, 3], k=5, where=[Doc.tenant_id == 7], metric="l2")
    assert rendered(statement) == (
        "SELECT app.doc.id, app.doc.tenant_id, app.doc.lang, app.doc.author_id, "
        "app.doc.embedding, app.doc.embedding_halfvec, anon_1.distance FROM app.doc "
        "JOIN sqlvec.vector_search_keys(rel => NULL::app.doc, "
        "column_name => %(param_1)s::VARCHAR, query => %(param_2)s, "
        "key => CAST(NULL AS INTEGER), key_column => %(param_3)s::VARCHAR, "
        "metric => %(param_4)s::VARCHAR, mode => %(param_5)s::VARCHAR, "
        "k => %(param_6)s::INTEGER, "
        "where_sql => $where$doc.tenant_id = CAST(($1)[1] AS INTEGER)$where$, "
        "params => ARRAY[CAST(CAST(%(tenant_id_1)s::INTEGER AS INTEGER) AS TEXT)]) AS anon_1 "
        "ON app.doc.id = anon_1.key ORDER BY anon_1.distance, anon_1.key"
    )
    params = statement.compile(dialect=PSYCOPG).params
    assert params.pop("param_2").tolist() == [1, 2, 3]
    assert params == {
        "param_1": "embedding",
        "param_3": "id",
        "param_4": "l2",
        "param_5": "auto",
        "param_6": 5,
        "tenant_id_1": 7,
    }


def test_what_is_not_given_is_left_to_the_server():
    sql = rendered(vector_search(Doc, [1, 2, 3]))
    for name in ("where_sql", "params", "metric", "candidates", "oversample", "filter"):
        assert f"{name} =>" not in sql


def test_a_filter_is_one_bound_value_whatever_it_says():
    hostile = {'x" OR 1 --': {"$in": ["'; DROP TABLE doc; --"]}}
    one, other = (
        vector_search(Doc, [1, 2, 3], filter=filter, where=[Doc.tenant_id == 7])
        for filter in (hostile, {"tenant_id": 7})
    )
    sql = rendered(one)
    assert sql == rendered(other) and "filter => %(param" in sql and "where_sql =>" in sql
    values = one.compile(dialect=PSYCOPG).params.values()
    assert [value for value in values if isinstance(value, dict)] == [hostile]
    assert one._generate_cache_key() == other._generate_cache_key()


def test_asyncpg_numbers_only_real_parameters():
    statement = vector_search(Doc, [1, 2, 3], where=[Doc.tenant_id == 7])
    compiled = statement.compile(dialect=ASYNCPG)
    assert "$where$doc.tenant_id = CAST(($1)[1] AS INTEGER)$where$" in str(compiled)
    assert len(compiled.positiontup or ()) == 6


@pytest.mark.parametrize(
    ("criterion", "sql"),
    [
        (Doc.lang == "de", "doc.lang = CAST(($1)[1] AS VARCHAR)"),
        (Doc.lang.in_(["de"]), "doc.lang = ANY (CAST(($1)[1] AS VARCHAR[]))"),
        (Doc.lang.not_in(["de"]), "doc.lang != ALL (CAST(($1)[1] AS VARCHAR[]))"),
        (Doc.lang.is_(None), "doc.lang IS NULL"),
        (Doc.id % 2 == 1, "doc.id %% CAST(($1)[1] AS INTEGER) = CAST(($1)[2] AS INTEGER)"),
        (Doc.lang == literal_column("'100%'"), "doc.lang = '100%%'"),
        (text("doc.id > :id").bindparams(id=3), "doc.id > CAST(($1)[1] AS INTEGER)"),
        (
            Doc.author.has(name="x"),
            "EXISTS (SELECT 1 FROM author WHERE author.id = doc.author_id "
            "AND author.name = CAST(($1)[1] AS VARCHAR))",
        ),
        (
            Doc.id.in_(select(Doc.id).where(Doc.tenant_id == 3)),
            "doc.id IN (SELECT doc.id FROM app.doc AS doc "
            "WHERE doc.tenant_id = CAST(($1)[1] AS INTEGER))",
        ),
    ],
)
def test_criteria_render_over_the_bare_name(criterion, sql):
    assert where_sql(criterion) == sql


def test_criteria_of_an_alias_render_over_the_bare_name():
    other = aliased(Doc)
    sql = where_sql(other.tenant_id == 1, other.author.has(Author.id == 2), entity=other)
    assert sql.startswith("doc.tenant_id = CAST(($1)[1] AS INTEGER) AND (EXISTS (SELECT 1 ")
    assert "author.id = doc.author_id" in sql


def test_criteria_do_not_correlate_with_the_statement_around():
    statement = vector_search(
        Doc, [1, 2, 3], where=Doc.author_id.in_(select(Author.id).where(Author.name == "x"))
    ).join(Doc.author)
    assert "doc.author_id IN (SELECT author.id FROM author WHERE" in rendered(statement)


def test_text_that_looks_like_the_quotes_stays_inside():
    sql = rendered(vector_search(Doc, [1, 2, 3], where=Doc.lang == literal_column("'$where$'")))
    assert "where_sql => $where_$doc.lang = '$where$'$where_$" in sql
    sql = rendered(vector_search(Doc, [1, 2, 3], where=literal_column("true $where")))
    assert "where_sql => $where_$true $where$where_$" in sql


def test_schema_translation_reaches_the_criteria():
    own = Doc.id.in_(select(Doc.id))
    compiled = vector_search(Doc, [1, 2, 3], where=own).compile(
        dialect=PSYCOPG, schema_translate_map={"app": "tenant 1"}, render_schema_translate=True
    )
    assert 'rel => NULL::"tenant 1".doc' in str(compiled)
    assert 'FROM "tenant 1".doc AS doc' in str(compiled)


def key(*, query: Any, k: int, tenant: int, langs: list[str], **options: Any) -> Any:
    where = [Doc.tenant_id == tenant, Doc.lang.in_(langs)]
    return vector_search(Doc, query, k=k, where=where, **options)._generate_cache_key()


def test_values_are_no_part_of_the_cache_key():
    one = key(query=[1, 2, 3], k=1, tenant=7, langs=["de"])
    two = key(query=np.ones(3), k=2, tenant=8, langs=["fr", "en", "es"])
    assert one is not None and one == two
    assert len(one.bindparams) == len(two.bindparams) == 7


def test_different_statements_have_different_cache_keys():
    table: Any = Doc.__table__
    other = table.to_metadata(MetaData(), schema="elsewhere", name="doc")
    statements = [
        vector_search(Doc, [1, 2, 3]),
        vector_search(Doc, [1, 2, 3], metric="l2"),
        vector_search(Doc, [1, 2, 3], where=Doc.tenant_id == 1),
        vector_search(Doc, [1, 2, 3], where=Doc.id == 1),
        vector_search(Doc, [1, 2, 3], where=Doc.id != 1),
        vector_search(aliased(Doc), [1, 2, 3]),
        vector_search(table, [1, 2, 3]),
        vector_search(other, [1, 2, 3]),
        explain_search(Doc, [1, 2, 3]),
    ]
    keys = [statement._generate_cache_key() for statement in statements]
    assert len({k.key for k in keys if k is not None}) == len(statements)


def test_other_databases_are_refused_and_str_shows_postgresql():
    statement = vector_search(Doc, [1, 2, 3], where=Doc.tenant_id == 1)
    with pytest.raises(CompileError, match="NamedArg"):
        statement.compile(dialect=sqlite.dialect())
    assert "NULL::app.doc" in str(statement)


BARE = Table("bare", MetaData(), Column("embedding", VECTOR(3)))
TWO = Table(
    "two",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("a", VECTOR(3)),
    Column("b", VECTOR(3)),
    Column("bits", BIT(3)),
)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda: vector_search(Special, [1]), "does not stand for one table"),
        (lambda: vector_search(select(Doc).subquery(), [1]), "does not stand for one table"),
        (lambda: vector_search(Base, [1]), "does not stand for one table"),
        (lambda: vector_search(BARE, [1, 2, 3]), "'bare' has no primary key"),
        (lambda: vector_search(TWO, [1, 2, 3]), "name the column .* vector or halfvec: 'a', 'b'"),
        (lambda: bit_search(Doc, "101"), "name the column .* of type bit: none"),
        (lambda: vector_search(Doc, [1], "embeding"), "no column 'embeding'; .* 'embedding'"),
        (lambda: vector_search(Doc, [1], Author.name), "Author.name is not a column of"),
        (lambda: vector_search(Doc, [1], Doc.lang), r"'lang' .* is of type String\(length=2\)"),
        (lambda: vector_search(Doc, [1], metric="cosinus"), "unknown metric 'cosinus'; .* cosine"),
        (lambda: vector_search(Doc, [1], metric="hamming"), "vector has no metric 'hamming'"),
        (
            lambda: vector_search(Doc, np.ones((2, 1))),
            r"one vector, not .* of shape \(2, 1\)",
        ),
        (
            lambda: vector_search(Doc, [1], where=tuple_(Doc.id, Doc.lang).in_([(1, "de")])),
            r"tuple_\(…\)",
        ),
        (
            lambda: vector_search(Doc, [1], where=literal_column("x") == object()),
            "SQL type of value",
        ),
    ],
)
def test_what_cannot_be_searched_is_said(search, message):
    with pytest.raises(DeclarationError, match=message):
        search()


def test_criteria_with_a_cte_are_refused():
    cte = select(Author.id).cte("some")
    with pytest.raises(CompileError, match="cannot hold a CTE"):
        rendered(vector_search(Doc, [1, 2, 3], where=Doc.author_id.in_(select(cte.c.id))))


def test_only_a_search_can_be_complete():
    statement = vector_search(Doc, [1, 2, 3])
    assert "anon_1.distance, anon_1.complete FROM" in rendered(
        statement.add_columns(complete(statement))
    )
    with pytest.raises(DeclarationError, match="not made by a search"):
        complete(select(Doc))


def test_columns_are_found_by_every_name():
    for column in (None, "embedding", Doc.embedding, Doc.__table__.c.embedding):
        statement = vector_search(Doc, [1, 2, 3], column)
        assert statement.compile(dialect=PSYCOPG).params["param_1"] == "embedding"
    other = aliased(Doc)
    for column in (other.embedding, Doc.embedding):
        statement = vector_search(other, [1, 2, 3], column)
        assert statement.compile(dialect=PSYCOPG).params["param_1"] == "embedding"
