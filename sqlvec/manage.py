"""Work that cannot run inside a transaction: backfill, statistics, indexes built CONCURRENTLY.

Each function takes an ``Engine`` and opens AUTOCOMMIT connections of its own. The statement runs
in a thread while the caller's thread reports progress, so that Ctrl-C reaches the server at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self, TypeAlias

from sqlalchemy import Connection, Engine, Table, TextClause, inspect, text
from sqlalchemy.exc import DBAPIError

from sqlvec import bulk_backfill, catalog
from sqlvec.errors import DeclarationError, InUse, NotInstalled, SqlvecError
from sqlvec.identifiers import fit

_POLL_SECONDS = 0.2

TableName: TypeAlias = str | Table | type[Any]
"""A name as in SQL, a Table or a mapped class."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is."""

    phase: str
    """What the server is doing, e.g. ``encoding`` or ``building index: loading tuples``."""

    done: int
    """Blocks of the table that are done in this phase; of neighbours, rows."""

    total: int
    """Blocks or rows of the table; 0 in a phase that counts none."""


@dataclass(frozen=True, slots=True)
class TextHealth:
    """Statistics of a BM25 column, or of one tenant in it, as ``sqlvec.bm25_health`` shows them."""

    table: str
    column: str
    """The one that holds the weights."""

    tenant: str | None
    documents: int | None
    """None before the first :func:`analyze_bm25`, as are the next five."""

    avgdl: float | None
    """Mean length of a document, in weighted words."""

    terms: int | None
    collisions: int | None
    """Terms that share their dimension with another."""

    analyzed_at: datetime | None
    changes_since: int | None
    """Rows written to the table since then."""

    stale: bool
    advice: str | None
    """What to run; None where nothing needs to be done."""


Report = Callable[[Progress], None]
"""What is called with the progress of a job, several times a second, in the caller's thread."""


@dataclass(frozen=True, slots=True)
class PlannedIndex:
    """One way to index a column, as ``sqlvec.plan_index`` lists it."""

    name: str
    """``source``, the name of a derived column, ``expression:…``, or ``unfinished``."""

    method: str
    opclass: str | None
    statement: str | None
    """None where the way is barred; the note says why."""

    note: str | None


def backfill(
    engine: Engine,
    table: str,
    target: str | None = None,
    *,
    batch: int = 1000,
    progress: Report | None = None,
) -> None:
    """Fill derived columns of rows that have none, in small committed batches.

    E.g.::

        backfill(engine, "doc", "embedding_binary")

    which runs ::

        CALL sqlvec.backfill('doc'::regclass, 'embedding_binary', 1000)

    and afterwards, where it is missing, builds the small partial index that tells searches at
    once that no row waits for its code. Interrupted, it keeps what is committed; started again,
    it goes on from there.

    Before that, on an engine of psycopg, multi-vectors, and vectors whose hubs are corrected, are
    encoded here with numpy, several times as fast: each batch is read and its codes are written in
    binary ``COPY``, while its rows are locked. Over a slow network the procedure alone, called from
    any client, may be faster.

    :param table: its name as in SQL, with schema and quotes where it needs them.
    :param target: one derived column; None is every derived column of the table.
    :param batch: rows per transaction, 1 or more.
    :param progress: called with the phase and the blocks done.
    :raises NotInstalled: the database has no schema ``sqlvec``.
    :raises DeclarationError: no such table or derived column.

    .. versionadded:: 0.1
    """
    with _connect(engine) as connection:
        relation = _Relation.find(connection, table)
        call = text("CALL sqlvec.backfill(CAST(:oid AS oid)::regclass, :target, :batch)")
        parameters = {"oid": relation.oid, "target": target, "batch": batch}
        job = _Job(engine, connection, progress)
        bulk_backfill.fill(connection, relation.oid, target, batch, job.report_encoding)
        job.run(
            lambda: connection.execute(call, parameters),
            bulk_backfill.PROGRESS,
            {"oid": relation.oid, "target": target},
        )
        if relation.owned:
            for statement in _missing_ready_indexes(connection, relation):
                _build(job, relation, statement)


def analyze_bm25(
    engine: Engine, table: TableName, *, drift: float = 0.1, progress: Report | None = None
) -> None:
    """Refresh the statistics of every BM25 column of a table.

    E.g.::

        analyze_bm25(engine, "doc")

    which runs ::

        CALL sqlvec.analyze_bm25('doc'::regclass, 0.1)

    It counts documents, their mean length and how many hold each term. Weights that were computed
    with a mean length too far from the new one are computed anew, in small committed batches.
    Like ``ANALYZE``, it is worth running after a bulk load and now and then.

    :param table: a mapped class, a Table, or its name as in SQL, with schema and quotes where it
        needs them.
    :param drift: fraction by which the mean length may have moved before weights are computed
        anew, 0 or more.
    :param progress: called with the phase and the blocks done.
    :raises NotInstalled: the database has no schema ``sqlvec``.
    :raises DeclarationError: no such table, or no BM25 column in it.

    .. versionadded:: 0.1
    """
    with _connect(engine) as connection:
        relation = _Relation.find(connection, table)
        call = text("CALL sqlvec.analyze_bm25(CAST(:oid AS oid)::regclass, CAST(:drift AS real))")
        _Job(engine, connection, progress).run(
            lambda: connection.execute(call, {"oid": relation.oid, "drift": drift}),
            bulk_backfill.PROGRESS,
            {"oid": relation.oid, "target": None},
        )


def build_neighbours(
    engine: Engine,
    table: TableName,
    column: str,
    neighbours: int = 10,
    *,
    into_table: str | None = None,
    batch: int = 100,
    mutual: bool = False,
    rebuild: bool = False,
    progress: Report | None = None,
) -> None:
    """Write the nearest rows of every row of a vector column into a table of edges.

    E.g.::

        build_neighbours(engine, "doc", "embedding", mutual=True)

    which runs ::

        CALL sqlvec.build_neighbours('doc'::regclass, 'embedding', 10, mutual => true)

    Interrupted, it keeps what is committed; started again, it goes on with the rows that have no
    edges yet, unless ``mutual`` or ``rebuild`` asks for all.

    :param table: a mapped class, a Table, or its name as in SQL, with schema and quotes where it
        needs them; with a primary key of one column.
    :param column: of type vector or halfvec.
    :param neighbours: edges that a row is given, 1 to 1,000.
    :param into_table: name of the table of edges, in the schema of the table; None is
        ``<table>_neighbours``.
    :param batch: rows per transaction, 1 or more.
    :param mutual: keep edges only where both rows name each other.
    :param rebuild: do rows anew that have edges.
    :param progress: called with the phase and the rows done.
    :raises NotInstalled: the database has no schema ``sqlvec``.
    :raises DeclarationError: no such table or column, or one that cannot have edges.

    .. versionadded:: 0.1
    """
    with _connect(engine) as connection:
        relation = _Relation.find(connection, table)
        parameters = {
            "oid": relation.oid,
            "column": column,
            "neighbours": neighbours,
            "into": into_table,
            "batch": batch,
            "mutual": mutual,
            "rebuild": rebuild,
        }
        job = _Job(engine, connection, progress)
        job.run(
            lambda: connection.execute(_BUILD_NEIGHBOURS, parameters),
            _NEIGHBOURS_PROGRESS,
            {"pid": job.pid},
        )


def bm25_health(engine: Engine, table: TableName | None = None) -> list[TextHealth]:
    """Return how fresh the statistics of BM25 columns are, as ``sqlvec.bm25_health`` shows them.

    :param table: a mapped class, a Table, or its name as in SQL; None is every table.
    :raises NotInstalled: the database has no schema ``sqlvec``.
    :raises DeclarationError: no such table.

    .. versionadded:: 0.1
    """
    with _connect(engine) as connection:
        if table is None:
            _require_installed(connection)
        oid = None if table is None else _Relation.find(connection, table).oid
        return [TextHealth(*row) for row in connection.execute(_BM25_HEALTH, {"oid": oid})]


def plan_index(
    engine: Engine, table: str, column: str, *, metric: str | None = None
) -> list[PlannedIndex]:
    """Return the ways to index a column, as ``sqlvec.plan_index`` lists them.

    :param table: its name as in SQL.
    :param column: the vector column, or one with BM25.
    :param metric: None is the one that the column's codes or indexes are made for.
    :raises NotInstalled: the database has no schema ``sqlvec``.
    :raises DeclarationError: no such table or column.

    .. versionadded:: 0.1
    """
    with _connect(engine) as connection:
        return _plan(connection, _Relation.find(connection, table), column, metric)


def create_index(
    engine: Engine,
    table: str,
    column: str,
    name: str | None = None,
    *,
    metric: str | None = None,
    m: int | None = None,
    ef_construction: int | None = None,
    maintenance_work_mem: str | None = None,
    progress: Report | None = None,
) -> bool:
    """Build an index without blocking writes; return False when it is there already.

    E.g.::

        create_index(engine, "doc", "embedding", "embedding_binary", m=16)

    which runs ::

        CREATE INDEX CONCURRENTLY ix_doc_embedding_binary_hnsw ON public.doc
            USING hnsw (embedding_binary public.bit_hamming_ops) WITH (m = 16)

    For BM25, ``create_index(engine, "doc", "body_bm25")`` builds the GIN index on the words.

    A build that fails or is interrupted leaves no invalid index behind, and one left by somebody
    else is replaced. On a partitioned table each partition is built by itself; started again, it
    goes on with the partitions that are missing.

    :param table: its name as in SQL, with schema and quotes where it needs them.
    :param column: the vector column, or one with BM25.
    :param name: the way to index it, as :func:`plan_index` names it: a derived column, ``source``
        or an expression. None is the only derived column, or ``source`` where there is none.
    :param metric: None is the one that the column's codes or indexes are made for.
    :param m: of HNSW: connections per node, 2 to 100; None is pgvector's default, 16.
    :param ef_construction: of HNSW: candidates while building, 4 to 1,000; None is 64.
    :param maintenance_work_mem: memory for the build, e.g. ``"1GB"``; None is the server's setting.
    :param progress: called with the phase and the blocks done.
    :raises NotInstalled: the database has no schema ``sqlvec``.
    :raises DeclarationError: no such table, column or way, or one that cannot be indexed.
    :raises InUse: another session is building this index.

    .. versionadded:: 0.1
    """
    with _connect(engine) as connection:
        relation = _Relation.find(connection, table)
        way = _choose(_plan(connection, relation, column, metric), relation, column, name)
        if way.method != "hnsw" and not (m is ef_construction is None):
            raise DeclarationError(f"m and ef_construction are settings of hnsw, not {way.method}")
        if way.note == "is there already":
            return False
        if way.statement is None:
            raise DeclarationError(f"{way.name} of table {relation.name}: {way.note}")
        statement = _IndexStatement.parse(way.statement).with_settings(
            m=m, ef_construction=ef_construction
        )
        with _setting(connection, "maintenance_work_mem", maintenance_work_mem):
            _build(_Job(engine, connection, progress), relation, statement)
        return True


@dataclass(frozen=True, slots=True)
class _Relation:
    """A table as the server resolved its name."""

    oid: int
    name: str
    """As SQL, quoted."""
    partitioned: bool
    owned: bool

    @classmethod
    def find(cls, connection: Connection, table: TableName) -> Self:
        _require_installed(connection)
        name = _sql_name(connection, table)
        row = connection.execute(_FIND_RELATION, {"table": name}).one()
        return cls(row.oid, row.name, row.relkind == "p", row.owned)


def _sql_name(connection: Connection, table: TableName) -> str:
    if isinstance(table, str):
        return table
    found = table if isinstance(table, Table) else _mapped_table(table)
    schema = connection.schema_for_object(found)
    # Not the dialect's quoting: it doubles percent signs, and this travels as a value.
    return ".".join(
        '"' + part.replace('"', '""') + '"' for part in (schema, found.name) if part is not None
    )


def _mapped_table(model: object) -> Table:
    found = getattr(inspect(model, raiseerr=False), "local_table", None)
    if not isinstance(found, Table):
        raise DeclarationError(f"{model!r} is neither a mapped class nor a Table nor a name")
    return found


def _require_installed(connection: Connection) -> None:
    if catalog.installed_version(connection) is None:
        raise NotInstalled("sqlvec is not installed in this database; run sqlvec install")


_QUALIFIED = "pg_catalog.format('%I.%I', n.nspname, c.relname)"

_FIND_RELATION = text(f"""
    SELECT c.oid, {_QUALIFIED} AS name, c.relkind,
           pg_catalog.pg_has_role(c.relowner, 'USAGE') AS owned
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = CAST(:table AS regclass)
""")

_INDEX_PROGRESS = text("""
    SELECT phase, blocks_done AS done, blocks_total AS total
    FROM pg_catalog.pg_stat_progress_create_index
    WHERE relid = CAST(:oid AS oid) AND pid = :pid
""")

_BUILD_NEIGHBOURS = text("""
    CALL sqlvec.build_neighbours(
        CAST(:oid AS oid)::regclass, :column, :neighbours, :into, :batch, :mutual, :rebuild)
""")

_NEIGHBOURS_PROGRESS = text("""
    SELECT m.found[1] AS phase, m.found[2] AS done, m.found[3] AS total
    FROM pg_catalog.pg_stat_activity AS a CROSS JOIN LATERAL pg_catalog.regexp_match(
        a.application_name, '^sqlvec: (.+) ([0-9]+)/([0-9]+)$') AS m (found)
    WHERE a.pid = :pid AND m.found IS NOT NULL
""")

_BM25_HEALTH = text("""
    SELECT relation::text, target_column, tenant, documents, avgdl, terms, collisions,
           analyzed_at, changes_since, stale, advice
    FROM sqlvec.bm25_health
    WHERE CAST(:oid AS oid) IS NULL OR relation = CAST(:oid AS oid)
    ORDER BY relation::text, target_column, tenant
""")

_SOURCES = text("""
    SELECT DISTINCT source_column, metric
    FROM sqlvec.derived_column
    WHERE relation = CAST(:oid AS oid) AND problem IS NULL
    ORDER BY 1, 2
""")

_PLAN = text("""
    SELECT name, method, opclass, statement, note
    FROM sqlvec.plan_index(CAST(:oid AS oid)::regclass, :column, :metric)
""")

_FIND_INDEX = text(f"""
    SELECT {_QUALIFIED} AS name, i.indisvalid AS valid,
           EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index AS p
                   WHERE p.index_relid = i.indexrelid) AS building
    FROM pg_catalog.pg_index AS i
    JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE i.indrelid = CAST(:oid AS oid) AND c.relname = CAST(:index AS name)
""")

_LEAVES = text(f"""
    SELECT c.oid, {_QUALIFIED} AS name, c.relname
    FROM pg_catalog.pg_partition_tree(CAST(:oid AS oid)::regclass) AS t
    JOIN pg_catalog.pg_class AS c ON c.oid = t.relid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE t.isleaf AND c.relkind = 'r'
    ORDER BY c.oid
""")


@dataclass(frozen=True, slots=True)
class _IndexStatement:
    """A ``CREATE INDEX`` that the server wrote, in its parts."""

    index: str
    """Without quotes and schema."""
    table: str
    """As SQL."""
    definition: str
    """From ``USING``, or the columns, to the end."""

    @classmethod
    def parse(cls, statement: str) -> Self:
        found = _STATEMENT.fullmatch(statement)
        assert found is not None, statement
        index, table, definition = found.groups()
        if index.startswith('"'):
            index = index[1:-1].replace('""', '"')
        return cls(index, table, definition)

    def with_settings(self, **settings: int | None) -> Self:
        given = [f"{key} = {value:d}" for key, value in settings.items() if value is not None]
        if not given:
            return self
        return replace(self, definition=f"{self.definition} WITH ({', '.join(given)})")

    def on(self, table: str, table_name: str) -> Self:
        """Return the same index for a partition."""
        return replace(self, index=fit(f"{self.index}_{table_name}"), table=table)

    def sql(self, *, concurrently: bool) -> str:
        online = "CONCURRENTLY " if concurrently else ""
        index = self.index.replace('"', '""')
        return f'CREATE INDEX {online}"{index}" ON {self.table} {self.definition}'


_NAME = r'(?:"(?:[^"]|"")+"|[^"\s.]+)'
_STATEMENT = re.compile(
    rf"CREATE INDEX (?:CONCURRENTLY )?(?:IF NOT EXISTS )?({_NAME})"
    rf" ON ({_NAME}(?:\.{_NAME})?) (.+)",
    re.DOTALL,
)


def _plan(
    connection: Connection, relation: _Relation, column: str, metric: str | None
) -> list[PlannedIndex]:
    parameters = {"oid": relation.oid, "column": column, "metric": metric}
    return [PlannedIndex(*row) for row in connection.execute(_PLAN, parameters)]


def _choose(
    plan: list[PlannedIndex], relation: _Relation, column: str, name: str | None
) -> PlannedIndex:
    ways = {way.name: way for way in plan if way.name != "unfinished"}
    if name is None:
        codes = [way for way in ways if way != "source" and not way.startswith("expression:")]
        if len(codes) > 1:
            raise DeclarationError(
                f"column {column!r} of table {relation.name} has several codes;"
                f" name one of: {', '.join(codes)}"
            )
        name = codes[0] if codes else "source"
    if name not in ways:
        raise DeclarationError(
            f"column {column!r} of table {relation.name} cannot be indexed by way of {name!r};"
            f" the ways are: {', '.join(ways)}"
        )
    return ways[name]


def _missing_ready_indexes(
    connection: Connection, relation: _Relation
) -> Iterator[_IndexStatement]:
    for source, metric in connection.execute(_SOURCES, {"oid": relation.oid}).all():
        for way in _plan(connection, relation, source, metric):
            if way.name == "unfinished" and way.statement is not None:
                yield _IndexStatement.parse(way.statement)


def _build(job: _Job, relation: _Relation, statement: _IndexStatement) -> None:
    if not relation.partitioned:
        _build_table(job, relation.oid, statement)
        return
    # CONCURRENTLY is refused on the parent. Once every partition has the index, the parent's is a
    # matter of milliseconds: CREATE INDEX attaches those that fit instead of building its own.
    built = set()
    while missing := [
        leaf
        for leaf in job.connection.execute(_LEAVES, {"oid": relation.oid}).all()
        if leaf.oid not in built
    ]:
        for leaf in missing:
            _build_table(job, leaf.oid, statement.on(leaf.name, leaf.relname))
            built.add(leaf.oid)
    _drop_invalid(job.connection, relation.oid, statement.index)
    _execute(job.connection, statement.sql(concurrently=False))


def _build_table(job: _Job, oid: int, statement: _IndexStatement) -> None:
    if _drop_invalid(job.connection, oid, statement.index):
        return
    try:
        job.run(
            lambda: _execute(job.connection, statement.sql(concurrently=True)),
            _INDEX_PROGRESS,
            {"oid": oid, "pid": job.pid},
        )
    except BaseException:
        # The failure is what the caller must see, even where the connection died of it.
        with suppress(DBAPIError):
            _drop_invalid(job.connection, oid, statement.index)
        raise


def _drop_invalid(connection: Connection, oid: int, index: str) -> bool:
    """Drop what a failed build left; return whether a valid index of that name is there."""
    found = connection.execute(_FIND_INDEX, {"oid": oid, "index": index}).one_or_none()
    if found is None or found.valid:
        return found is not None
    if found.building:
        raise InUse(f"another session is building index {found.name}")
    _execute(connection, f"DROP INDEX CONCURRENTLY {found.name}")
    return False


class _Job:
    """A connection whose long statements are watched, and cancelled with the caller."""

    def __init__(self, engine: Engine, connection: Connection, progress: Report | None) -> None:
        self.connection = connection
        self.pid: int = connection.scalar(text("SELECT pg_catalog.pg_backend_pid()"))
        self._engine = engine
        self._progress = progress

    def run(
        self, work: Callable[[], object], query: TextClause, parameters: Mapping[str, Any]
    ) -> None:
        """Do the work in a thread; meanwhile report the row that the query returns."""
        with _connect(self._engine) as monitor, ThreadPoolExecutor(max_workers=1) as executor:
            future = executor.submit(work)
            try:
                while not wait([future], timeout=_POLL_SECONDS).done:
                    self._report(monitor, query, parameters)
            except BaseException:
                # Again and again: the first may come before the statement has begun.
                with _connect(self._engine) as other:
                    while not future.done():
                        other.execute(
                            text("SELECT pg_catalog.pg_cancel_backend(:pid)"), {"pid": self.pid}
                        )
                        wait([future], timeout=1)
                raise
            future.result()
            self._report(monitor, query, parameters)

    def report_encoding(self, done: int, total: int) -> None:
        """Report what the caller's own thread does."""
        if self._progress is not None:
            self._progress(Progress("encoding", done, total))

    def _report(
        self, monitor: Connection, query: TextClause, parameters: Mapping[str, Any]
    ) -> None:
        if self._progress is not None:
            row = monitor.execute(query, parameters).one_or_none()
            if row is not None:
                self._progress(Progress(row.phase, int(row.done or 0), int(row.total or 0)))


_NAMED: dict[str, type[SqlvecError]] = {
    "42P01": DeclarationError,  # undefined_table
    "3F000": DeclarationError,  # invalid_schema_name: the same before PostgreSQL 16
    "42602": DeclarationError,  # invalid_name
    "42703": DeclarationError,  # undefined_column
    "42804": DeclarationError,  # datatype_mismatch
    "42809": DeclarationError,  # wrong_object_type
    "42725": DeclarationError,  # ambiguous_function
    "42P08": DeclarationError,  # ambiguous_parameter
    "42P07": InUse,  # duplicate_table: another relation has the name of the index
    "22023": DeclarationError,  # invalid_parameter_value
    "2D000": SqlvecError,  # invalid_transaction_termination: something opened a transaction
}


@contextmanager
def _connect(engine: Engine) -> Iterator[Connection]:
    """Open an AUTOCOMMIT connection on which the server's refusals have names of this package."""
    if not isinstance(engine, Engine):
        raise TypeError(
            f"manage needs a sync engine, not {type(engine).__name__}; in async code, run it as"
            " await asyncio.to_thread(manage.backfill, create_engine(…), …)"
        )
    try:
        with engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")
    except DBAPIError as error:
        named = _NAMED.get(getattr(error.orig, "sqlstate", None) or "")
        if named is None:
            raise
        diagnostics = getattr(error.orig, "diag", None)
        parts = (
            getattr(diagnostics, "message_primary", None) or str(error.orig),
            getattr(diagnostics, "message_hint", None),
        )
        raise named("\n".join(part for part in parts if part)) from error


@contextmanager
def _setting(connection: Connection, name: str, value: str | None) -> Iterator[None]:
    """Change a setting of the session for a while."""
    if value is None:
        yield
        return
    change = text("SELECT pg_catalog.set_config(:name, :value, false)")
    before = connection.scalar(text("SELECT pg_catalog.current_setting(:name)"), {"name": name})
    connection.execute(change, {"name": name, "value": value})
    try:
        yield
    finally:
        # The pool hands the connection on.
        connection.execute(change, {"name": name, "value": before})


def _execute(connection: Connection, statement: str) -> None:
    # The names in it may hold colons and percent signs.
    connection.exec_driver_sql(statement, execution_options={"no_parameters": True})
