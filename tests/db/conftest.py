"""Databases with sqlvec installed, and connections to them.

A test that cannot get a server fails. ``SQLVEC_TEST_DSN`` names one; otherwise a container or an
embedded server is started once per run. Tests that kill servers, copy between two or change their
files start embedded ones of their own in every case: of ``--pg-version``, or from ``--postgres``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sqlvec import catalog
from sqlvec.embedded import Server, installation
from tests.db.server import DatabaseServer, server_options, sqlalchemy_url

# What a session can hold beyond its transaction. The functions of sqlvec stay compiled, as in any
# pool: to compile them for every test takes longer than most tests do.
RESET = "RESET SESSION AUTHORIZATION; RESET ALL; SELECT pg_advisory_unlock_all()"
# A plan for the tables of one test may be a bad one for the next, and names are to be found anew on
# the search path.
FORGET = "DISCARD PLANS"

_SERVER = pytest.StashKey[DatabaseServer]()


def _wanted(config: pytest.Config) -> dict[str, Any]:
    return {
        "version": config.getoption("--pg-version"),
        "postgres": config.getoption("--postgres"),
    }


def _server(config: pytest.Config) -> DatabaseServer:
    if _SERVER not in config.stash:
        config.stash[_SERVER] = DatabaseServer(**_wanted(config))
    return config.stash[_SERVER]


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    if config.option.collectonly:
        return None
    try:
        return f"server: {_server(config).description}"
    except Exception as error:  # Every test that needs the server says the same, and fails.
        return f"server: none ({error})"


def pytest_unconfigure(config: pytest.Config) -> None:
    if _SERVER in config.stash:
        config.stash[_SERVER].close()


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> DatabaseServer:
    """Return the server of this run."""
    return _server(request.config)


@pytest.fixture(scope="session")
def bare_template(server: DatabaseServer) -> Iterator[str]:
    """Name a database with pgvector and without sqlvec."""
    name = server.create_database()
    engine = create_engine(sqlalchemy_url(server.dsn(name)), poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE EXTENSION vector")
    yield name
    server.drop_database(name)


@pytest.fixture(scope="session")
def template(server: DatabaseServer, bare_template: str) -> Iterator[str]:
    """Name a database with sqlvec installed, to be copied."""
    name = server.create_database(bare_template)
    engine = create_engine(sqlalchemy_url(server.dsn(name)), poolclass=NullPool)
    with engine.connect() as connection:
        catalog.install(connection)
    yield name
    server.drop_database(name)


@pytest.fixture(scope="module")
def module_database(server: DatabaseServer, template: str) -> Iterator[str]:
    """Copy the template for the tests of one module, and return its name."""
    name = server.create_database(template)
    yield name
    server.drop_database(name)


@pytest.fixture(scope="module")
def dsn(server: DatabaseServer, module_database: str) -> str:
    """Return the libpq URI of the module's database."""
    return server.dsn(module_database)


@pytest.fixture(scope="module")
def engine(dsn: str) -> Iterator[Engine]:
    """Return an engine on the module's database, whose pool keeps its connections."""
    engine = create_engine(sqlalchemy_url(dsn))

    @event.listens_for(engine, "reset")
    def reset(connection: psycopg.Connection[Any], *_: object) -> None:
        _reset(connection)

    yield engine
    engine.dispose()


@pytest.fixture
def conn(engine: Engine) -> Iterator[Connection]:
    """Open a transaction on the module's database that is rolled back after the test."""
    with engine.connect() as connection:
        with connection.begin() as transaction:
            yield connection
            transaction.rollback()
        connection.exec_driver_sql(FORGET)


@pytest.fixture(scope="module")
def _session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(dsn, prepare_threshold=None) as connection:
        yield connection


@pytest.fixture
def db(_session: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """Begin the same through psycopg, without SQLAlchemy between."""
    yield _session
    _reset(_session)
    _session.execute(FORGET)
    _session.rollback()


def _reset(connection: psycopg.Connection[Any]) -> None:
    connection.rollback()
    connection.execute(RESET)
    connection.commit()


@pytest.fixture
def tmp_database(server: DatabaseServer, template: str) -> Iterator[Callable[..., str]]:
    """Return a function that makes a database and returns its libpq URI.

    It copies the database with sqlvec, or the one named as argument; None makes an empty one.
    """
    with ExitStack() as cleanup:

        def create(template: str | None = template) -> str:
            name = server.create_database(template)
            cleanup.callback(server.drop_database, name)
            return server.dsn(name)

        yield create


@pytest.fixture
def fresh(tmp_database: Callable[..., str]) -> Iterator[psycopg.Connection[Any]]:
    """Open a connection without transactions to a database of its own."""
    with psycopg.connect(tmp_database(), autocommit=True, prepare_threshold=None) as connection:
        yield connection


@pytest.fixture
def autocommit(tmp_database: Callable[..., str]) -> Iterator[Connection]:
    """Open a connection without transactions to a fresh database, for procedures that commit."""
    engine = create_engine(
        sqlalchemy_url(tmp_database()), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        yield connection


@pytest.fixture(params=["psycopg", "asyncpg"])
async def async_engine(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[AsyncEngine]:
    """Return an asynchronous engine on the module's database, once per driver."""
    engine = create_async_engine(sqlalchemy_url(dsn, request.param), poolclass=NullPool)
    yield engine
    await engine.dispose()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Path:
    """Return the folder of the PostgreSQL that further servers of this run are started from."""
    wanted = _wanted(request.config)
    return wanted["postgres"] or installation(wanted["version"])


@pytest.fixture(scope="module")
def start_server(request: pytest.FixtureRequest) -> Iterator[Callable[..., Server]]:
    """Return a function that starts one more embedded server; it takes the options of Server."""
    with ExitStack() as cleanup:

        def start(**options: object) -> Server:
            defaults = server_options(**_wanted(request.config))
            return cleanup.enter_context(Server(**defaults | options))

        yield start


@pytest.fixture(scope="module")
def second_server(start_server: Callable[..., Server]) -> Server:
    """Return an embedded server beside the one of this run, of the same version."""
    return start_server()
