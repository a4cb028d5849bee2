"""Load the SQL of schema ``sqlvec``, and install, upgrade, check and remove it.

The SQL lives in the top-level folder ``sql/``, inside a wheel as ``sqlvec/_sql``. ``manifest.txt``
lists its files in order; together they are the bundle. Installing a release runs its bundle in
one transaction. Upgrading runs the steps in ``upgrades/`` from release to release, then the
bundle, whose statements are all ``CREATE OR REPLACE`` or ``IF NOT EXISTS``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sqlvec.encoders import FDE, Centroid, Encoder, Parts, Pool, from_options
from sqlvec.errors import (
    DeclarationError,
    InstalledAsExtension,
    InUse,
    MissingRequirement,
    NotInstalled,
    SqlvecError,
    VersionMismatch,
)


def _source() -> Traversable:
    packaged = files("sqlvec") / "_sql"
    # An editable installation reads the repository itself.
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "sql"


def _read(*path: str) -> str:
    return _source().joinpath(*path).read_text(encoding="utf-8")


VERSION = _read("VERSION").strip()
"""The release that this package installs."""

_COMMENT = "quantized, multi-vector and hybrid search on pgvector"

_SEARCH_PATH = """\
-- Types and operators of pgvector are bound now, so its schema must be on the path.
DO $do$
BEGIN
    PERFORM pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', 'sqlvec',
        (SELECT pg_catalog.quote_ident(n.nspname)
         FROM pg_catalog.pg_extension AS e
         JOIN pg_catalog.pg_namespace AS n ON n.oid = e.extnamespace
         WHERE e.extname = 'vector'), 'pg_catalog'), true);
END
$do$;
"""

_KEEP_IN_DUMPS = """\
-- The rows belong to the user: pg_dump must not leave them to CREATE EXTENSION.
DO $do$
DECLARE
    v_relation regclass;
BEGIN
    FOR v_relation IN
        SELECT c.oid
        FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = 'sqlvec'::regnamespace AND c.relkind IN ('r', 'S')
        ORDER BY c.oid
    LOOP
        PERFORM pg_catalog.pg_extension_config_dump(v_relation, '');
    END LOOP;
END
$do$;
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that :func:`check` has to say about an installation."""

    severity: Literal["note", "warning", "error"]
    problem: str
    remedy: str | None = None


def bundle(version: str | None = None) -> str:
    """Return the SQL that creates schema ``sqlvec``, without a transaction around it.

    :param version: a release; None is the one of this package.
    :raises VersionMismatch: this package does not hold that release.
    """
    if version is None or version == VERSION:
        parts = [_read(name) for name in manifest()]
        return "\n".join(parts).replace("@VERSION@", VERSION)
    frozen = _source() / "releases" / f"sqlvec--{version}.sql"
    if not frozen.is_file():
        raise VersionMismatch(f"sqlvec {VERSION} does not hold the SQL of release {version}")
    return frozen.read_text(encoding="utf-8")


def manifest() -> list[str]:
    """Return the names of the SQL files in the order in which they run."""
    lines = (line.partition("#")[0].strip() for line in _read("manifest.txt").splitlines())
    return [line for line in lines if line]


def upgrade_bundle(from_: str, to: str | None = None) -> str:
    """Return the SQL that turns release ``from_`` into release ``to``.

    :param to: None is the release of this package.
    :raises VersionMismatch: no chain of upgrades leads from one to the other.
    """
    target = to or VERSION
    steps = _upgrade_steps()
    parts = []
    reached = from_
    while reached != target:
        if reached not in steps:
            raise VersionMismatch(f"no upgrade leads from sqlvec {from_} to {target}")
        following = steps[reached]
        parts.append(_read("upgrades", f"{reached}--{following}.sql"))
        reached = following
    return "\n".join([*parts, bundle(target)])


def _upgrade_steps() -> dict[str, str]:
    folder = _source() / "upgrades"
    if not folder.is_dir():
        return {}
    names = (re.fullmatch(r"(.+)--(.+)\.sql", entry.name) for entry in folder.iterdir())
    return {name[1]: name[2] for name in names if name}


def script(from_: str | None = None) -> str:
    """Return a script for psql or a web console that installs or upgrades in one transaction.

    :param from_: the release to upgrade; None installs.
    """
    body = bundle() if from_ is None else upgrade_bundle(from_)
    quiet = "SET LOCAL client_min_messages = warning;"
    return f"BEGIN;\n{quiet}\n\n{_SEARCH_PATH}\n{body}\nCOMMIT;\n"


def extension_files() -> dict[str, str]:
    """Return, by name, the files of extension ``sqlvec`` for the server's ``share/extension``."""
    # No `schema` here: the script makes schema sqlvec, so that DROP EXTENSION removes it as well.
    control = (
        f"comment = '{_COMMENT}'\n"
        f"default_version = '{VERSION}'\n"
        "requires = 'vector'\n"
        "relocatable = false\n"
        "superuser = false\n"
        "trusted = true\n"
    )
    only_as_extension = '\\echo Use "CREATE EXTENSION sqlvec" to load this file. \\quit\n\n'
    scripts = {
        f"sqlvec--{release}--{VERSION}.sql": upgrade_bundle(release) for release in _upgrade_steps()
    }
    scripts[f"sqlvec--{VERSION}.sql"] = bundle()
    return {"sqlvec.control": control} | {
        name: f"{only_as_extension}{_SEARCH_PATH}\n{body}\n{_KEEP_IN_DUMPS}"
        for name, body in scripts.items()
    }


def pg_tle_script() -> str:
    """Return SQL that registers the extension with pg_tle, where server files are out of reach."""
    body = f"{_SEARCH_PATH}\n{bundle()}\n{_KEEP_IN_DUMPS}"
    return (
        "SELECT pgtle.install_extension(\n"
        f"    'sqlvec', '{VERSION}', '{_COMMENT}',\n"
        f"$_pgtle_${body}$_pgtle_$,\n"
        "    ARRAY['vector']\n"
        ");\n"
    )


def installed_version(connection: Connection) -> str | None:
    """Return the release installed in the connection's database, or None."""
    exists = "SELECT pg_catalog.to_regprocedure('sqlvec.version()') IS NOT NULL"
    if not connection.scalar(text(exists)):
        return None
    found: str = connection.scalar(text("SELECT sqlvec.version()"))
    return found


def install(
    connection: Connection, *, version: str | None = None, create_extension: bool = False
) -> None:
    """Create schema ``sqlvec``. Where the same release is installed already, mend and keep it.

    Joins the transaction that the connection is in; otherwise runs and commits its own.

    E.g.::

        with engine.connect() as connection:
            catalog.install(connection)

    :param version: a release; None is the one of this package.
    :param create_extension: run ``CREATE EXTENSION vector`` first where pgvector is missing.
    :raises MissingRequirement: pgvector, its version, or the right to create a schema is missing;
        or schema ``sqlvec`` is of another role.
    :raises VersionMismatch: another release is installed.
    :raises InstalledAsExtension: the extension ``sqlvec`` holds another release.
    """
    wanted = version or VERSION
    body = bundle(wanted)
    with _transaction(connection), _named_errors():
        _lock(connection)
        # Before anything in the schema is called.
        _execute_script(connection, _read("owner.sql"))
        found = installed_version(connection)
        if _is_extension(connection):
            if found == wanted:
                return
            raise InstalledAsExtension(
                f"sqlvec {found} is installed as an extension;"
                f" run ALTER EXTENSION sqlvec UPDATE TO '{wanted}'"
            )
        if found is not None and _order(found) < _order(wanted):
            raise VersionMismatch(f"sqlvec {found} is installed; upgrade it to {wanted}")
        if create_extension:
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS vector")
        _run(connection, body)


def upgrade(connection: Connection, *, to: str | None = None) -> None:
    """Bring an installed schema ``sqlvec`` to a newer release.

    Joins the transaction that the connection is in; otherwise runs and commits its own.

    :param to: None is the release of this package.
    :raises NotInstalled: there is nothing to upgrade.
    :raises VersionMismatch: a newer release is installed, or no upgrade leads from it.
    :raises InstalledAsExtension: ``ALTER EXTENSION sqlvec UPDATE`` does it there.
    """
    target = to or VERSION
    with _transaction(connection), _named_errors():
        _lock(connection)
        _execute_script(connection, _read("owner.sql"))
        found = _require_installed(connection)
        if found == target:
            return
        if _is_extension(connection):
            raise InstalledAsExtension(
                f"sqlvec {found} is installed as an extension;"
                f" run ALTER EXTENSION sqlvec UPDATE TO '{target}'"
            )
        if _order(found) > _order(target):
            raise VersionMismatch(f"sqlvec {found} is installed, which is newer than {target}")
        _run(connection, upgrade_bundle(found, target))


def uninstall(connection: Connection, *, drop_derived: bool = False) -> None:
    """Drop schema ``sqlvec``.

    Joins the transaction that the connection is in; otherwise runs and commits its own.

    :param drop_derived: drop the derived columns too, and whatever else depends on the schema.
    :raises NotInstalled: there is nothing to remove.
    :raises InUse: something outside the schema depends on it; the message names it.
    :raises InstalledAsExtension: ``DROP EXTENSION sqlvec`` does it there.
    """
    with _transaction(connection), _named_errors():
        _lock(connection)
        _require_installed(connection)
        if _is_extension(connection):
            raise InstalledAsExtension(
                "sqlvec is installed as an extension; run DROP EXTENSION sqlvec"
            )
        if drop_derived:
            for table, column in _derived_columns(connection):
                connection.execute(
                    text("CALL sqlvec.drop_derived(CAST(:table AS regclass), :column)"),
                    {"table": table, "column": column},
                )
        elif dependents := _dependents(connection):
            raise InUse("schema sqlvec is still used by " + ", ".join(dependents))
        connection.exec_driver_sql("DROP SCHEMA sqlvec CASCADE")


def check(connection: Connection) -> list[Finding]:
    """Return what is out of order in an installation, as ``CALL sqlvec.check()`` says it.

    :raises NotInstalled: there is nothing to check.
    """
    found = _require_installed(connection)
    findings = [
        Finding(row.severity, row.problem, row.remedy)
        for row in connection.execute(text("SELECT * FROM sqlvec._findings()"))
    ]
    if found != VERSION:
        problem = f"the database holds sqlvec {found}, this package is {VERSION}"
        findings.insert(0, Finding("warning", problem))
    return findings


def load_encoder(connection: Connection, name: str) -> tuple[Encoder, Parts]:
    """Return an encoder of the catalog and its parameters, for encoding with numpy.

    E.g.::

        encoder, parts = catalog.load_encoder(connection, "rotated")
        codes = encoder.encode(vectors, parts)

    :raises DeclarationError: the catalog has no encoder of that name.
    """
    kind, options = _encoder(connection, name)
    if kind in (FDE.kind, Pool.kind, Centroid.kind):
        raise DeclarationError(f"encoder {name!r} encodes multi-vectors; load_{kind} reads it")
    return from_options(kind, options), _parts(connection, name)


def load_fde(connection: Connection, name: str) -> tuple[FDE, Parts]:
    """Return an encoder of multi-vectors and its matrices, for encoding with numpy.

    E.g.::

        fde, parts = catalog.load_fde(connection, "public.doc.tokens_fde")
        codes = fde.documents(batch, parts)

    :raises DeclarationError: the catalog has no encoder of that name and kind.

    .. versionadded:: 0.1
    """
    kind, options = _encoder(connection, name)
    if kind != FDE.kind:
        raise DeclarationError(f"encoder {name!r} is of kind {kind!r}, not {FDE.kind!r}")
    return FDE(**options), _parts(connection, name)


def load_pool(connection: Connection, name: str) -> Pool:
    """Return a pooling encoder of the catalog, for pooling with numpy.

    E.g.::

        pool = catalog.load_pool(connection, "public.doc.tokens_pool")
        pooled = pool.documents(batch)

    :raises DeclarationError: the catalog has no encoder of that name and kind.

    .. versionadded:: 0.1
    """
    kind, options = _encoder(connection, name)
    if kind != Pool.kind:
        raise DeclarationError(f"encoder {name!r} is of kind {kind!r}, not {Pool.kind!r}")
    return Pool(**options)


def load_centroid(connection: Connection, name: str) -> tuple[Centroid, Parts]:
    """Return an encoder of kind ``centroid`` and its centroids, for encoding with numpy.

    E.g.::

        centroid, parts = catalog.load_centroid(connection, "tokens")
        codes = centroid.documents(batch, parts)

    :raises DeclarationError: the catalog has no encoder of that name and kind.

    .. versionadded:: 0.1
    """
    kind, options = _encoder(connection, name)
    if kind != Centroid.kind:
        raise DeclarationError(f"encoder {name!r} is of kind {kind!r}, not {Centroid.kind!r}")
    return Centroid(**options), _parts(connection, name)


def _encoder(connection: Connection, name: str) -> tuple[str, dict[str, Any]]:
    statement = "SELECT kind, options FROM sqlvec.encoder WHERE name = :name"
    row = connection.execute(text(statement), {"name": name}).one_or_none()
    if row is None:
        raise DeclarationError(f"there is no encoder {name!r} in the catalog")
    return row.kind, row.options


def _parts(connection: Connection, name: str) -> Parts:
    statement = """
        SELECT part, value::real[] AS value
        FROM sqlvec.encoder_vector
        WHERE encoder = :name
        ORDER BY part, position
    """
    rows: dict[str, list[list[float]]] = {}
    for part, value in connection.execute(text(statement), {"name": name}):
        rows.setdefault(part, []).append(value)
    parts = {part: np.array(matrix, dtype=np.float32) for part, matrix in rows.items()}
    # These hold one vector; the others are matrices, whatever the number of their rows.
    parts |= {part: parts[part][0] for part in ("mean", "scale") if part in parts}
    return parts


@contextmanager
def _transaction(connection: Connection) -> Iterator[None]:
    """Join the connection's transaction, or begin and commit one."""
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        connection.exec_driver_sql("BEGIN")
        try:
            yield
        except BaseException:
            connection.exec_driver_sql("ROLLBACK")
            raise
        connection.exec_driver_sql("COMMIT")
    elif connection.in_transaction():
        yield
    else:
        with connection.begin():
            yield


_NAMED: dict[str, type[SqlvecError]] = {
    "42501": MissingRequirement,  # insufficient_privilege
    "42704": MissingRequirement,  # undefined_object: no pgvector in the database
    "0A000": MissingRequirement,  # feature_not_supported: pgvector too old, or not on the server
    "58P01": MissingRequirement,  # undefined_file: the same before PostgreSQL 16
    "55000": VersionMismatch,  # object_not_in_prerequisite_state: a newer release
}
"""What the preconditions in ``install.sql`` and ``version.sql`` raise, by SQLSTATE."""


@contextmanager
def _named_errors() -> Iterator[None]:
    """Turn the server's refusals into this package's exceptions."""
    try:
        yield
    except Exception as error:
        refusal = (error.orig or error) if isinstance(error, DBAPIError) else error
        named = _NAMED.get(getattr(refusal, "sqlstate", None) or "")
        if named is None:
            raise
        raise named(_primary_message(refusal)) from error


def _primary_message(refusal: BaseException) -> str:
    """Return the server's message and hint, which psycopg and asyncpg keep in different places."""
    # Told apart without importing psycopg: an application on asyncpg may lack its C library.
    if diagnostics := getattr(refusal, "diag", None):
        parts = [diagnostics.message_primary, diagnostics.message_hint]
    else:
        native = refusal.__cause__ or refusal
        parts = [str(native.args[0]), getattr(native, "hint", None)]
    return "\n".join(part for part in parts if part)


def _run(connection: Connection, body: str) -> None:
    """Run a bundle with pgvector's schema on the search path, and put the path back."""
    previous = connection.scalar(text("SELECT pg_catalog.current_setting('search_path')"))
    _execute_script(connection, _SEARCH_PATH + body)
    connection.execute(
        text("SELECT pg_catalog.set_config('search_path', :previous, true)"), {"previous": previous}
    )


def _execute_script(connection: Connection, statements: str) -> None:
    if connection.dialect.driver == "asyncpg":
        # SQLAlchemy prepares every statement of asyncpg, and only one can be prepared at a time.
        adapted: Any = connection.connection.dbapi_connection
        adapted.run_async(lambda driver: driver.execute(statements))
    else:
        # Without parameters the driver leaves % alone and sends all statements in one message.
        connection.exec_driver_sql(statements, execution_options={"no_parameters": True})


def _lock(connection: Connection) -> None:
    """Wait for another installer. The bundle takes the same lock, for those without Python."""
    connection.execute(
        text("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtext('sqlvec.install'))")
    )


def _require_installed(connection: Connection) -> str:
    found = installed_version(connection)
    if found is None:
        database = connection.scalar(text("SELECT pg_catalog.current_database()"))
        raise NotInstalled(f"sqlvec is not installed in database {database!r}; run sqlvec install")
    return found


def _is_extension(connection: Connection) -> bool:
    statement = "SELECT EXISTS (SELECT FROM pg_catalog.pg_extension WHERE extname = 'sqlvec')"
    return bool(connection.scalar(text(statement)))


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _derived_columns(connection: Connection) -> list[tuple[str, str]]:
    """Return table, as SQL, and name of every derived column."""
    statement = """
        SELECT relation::text, target_column::text
        FROM sqlvec.derived_column
        WHERE relation IS NOT NULL
        ORDER BY 1, 2
    """
    return [(row[0], row[1]) for row in connection.execute(text(statement))]


def _dependents(connection: Connection) -> list[str]:
    """Describe what the user would lose with the schema."""
    # Triggers go unmentioned: they belong to the derived columns.
    statement = """
        SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid)
        FROM pg_catalog.pg_depend AS d
        CROSS JOIN LATERAL
            pg_catalog.pg_identify_object(d.classid, d.objid, d.objsubid) AS dependent
        CROSS JOIN LATERAL
            pg_catalog.pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) AS used
        WHERE d.deptype IN ('n', 'a')
          AND used.schema = 'sqlvec'
          AND dependent.schema IS DISTINCT FROM 'sqlvec'
          AND dependent.type <> 'trigger'
          AND dependent.identity !~ '(^for | on )sqlvec[.]'
        ORDER BY 1
    """
    columns = [f"column {table}.{column}" for table, column in _derived_columns(connection)]
    models = text("SELECT name FROM sqlvec.relevance_model ORDER BY name")
    columns += [f"relevance model {name}" for name in connection.scalars(models)]
    return columns + list(connection.scalars(text(statement)))
