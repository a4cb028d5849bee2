"""Statements that declare derived columns and install schema ``sqlvec``, for ``create_all``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from sqlalchemy import Connection, MetaData, String, Table, event
from sqlalchemy.exc import CompileError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import ExecutableDDLElement
from sqlalchemy.sql.compiler import DDLCompiler

from sqlvec import catalog
from sqlvec.elements import regclass


class AddQuantized(ExecutableDDLElement):
    """``CALL sqlvec.add_quantized``: keep a code of a vector column up to date.

    E.g.::

        connection.execute(AddQuantized("embedding", "embedding_binary", "binary").against(table))

    which renders ::

        CALL sqlvec.add_quantized('doc'::regclass, 'embedding', 'binary',
            target => 'embedding_binary')

    :param source: the vector column.
    :param code: the column that holds the code; made where it is not there.
    :param encoder: a kind, or the name of an encoder in the catalog.
    :param metric: None is cosine.
    :param options: of the kind.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(
        self,
        source: str,
        code: str,
        encoder: str,
        *,
        metric: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.source = source
        self.code = code
        self.encoder = encoder
        self.metric = metric
        self.encoder_options = options


class AddBM25(ExecutableDDLElement):
    """``CALL sqlvec.add_bm25``: keep the BM25 weights of a text column, or of several, up to date.

    E.g.::

        connection.execute(AddBM25("body", "body_bm25", config="english").against(table))

    which renders ::

        CALL sqlvec.add_bm25('doc'::regclass, 'body', config => 'english', target => 'body_bm25')

    :param source: the text or tsvector column; None with ``fields`` that name columns.
    :param code: the column that holds the weights; made where it is not there.
    :param config: text search configuration; None is the server's default, as are the next two.
    :param k1: how much a repeated term adds.
    :param b: how much the length of a document counts.
    :param fields: weights of columns, or of the labels of a tsvector column.
    :param tenant: column whose values have statistics of their own.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(
        self,
        source: str | None,
        code: str,
        *,
        config: str | None = None,
        k1: float | None = None,
        b: float | None = None,
        fields: Mapping[str, float] | None = None,
        tenant: str | None = None,
    ) -> None:
        self.source = source
        self.code = code
        self.config = config
        self.k1 = k1
        self.b = b
        self.fields = fields
        self.tenant = tenant


class AddFDE(ExecutableDDLElement):
    """``CALL sqlvec.add_fde``: keep the encoding of a multi-vector column up to date.

    E.g.::

        connection.execute(AddFDE("tokens", "tokens_fde").against(table))

    which renders ::

        CALL sqlvec.add_fde('doc'::regclass, 'tokens', target => 'tokens_fde')

    :param source: the multi-vector column.
    :param code: the column that holds the encoding; made where it is not there.
    :param options: numbers and flags by name, as ``sqlvec.add_fde`` has them; None is its
        default.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(
        self, source: str, code: str, *, options: Mapping[str, int | None] | None = None
    ) -> None:
        self.source = source
        self.code = code
        self.encoder_options = options


class AddPooled(ExecutableDDLElement):
    """``CALL sqlvec.add_pooled``: keep a multi-vector with fewer vectors up to date.

    E.g.::

        connection.execute(AddPooled("tokens", "tokens_pool", "prefix").against(table))

    which renders ::

        CALL sqlvec.add_pooled('doc'::regclass, 'tokens', method => 'prefix',
            target => 'tokens_pool')

    :param source: the multi-vector column.
    :param code: the column that holds the pooled vectors; made where it is not there.
    :param method: of pooling.
    :param options: of the method; None is its defaults.
    :param weights: the column with the weights of tokens, for method ``top``.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(
        self,
        source: str,
        code: str,
        method: str,
        *,
        options: Mapping[str, int | float | bool | None] | None = None,
        weights: str | None = None,
    ) -> None:
        self.source = source
        self.code = code
        self.method = method
        self.encoder_options = options
        self.weights = weights


class AddCentroid(ExecutableDDLElement):
    """``CALL sqlvec.add_centroid``: keep one byte per token of a multi-vector column up to date.

    E.g.::

        connection.execute(AddCentroid("tokens", "tokens_centroid", "nearest").against(table))

    which renders ::

        CALL sqlvec.add_centroid('doc'::regclass, 'tokens', 'nearest', target => 'tokens_centroid')

    :param source: the multi-vector column.
    :param code: the column that holds the codes; made where it is not there.
    :param encoder: name of an encoder of kind ``centroid`` in the catalog.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(self, source: str, code: str, encoder: str) -> None:
        self.source = source
        self.code = code
        self.encoder = encoder


class AddHubness(ExecutableDDLElement):
    """``CALL sqlvec.add_hubness``: keep vectors with a correction of hubs up to date.

    E.g.::

        connection.execute(AddHubness("embedding", "embedding_hubness", "hubs").against(table))

    which renders ::

        CALL sqlvec.add_hubness('doc'::regclass, 'embedding', 'hubs',
            target => 'embedding_hubness')

    :param source: the vector column.
    :param code: the column that holds the codes; made where it is not there.
    :param encoder: name of an encoder of kind ``hubness`` in the catalog.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(self, source: str, code: str, encoder: str) -> None:
        self.source = source
        self.code = code
        self.encoder = encoder


class StoreExternal(ExecutableDDLElement):
    """Store the values of a column as they are, without trying to compress them.

    E.g.::

        event.listen(Doc.__table__, "after_create", StoreExternal("tokens"))

    which renders ``ALTER TABLE doc ALTER COLUMN tokens SET STORAGE EXTERNAL``. Meant for token
    vectors: compressing them takes time on every write and read, and saves hardly any space.

    :param column: its name. Rows that are there already stay as they are stored.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(self, column: str) -> None:
        self.column = column


class DropDerived(ExecutableDDLElement):
    """``CALL sqlvec.drop_derived``, where schema ``sqlvec`` knows the column.

    Renders a ``DO`` block, so that dropping tables goes on where the schema is gone already.

    :param code: the derived column.

    .. versionadded:: 0.1
    """

    target: Table

    def __init__(self, code: str) -> None:
        self.code = code


def attach(metadata: MetaData, *, create_extension: bool = False) -> None:
    """Install schema ``sqlvec`` on ``create_all`` of this MetaData where it is missing.

    E.g.::

        attach(Base.metadata)
        Base.metadata.create_all(engine)

    An installed release is left as it is. No other MetaData is touched.

    :param create_extension: run ``CREATE EXTENSION vector`` too where it is missing.

    .. versionadded:: 0.1
    """
    listener = partial(_install_where_missing, create_extension=create_extension)
    event.listen(metadata, "before_create", listener)


def _install_where_missing(
    target: MetaData, connection: Connection, *, create_extension: bool, **kw: Any
) -> None:
    if catalog.installed_version(connection) is None:
        catalog.install(connection, create_extension=create_extension)


@compiles(AddQuantized)
@compiles(AddBM25)
@compiles(AddFDE)
@compiles(AddPooled)
@compiles(AddCentroid)
@compiles(AddHubness)
@compiles(DropDerived)
@compiles(StoreExternal)
def _compile_elsewhere(element: object, compiler: DDLCompiler, **kw: Any) -> str:
    raise CompileError(f"sqlvec needs PostgreSQL, not {compiler.dialect.name}")


@compiles(AddQuantized, "postgresql")
def _compile_add_quantized(element: AddQuantized, compiler: DDLCompiler, **kw: Any) -> str:
    arguments = [
        regclass(compiler.preparer, element.target),
        _literal(compiler, element.source),
        _literal(compiler, element.encoder),
        f"target => {_literal(compiler, element.code)}",
    ]
    if element.metric:
        arguments.append(f"metric => {_literal(compiler, element.metric)}")
    if element.encoder_options:
        options = json.dumps(dict(element.encoder_options))
        arguments.append(f"options => {_literal(compiler, options)}")
    return f"CALL sqlvec.add_quantized({', '.join(arguments)})"


@compiles(AddBM25, "postgresql")
def _compile_add_bm25(element: AddBM25, compiler: DDLCompiler, **kw: Any) -> str:
    arguments = [
        regclass(compiler.preparer, element.target),
        "NULL" if element.source is None else _literal(compiler, element.source),
    ]
    if element.config is not None:
        arguments.append(f"config => {_literal(compiler, element.config)}")
    for name, value in (("k1", element.k1), ("b", element.b)):
        if value is not None:
            arguments.append(f"{name} => {float(value)!r}")
    arguments.append(f"target => {_literal(compiler, element.code)}")
    if element.fields:
        arguments.append(f"fields => {_literal(compiler, json.dumps(dict(element.fields)))}")
    if element.tenant is not None:
        arguments.append(f"tenant => {_literal(compiler, element.tenant)}")
    return f"CALL sqlvec.add_bm25({', '.join(arguments)})"


@compiles(AddFDE, "postgresql")
def _compile_add_fde(element: AddFDE, compiler: DDLCompiler, **kw: Any) -> str:
    arguments = [
        regclass(compiler.preparer, element.target),
        _literal(compiler, element.source),
        f"target => {_literal(compiler, element.code)}",
    ]
    for name, value in (element.encoder_options or {}).items():
        if value is not None:
            arguments.append(f"{name} => {json.dumps(value)}")
    return f"CALL sqlvec.add_fde({', '.join(arguments)})"


@compiles(AddPooled, "postgresql")
def _compile_add_pooled(element: AddPooled, compiler: DDLCompiler, **kw: Any) -> str:
    arguments = [
        regclass(compiler.preparer, element.target),
        _literal(compiler, element.source),
        f"method => {_literal(compiler, element.method)}",
        f"target => {_literal(compiler, element.code)}",
    ]
    if element.encoder_options:
        options = json.dumps(dict(element.encoder_options))
        arguments.append(f"options => {_literal(compiler, options)}")
    if element.weights is not None:
        arguments.append(f"weights_column => {_literal(compiler, element.weights)}")
    return f"CALL sqlvec.add_pooled({', '.join(arguments)})"


@compiles(AddCentroid, "postgresql")
def _compile_add_centroid(element: AddCentroid, compiler: DDLCompiler, **kw: Any) -> str:
    return _add_by_encoder("add_centroid", element, compiler)


@compiles(AddHubness, "postgresql")
def _compile_add_hubness(element: AddHubness, compiler: DDLCompiler, **kw: Any) -> str:
    return _add_by_encoder("add_hubness", element, compiler)


def _add_by_encoder(
    procedure: str, element: AddCentroid | AddHubness, compiler: DDLCompiler
) -> str:
    arguments = [
        regclass(compiler.preparer, element.target),
        _literal(compiler, element.source),
        _literal(compiler, element.encoder),
        f"target => {_literal(compiler, element.code)}",
    ]
    return f"CALL sqlvec.{procedure}({', '.join(arguments)})"


@compiles(StoreExternal, "postgresql")
def _compile_store_external(element: StoreExternal, compiler: DDLCompiler, **kw: Any) -> str:
    table = compiler.preparer.format_table(element.target)
    column = compiler.preparer.quote(element.column)
    return f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL"


@compiles(DropDerived, "postgresql")
def _compile_drop_derived(element: DropDerived, compiler: DDLCompiler, **kw: Any) -> str:
    table = regclass(compiler.preparer, element.target)
    code = _literal(compiler, element.code)
    body = (
        "BEGIN"
        " IF pg_catalog.to_regclass('sqlvec.derived_column') IS NOT NULL THEN"
        " IF EXISTS (SELECT FROM sqlvec.derived_column"
        f" WHERE relation = {table} AND target_column = {code})"
        f" THEN CALL sqlvec.drop_derived({table}, {code}); END IF;"
        " END IF; "
        "END"
    )
    return f"DO {_literal_body(body)}"


def _literal(compiler: DDLCompiler, value: str) -> str:
    """Quote a string, with percent signs doubled where the driver would read them."""
    literal: str = compiler.sql_compiler.render_literal_value(value, String())
    return literal


def _literal_body(body: str) -> str:
    tag = "do"
    while f"${tag}$" in body:
        tag += "_"
    return f"${tag}$ {body} ${tag}$"
