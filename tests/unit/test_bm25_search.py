"""What a search by words renders, and how the statement cache sees it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, select
from sqlalchemy.dialects.postgresql import psycopg
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from sqlvec import functions
from sqlvec.errors import DeclarationError
from sqlvec.schema import BM25
from sqlvec.search import bm25_search, complete, explain_bm25_search
from sqlvec.types import TSVECTOR

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]


class Base(DeclarativeBase):
    pass


class Doc(Base):
    __tablename__ = "doc"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[int]
    title: Mapped[str]
    body: Mapped[str]
    text = BM25({"title": 2, "body": 1}, tenant="tenant_id")
    __table_args__ = (text, text.index(), {"schema": "app"})
    __mapper_args__ = {"exclude_properties": text.columns}


class Part(Base):
    __tablename__ = "part"
    a: Mapped[int] = mapped_column(primary_key=True)
    b: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[str]
    words: Mapped[str] = mapped_column(TSVECTOR)
    __table_args__ = (BM25("body", config="simple"), BM25("words"))


UNDECLARED = Table(
    "bare", MetaData(), Column("id", Integer, primary_key=True), Column("body", Text)
)


def rendered(statement: Any) -> str:
    return " ".join(str(statement.compile(dialect=PSYCOPG)).split())


def parameters(statement: Any) -> dict[str, Any]:
    params: dict[str, Any] = statement.compile(dialect=PSYCOPG).params
    return params


def test_the_whole_statement():
    statement = bm25_search(
        Doc, "apple tree", k=5, where=[Doc.title != "x"], tenant=7, backend="sqlvec"
    )
    assert rendered(statement) == (
        "SELECT app.doc.id, app.doc.tenant_id, app.doc.title, app.doc.body, anon_1.score "
        "FROM app.doc JOIN sqlvec.bm25_search_keys(rel => NULL::app.doc, "
        "column_name => %(param_1)s::VARCHAR, query => %(param_2)s::VARCHAR, "
        "key => CAST(NULL AS INTEGER), key_column => %(param_3)s::VARCHAR, "
        "tenant => %(param_4)s::VARCHAR, backend => %(param_5)s::VARCHAR, "
        "k => %(param_6)s::INTEGER, "
        "where_sql => $where$doc.title != CAST(($1)[1] AS VARCHAR)$where$, "
        "params => ARRAY[CAST(CAST(%(title_1)s::VARCHAR AS VARCHAR) AS TEXT)]) AS anon_1 "
        "ON app.doc.id = anon_1.key ORDER BY anon_1.score DESC, anon_1.key"
    )
    assert parameters(statement) == {
        "param_1": "title_body_bm25",
        "param_2": "apple tree",
        "param_3": "id",
        "param_4": "7",
        "param_5": "sqlvec",
        "param_6": 5,
        "title_1": "x",
    }


def test_what_is_not_given_is_left_to_the_server():
    sql = rendered(bm25_search(Doc, "apple"))
    for name in ("where_sql", "params", "tenant", "backend", "candidates", "oversample", "filter"):
        assert f"{name} =>" not in sql


def test_rows_of_a_composite_key_are_joined_by_row():
    sql = rendered(bm25_search(Part, "apple", Part.body))
    assert "FROM part JOIN sqlvec.bm25_search(rel => NULL::part, " in sql
    assert "ON part.a = (anon_1.hit).a AND part.b = (anon_1.hit).b " in sql
    assert sql.endswith("ORDER BY anon_1.score DESC, (anon_1.hit).a, (anon_1.hit).b")


@pytest.mark.parametrize(
    ("entity", "column", "name"),
    [
        (Doc, None, "title_body_bm25"),
        (Doc, "title_body_bm25", "title_body_bm25"),
        (Doc, Doc.__table__.c.title_body_bm25, "title_body_bm25"),
        (aliased(Doc), None, "title_body_bm25"),
        (Part, "body", "body"),
        (Part, Part.words, "words"),
        (UNDECLARED, UNDECLARED.c.body, "body"),
    ],
)
def test_columns_are_found_by_every_name(entity, column, name):
    assert parameters(bm25_search(entity, "apple", column))["param_1"] == name


def test_a_column_declared_in_sql_is_left_to_the_server():
    sql = rendered(bm25_search(UNDECLARED, "apple"))
    assert "rel => NULL::bare, column_name => CAST(NULL AS TEXT), query =>" in sql


@pytest.mark.parametrize("tenant", ["a", 7, UUID(int=7)])
def test_tenants_travel_as_text(tenant):
    assert str(tenant) in parameters(bm25_search(Doc, "apple", tenant=tenant)).values()


def test_a_tenant_may_be_an_expression():
    own = select(Doc.tenant_id).where(Doc.id == 3).correlate(None).scalar_subquery()
    assert "tenant => CAST((SELECT app.doc.tenant_id" in rendered(
        bm25_search(Doc, "apple", tenant=own)
    )


def test_passages_are_added_to_the_columns():
    other = aliased(Doc)
    for entity, row in ((Doc, "doc"), (other, "doc_1")):
        statement = bm25_search(entity, "apple").add_columns(
            functions.bm25_headline(entity, "body", "apple").label("passage")
        )
        sql = rendered(statement)
        assert f"anon_1.score, sqlvec.bm25_headline(hit => {row}.*, column_name =>" in sql
        assert sql.count(" app.doc JOIN ") + sql.count(" app.doc AS doc_1 JOIN ") == 1
    nested = rendered(select(statement.subquery().c.passage))
    assert nested.startswith("SELECT anon_1.passage FROM (SELECT doc_1.id AS id")
    assert nested.count("app.doc") == 2  # The table, and its NULL row.


def key(query: str, tenant: int, k: int, title: str) -> Any:
    statement = bm25_search(Doc, query, tenant=tenant, k=k, where=Doc.title == title)
    return statement._generate_cache_key()


def test_values_are_no_part_of_the_cache_key():
    one, two = key("a", 1, 1, "x"), key("b", 2, 2, "y")
    assert one is not None and one == two


def test_different_statements_have_different_cache_keys():
    statements = [
        bm25_search(Doc, "a"),
        bm25_search(Doc, "a", tenant=1),
        bm25_search(Doc, "a", where=Doc.id == 1),
        bm25_search(Doc, "a", where=Doc.id != 1),
        bm25_search(aliased(Doc), "a"),
        bm25_search(Part, "a", "body"),
        explain_bm25_search(Doc, "a"),
        bm25_search(Doc, "a").add_columns(functions.bm25_headline(Doc, "body", "a")),
    ]
    keys = [statement._generate_cache_key() for statement in statements]
    assert len({k.key for k in keys if k is not None}) == len(statements)


def test_a_search_can_be_complete_and_explained():
    statement = bm25_search(Doc, "apple")
    assert "anon_1.score, anon_1.complete FROM" in rendered(
        statement.add_columns(complete(statement))
    )
    sql = rendered(explain_bm25_search(Doc, "apple", k=3))
    assert sql.startswith("SELECT anon_1.topic, anon_1.detail FROM sqlvec.explain_bm25_search(")


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (lambda: bm25_search(Part, "x"), "declared on table 'part' for 'body_bm25', 'words_bm25'"),
        (lambda: bm25_search(Doc, "x", "boddy"), "no column 'boddy'; .* 'body'"),
        (lambda: bm25_search(Doc, "x", Doc.id), "'id' .* is of type .*, not text or tsvector or"),
        (lambda: bm25_search(select(Doc).subquery(), "x"), "does not stand for one table"),
    ],
)
def test_what_cannot_be_searched_is_said(search, message):
    with pytest.raises(DeclarationError, match=message):
        search()


@pytest.mark.parametrize("search", [bm25_search, explain_bm25_search])
def test_no_query_is_refused(search):
    with pytest.raises(DeclarationError, match="query is None"):
        search(Doc, None)
