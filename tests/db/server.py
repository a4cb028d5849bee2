"""The PostgreSQL server that the database tests run on."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.engine import URL

from sqlvec.embedded import Server

# Any server of the suite can be the publisher in a test of logical replication.
SETTINGS = {"wal_level": "logical"}


def server_options(version: int = 18, postgres: Path | None = None) -> dict[str, Any]:
    """Return the arguments of :class:`Server` for the PostgreSQL of this run.

    :param postgres: folder of an installation, which decides the version.
    """
    if postgres is None:
        return {"version": version, "settings": SETTINGS}
    answer = subprocess.check_output([postgres / "bin" / "pg_config", "--version"], text=True)
    found = re.search(r"\d+", answer)
    assert found is not None, answer
    return {"version": int(found[0]), "settings": SETTINGS, "postgres": postgres}


class DatabaseServer:
    """A server found or started for this run, and the databases made on it.

    :param version: major version to start when the environment names no server.
    :param postgres: folder of the installation to start in place of a container or a package's.
    """

    def __init__(self, version: int, postgres: Path | None = None) -> None:
        self._cleanup = ExitStack()
        self.admin_dsn = os.environ.get("SQLVEC_TEST_DSN") or self._start(version, postgres)
        with psycopg.connect(self.admin_dsn) as connection:
            (version_text,) = connection.execute("SELECT version()").fetchone() or ("",)
            (vector_text,) = connection.execute(
                "SELECT default_version FROM pg_available_extensions WHERE name = 'vector'"
            ).fetchone() or ("",)
        self.description = f"{version_text.split(' on ')[0]} with pgvector {vector_text}"

    def dsn(self, database: str) -> str:
        """Return the libpq URI of a database."""
        url = sqlalchemy_url(self.admin_dsn).set(drivername="postgresql", database=database)
        return url.render_as_string(hide_password=False)

    def create_database(self, template: str | None = None) -> str:
        """Create a database with a name of its own and return the name."""
        name = f"sqlvec_{uuid4().hex[:12]}"
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            # Otherwise every page goes through the log, which takes several times longer.
            statement += sql.SQL(" TEMPLATE {} STRATEGY FILE_COPY").format(sql.Identifier(template))
        self._administer(statement)
        return name

    def drop_database(self, name: str) -> None:
        self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def close(self) -> None:
        self._cleanup.close()

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.admin_dsn, autocommit=True) as connection:
            connection.execute(statement)

    def _start(self, version: int, postgres: Path | None) -> str:
        container = None if postgres else self._start_container(version)
        return container or self._start_embedded(version, postgres)

    def _start_embedded(self, version: int, postgres: Path | None) -> str:
        server = Server(**server_options(version, postgres))
        return self._cleanup.enter_context(server).dsn()

    def _start_container(self, version: int) -> str | None:
        """Start a container where testcontainers is installed and a Docker engine answers."""
        try:
            from docker.errors import DockerException
            from testcontainers.core.docker_client import DockerClient
            from testcontainers.postgres import PostgresContainer
        except ImportError:
            return None
        try:
            DockerClient().client.ping()
        except DockerException:
            return None
        container = PostgresContainer(f"pgvector/pgvector:pg{version}", driver=None)
        container.with_command("postgres -c wal_level=logical")
        url: str = self._cleanup.enter_context(container).get_connection_url()
        return url


def sqlalchemy_url(dsn: str, driver: str = "psycopg") -> URL:
    """Turn a libpq connection string into the URL of a SQLAlchemy engine."""
    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    return URL.create(
        f"postgresql+{driver}",
        username=parts.pop("user", None),
        password=parts.pop("password", None),
        database=parts.pop("dbname", None),
        # A socket folder is no host name of a URL, but every driver takes it from the query.
        query=parts,
    )
