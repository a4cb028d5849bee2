"""Declarations of derived columns, and the DDL they render."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Enum,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    event,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql import BIT as PG_BIT
from sqlalchemy.dialects.postgresql import CITEXT, psycopg
from sqlalchemy.exc import CompileError
from sqlalchemy.orm import DeclarativeBase, Mapped, deferred, mapped_column
from sqlalchemy.schema import CreateIndex

from sqlvec.ddl import AddBM25, AddQuantized, DropDerived
from sqlvec.encoders import Binary, Halfvec, Linear, Truncate
from sqlvec.errors import DeclarationError
from sqlvec.identifiers import fit
from sqlvec.schema import BM25, Quantized, attach, declarations, derived_columns
from sqlvec.types import BIT, HALFVEC, SPARSEVEC, TSVECTOR, VECTOR, dimensions, from_sql, type_name

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]


def table(*items: Any, name: str = "doc", **options: Any) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", String(80)),
        Column("body", Text),
        Column("words", TSVECTOR),
        Column("tenant_id", Integer),
        Column("embedding", VECTOR(384)),
        *items,
        **options,
    )


def rendered(element: Any, dialect: Any = PSYCOPG) -> str:
    return " ".join(str(element.compile(dialect=dialect)).split())


@pytest.mark.parametrize(
    ("encoder", "name", "code_type"),
    [
        (Binary(rotate=True), "embedding_binary", "bit(384)"),
        (Binary(levels=4), "embedding_binary", "bit(1536)"),
        (Halfvec(), "embedding_halfvec", "halfvec(384)"),
        (Truncate(64), "embedding_truncate", "halfvec(64)"),
        (Truncate(64, "vector"), "embedding_truncate", "vector(64)"),
        (Linear(32), "embedding_linear", "halfvec(32)"),
    ],
)
def test_the_code_column_is_declared(encoder, name, code_type):
    doc = table(Quantized("embedding", encoder))
    column = doc.c[name]
    assert f"{type_name(column.type)}({dimensions(column.type)})" == code_type
    assert column.nullable
    assert column.server_default is not None and column.server_onupdate is not None
    assert derived_columns(doc) == (name,)


def test_a_model_may_declare_the_column_itself():
    class Base(DeclarativeBase):
        pass

    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[list[float]] = mapped_column(HALFVEC(8))
        code: Mapped[str] = deferred(mapped_column(BIT(8)))
        __table_args__ = (Quantized("embedding", Binary(), target="code"),)

    assert Doc.__table__.c.keys() == ["id", "embedding", "code"]
    assert Doc.__table__.c.code.server_default is not None


def test_an_index_is_an_ordinary_index():
    codes = Quantized("embedding", Binary())
    index = codes.index(m=8, ef_construction=100)
    table(codes, index)
    assert type(index) is Index
    assert rendered(CreateIndex(index)) == (
        "CREATE INDEX ix_doc_embedding_binary ON doc USING hnsw "
        "(embedding_binary bit_hamming_ops) WITH (m = 8, ef_construction = 100)"
    )
    codes = Quantized("embedding", Truncate(64), target="short", metric="inner_product")
    index = codes.index("ix_short")
    table(codes, index)
    assert rendered(CreateIndex(index)) == (
        "CREATE INDEX ix_short ON doc USING hnsw (short halfvec_ip_ops)"
    )


def test_ddl_is_rendered_with_every_name_quoted():
    doc = table(name='Od"d 1%', schema="o'dd")
    add = AddQuantized("it's", "co%de", "binary", metric="l2", options={"rotate": True}).against(
        doc
    )
    assert rendered(add) == (
        """CALL sqlvec.add_quantized('"o''dd"."Od""d 1%%"'::regclass, 'it''s', 'binary', """
        """target => 'co%%de', metric => 'l2', options => '{"rotate": true}')"""
    )
    drop = DropDerived("$do$").against(doc)
    assert "DO $do_$ BEGIN IF" in rendered(drop)
    assert "THEN CALL sqlvec.drop_derived('\"o''dd\"" in rendered(drop)
    text = AddBM25(
        "it's", "co%de", config="o'dd.c%", k1=1, b=0, fields={"A": 2}, tenant="t%"
    ).against(doc)
    assert rendered(text) == (
        """CALL sqlvec.add_bm25('"o''dd"."Od""d 1%%"'::regclass, 'it''s', config => 'o''dd.c%%', """
        """k1 => 1.0, b => 0.0, target => 'co%%de', fields => '{"A": 2}', tenant => 't%%')"""
    )
    for statement in (add, drop, text):
        with pytest.raises(CompileError, match="needs PostgreSQL, not sqlite"):
            rendered(statement, sqlite.dialect())


def test_an_encoder_of_the_catalog_is_called_by_name():
    doc = table(Quantized("embedding", Binary(center=True), name="centred"))
    emitted: list[str] = []
    engine = _mock_engine(emitted)
    doc.metadata.create_all(engine, checkfirst=False)
    assert (
        "CALL sqlvec.add_quantized('doc'::regclass, 'embedding', 'centred', "
        "target => 'embedding_binary', metric => 'cosine')" in emitted
    )


def _mock_engine(emitted: list[str]) -> Any:
    from sqlalchemy import create_mock_engine

    engine: Any = create_mock_engine(
        "postgresql+psycopg://", lambda element, *args, **kw: emitted.append(rendered(element))
    )
    return engine


def test_order_of_what_create_all_and_drop_all_emit():
    codes = Quantized("embedding", Halfvec())
    doc = table(codes, codes.index(), Quantized("embedding", Binary()))
    emitted: list[str] = []
    engine = _mock_engine(emitted)
    doc.metadata.create_all(engine, checkfirst=False)
    doc.metadata.drop_all(engine, checkfirst=False)
    heads = [" ".join(statement.split()[:2]) for statement in emitted]
    assert heads == [
        "CREATE TABLE",
        "CREATE INDEX",
        "CALL sqlvec.add_quantized('doc'::regclass,",
        "CALL sqlvec.add_quantized('doc'::regclass,",
        "DO $do$",
        "DO $do$",
        "DROP TABLE",
    ]


def test_copies_of_a_table_speak_of_themselves():
    doc = table(Quantized("embedding", Binary()))
    copy = doc.to_metadata(MetaData(), schema="other")
    assert derived_columns(copy) == ("embedding_binary",)
    emitted: list[str] = []
    copy.metadata.create_all(_mock_engine(emitted), checkfirst=False)
    assert [s.partition(",")[0] for s in emitted if s.startswith("CALL")] == [
        "CALL sqlvec.add_quantized('other.doc'::regclass"
    ]


def test_attach_listens_on_one_metadata_only():
    attached, other = MetaData(), MetaData()
    attach(attached)
    assert attached.dispatch.before_create
    assert not other.dispatch.before_create
    assert not event.contains(Table, "after_create", attach)


class Wrapped(TypeDecorator[Any]):
    impl = VECTOR
    cache_ok = True


@pytest.mark.parametrize(
    ("type_", "name", "size"),
    [
        (VECTOR(3), "vector", 3),
        (VECTOR(), "vector", None),
        (HALFVEC(3), "halfvec", 3),
        (SPARSEVEC(3), "sparsevec", 3),
        (BIT(3), "bit", 3),
        (PG_BIT(3), "bit", 3),
        (Wrapped(3), "vector", 3),
        (TSVECTOR(), "tsvector", None),
        (String(3), "text", None),
        (CITEXT(), "text", None),
        (Enum("a"), None, None),
        (Integer(), None, None),
    ],
)
def test_types_are_known_through_decorators(type_, name, size):
    assert (type_name(type_), dimensions(type_)) == (name, size)


def test_types_are_made_from_their_names():
    for code_type in ("bit(384)", "vector(2)", "halfvec(64)", "sparsevec(9)"):
        made = from_sql(code_type)
        assert f"{type_name(made)}({dimensions(made)})" == code_type


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([Quantized("embeding", Binary())], "no column 'embeding' to derive from; .* 'embedding'"),
        ([Quantized("body", Binary())], r"column 'body' of table 'doc' is of type Text\(\)"),
        ([Quantized("embedding", Truncate(400))], "400 dimensions cannot come from 384"),
        (
            [Quantized("embedding", Binary()), Quantized("embedding", Binary(rotate=True))],
            "two codes are declared for column 'embedding_binary'",
        ),
        (
            [Column("code", BIT(8)), Quantized("embedding", Binary(), target="code")],
            r"column 'code' of table 'doc' is of type .*; Quantized\(.* makes .*384",
        ),
        (
            [Column("code", Text), Quantized("embedding", Binary(), target="code")],
            r"column 'code' of table 'doc' is of type Text\(\)",
        ),
        (
            [Column("free", VECTOR()), Quantized("free", Binary())],
            "'free' of table 'doc' names no dimensions",
        ),
    ],
)
def test_contradictions_are_named(items, message):
    with pytest.raises(DeclarationError, match=message):
        table(*items)


def test_unknown_metrics_are_named():
    with pytest.raises(DeclarationError, match="unknown metric 'cosinus'"):
        Quantized("embedding", Binary(), metric="cosinus")


@pytest.mark.parametrize(
    ("declaration", "columns", "call"),
    [
        (
            BM25("body"),
            ("body_bm25_tsv", "body_bm25"),
            "'body', config => 'english', k1 => 1.2, b => 0.75, target => 'body_bm25'",
        ),
        (
            BM25("title", config="app.plain", k1=0, b=1, target="found", tenant="tenant_id"),
            ("found_tsv", "found"),
            "'title', config => 'app.plain', k1 => 0.0, b => 1.0, target => 'found', "
            "tenant => 'tenant_id'",
        ),
        (
            BM25({"title": 2, "body": 0.5}),
            ("title_body_bm25_tsv", "title_body_bm25"),
            "NULL, config => 'english', k1 => 1.2, b => 0.75, target => 'title_body_bm25', "
            """fields => '{"title": 2.0, "body": 0.5}'""",
        ),
        (
            BM25({"body": 1, "title": 2}, target="text"),
            ("text_tsv", "text"),
            "NULL, config => 'english', k1 => 1.2, b => 0.75, target => 'text', "
            """fields => '{"body": 1.0, "title": 2.0}'""",
        ),
        (
            BM25("words", fields={"A": 2, "D": 1}),
            ("words_bm25",),
            "'words', config => 'english', k1 => 1.2, b => 0.75, target => 'words_bm25', "
            """fields => '{"A": 2.0, "D": 1.0}'""",
        ),
    ],
    ids=lambda value: None if isinstance(value, str | tuple) else value.target,
)
def test_words_and_weights_are_declared(declaration, columns, call):
    doc = table(declaration)
    assert derived_columns(doc) == columns
    assert declarations(doc) == (declaration,)
    types = {"tsvector": None, "sparsevec": 1_000_000_000}
    for name in columns:
        column = doc.c[name]
        assert types[type_name(column.type) or ""] == dimensions(column.type)
        assert column.nullable
        assert column.server_default is not None and column.server_onupdate is not None
    emitted: list[str] = []
    doc.metadata.create_all(_mock_engine(emitted), checkfirst=False)
    assert emitted[1:] == [f"CALL sqlvec.add_bm25('doc'::regclass, {call})"]
    emitted.clear()
    doc.metadata.drop_all(_mock_engine(emitted), checkfirst=False)
    assert f"CALL sqlvec.drop_derived('doc'::regclass, '{columns[-1]}')" in emitted[0]


def test_the_words_have_a_gin_index():
    text = BM25("body")
    index = text.index()
    doc = table(text, index)
    assert type(index) is Index
    assert rendered(CreateIndex(index)) == (
        "CREATE INDEX ix_doc_body_bm25_tsv ON doc USING gin (body_bm25_tsv) "
        "WITH (gin_pending_list_limit = 512)"
    )
    copy = doc.to_metadata(MetaData(), schema="other")
    emitted: list[str] = []
    copy.metadata.create_all(_mock_engine(emitted), checkfirst=False)
    assert [statement.partition("(")[0] for statement in emitted[1:]] == [
        "CREATE INDEX ix_doc_body_bm25_tsv ON other.doc USING gin ",
        "CALL sqlvec.add_bm25",
    ]
    assert "'other.doc'::regclass" in emitted[2]


def test_a_model_need_not_map_the_words_and_weights():
    class Base(DeclarativeBase):
        pass

    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        text = BM25("body")
        __table_args__ = (text, text.index())
        __mapper_args__ = {"exclude_properties": text.columns}

    assert Doc.__table__.c.keys() == ["id", "body", "body_bm25_tsv", "body_bm25"]
    assert Doc.__mapper__.attrs.keys() == ["id", "body"]


def test_a_model_may_map_the_weights_deferred():
    class Base(DeclarativeBase):
        pass

    class Doc(Base):
        __tablename__ = "doc"
        id: Mapped[int] = mapped_column(primary_key=True)
        body: Mapped[str]
        body_bm25: Mapped[str] = deferred(mapped_column(SPARSEVEC(1_000_000_000)))
        body_bm25_tsv: Mapped[str] = deferred(mapped_column(TSVECTOR))
        __table_args__ = (BM25("body"),)

    assert Doc.__table__.c.body_bm25.server_default is not None
    assert "bm25" not in rendered(select(Doc))


LONG = "a" * 60


def test_long_names_are_cut_as_the_server_cuts_them():
    text = BM25(LONG)
    assert text.target == fit(f"{LONG}_bm25")
    assert text.columns == (fit(f"{text.target}_tsv"), text.target)
    assert all(len(name) == 63 for name in text.columns)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [BM25("boddy")], "no column 'boddy' to derive from; .* 'body'"),
        (lambda: [BM25({"title": 1, "boddy": 1})], "no column 'boddy' to derive from"),
        (lambda: [BM25("embedding")], "'embedding' of table 'doc' is of type .*not text or tsv"),
        (lambda: [BM25({"title": 1, "words": 1})], "'words' of table .* is of type .*, not text$"),
        (lambda: [BM25("body", tenant="tenant")], "no column 'tenant'"),
        (lambda: [BM25("body", k1=-1)], "k1 of BM25 is a number from 0 to 100, not -1"),
        (lambda: [BM25("body", b=1.1)], "b of BM25 is a number from 0 to 1, not 1.1"),
        (lambda: [BM25({})], "at least one field"),
        (
            lambda: [BM25({"title": 0})],
            "weight of field 'title' is a number from 0.001 to 1000, not 0.0",
        ),
        (lambda: [BM25({"title": math.nan})], "weight of field 'title' is"),
        (
            lambda: [BM25({name: weight for weight, name in enumerate("abcde", 1)})],
            "at most four different weights, .* not 5",
        ),
        (lambda: [BM25({"title": 1}, fields={"A": 1})], "labels of one tsvector column"),
        (lambda: [BM25("body", fields={"A": 1})], "'body' .* has no labels to weigh"),
        (lambda: [BM25("words", fields={"E": 1})], "labels of a tsvector are A, B, C, D, not 'E'"),
        (lambda: [BM25({"body": 1, "title": 2})], "orders them, 'title', 'body', or give a target"),
        (lambda: [BM25("body"), BM25("body", k1=2)], "two codes .* column 'body_bm25_tsv'"),
        (
            lambda: [Column("body_bm25", Text), BM25("body")],
            r"column 'body_bm25' .* is of type Text\(\); BM25\('body', .* makes SPARSEVEC",
        ),
        (
            lambda: [text := BM25("words"), text.index()],
            r"words of 'words_bm25' are column 'words' itself; .* Index\(None, 'words'",
        ),
    ],
)
def test_contradictions_of_text_are_named(make, message):
    with pytest.raises(DeclarationError, match=message):
        table(*make())


def test_declarations_can_be_read():
    assert repr(BM25("body")) == (
        "BM25('body', config='english', k1=1.2, b=0.75, target='body_bm25', tenant=None)"
    )
    assert repr(BM25({"title": 2}, target="t")) == (
        "BM25({'title': 2.0}, config='english', k1=1.2, b=0.75, target='t', tenant=None)"
    )
    assert "fields={'A': 2.0}" in repr(BM25("words", fields={"A": 2}))
