"""The database that a benchmark works in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from uuid import uuid4

import psycopg
from pgvector.psycopg import register_vector
from psycopg import sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import NullPool, create_engine

from sqlvec import catalog
from sqlvec.embedded import Server

Connection = psycopg.Connection[tuple[object, ...]]

SETTINGS: dict[str, str | int] = {
    "shared_buffers": "2GB",
    "maintenance_work_mem": "1GB",
    # One core per build and per query: ratios then depend less on what else the machine does.
    "max_parallel_maintenance_workers": 0,
    "max_parallel_workers_per_gather": 0,
    # Writes as durable as in production, with no checkpoint or vacuum in the middle of one side.
    "fsync": "on",
    "full_page_writes": "on",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}
"""Settings of the private server."""


class Database:
    """An empty database with sqlvec installed.

    :param dsn: libpq connection string of the database.
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._connections = ExitStack()

    def connect(self, **settings: str | int) -> Connection:
        """Open one more session, with settings such as ``hnsw__ef_search=100``."""
        connection = psycopg.connect(self.dsn, autocommit=True)
        self._connections.callback(connection.close)
        register_vector(connection)
        # The library of pgvector must be loaded before its settings are known.
        connection.execute("SELECT '[1]'::vector")
        for name, value in settings.items():
            connection.execute(
                "SELECT set_config(%s, %s, false)", (name.replace("__", "."), str(value))
            )
        return connection

    def environment(self) -> dict[str, object]:
        """Return the versions and settings that the figures depend on."""
        connection = self.connect()
        row = connection.execute(
            "SELECT current_setting('server_version'),"
            " (SELECT extversion FROM pg_extension WHERE extname = 'vector'), sqlvec.version()"
        ).fetchone()
        assert row is not None
        settings = connection.execute(
            "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY (%s)",
            ([*SETTINGS, "jit"],),
        ).fetchall()
        return {
            "postgresql": row[0],
            "pgvector": row[1],
            "sqlvec": row[2],
            "cores": os.cpu_count(),
            "settings": {str(name): value for name, value in settings},
        }

    def close(self) -> None:
        """Close every session."""
        self._connections.close()


@contextmanager
def open_database(dsn: str | None) -> Iterator[Database]:
    """Make a database on a server, or on a private one, and drop it afterwards.

    :param dsn: a libpq connection string for a role that may create databases.
    """
    with ExitStack() as cleanup:
        server_dsn = dsn or cleanup.enter_context(Server(settings=SETTINGS)).dsn()
        name = f"sqlvec_benchmark_{uuid4().hex[:12]}"
        _administer(server_dsn, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        cleanup.callback(
            _administer,
            server_dsn,
            sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)),
        )
        database_dsn = make_conninfo(server_dsn, dbname=name)
        engine = create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(database_dsn),
            poolclass=NullPool,
        )
        with engine.connect() as connection:
            catalog.install(connection, create_extension=True)
        database = Database(database_dsn)
        cleanup.callback(database.close)
        yield database


def _administer(dsn: str, statement: sql.Composed) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)
