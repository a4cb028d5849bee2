"""Installing, checking and removing schema ``sqlvec``, in every way there is."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from sqlvec import catalog
from sqlvec.embedded import Server, copy_installation
from sqlvec.errors import (
    InstalledAsExtension,
    InUse,
    MissingRequirement,
    NotInstalled,
    VersionMismatch,
)
from tests.db.server import DatabaseServer, server_options, sqlalchemy_url
from tests.db.snapshot import differences, snapshot

CreateDatabase = Callable[..., str]

SEARCH = """
    SELECT (hit).id FROM sqlvec.vector_search(NULL::doc, 'embedding', '[1,2,3]', k => 2)
"""


def make_engine(dsn: str) -> Engine:
    return create_engine(sqlalchemy_url(dsn), poolclass=NullPool)


def use(connection: Connection, vector: str = "vector") -> None:
    """Declare a derived column, write to it, and search it."""
    connection.exec_driver_sql(f"CREATE TABLE doc (id int PRIMARY KEY, embedding {vector}(3))")
    connection.exec_driver_sql("CALL sqlvec.add_quantized('doc', 'embedding', 'binary')")
    connection.exec_driver_sql(
        "INSERT INTO doc VALUES (1, '[1,2,3]'), (2, '[1,2,2]'), (3, '[-1,-2,-3]')"
    )
    assert connection.scalar(text("SELECT embedding_binary::text FROM doc WHERE id = 3")) == "000"
    assert list(connection.scalars(text(SEARCH))) == [1, 2]


@pytest.fixture
def bare(tmp_database: CreateDatabase, bare_template: str) -> str:
    """Return the URI of a database with pgvector and without sqlvec."""
    return tmp_database(bare_template)


@pytest.fixture
def installed(tmp_database: CreateDatabase) -> Iterator[Connection]:
    """Connect to a database that has sqlvec."""
    with make_engine(tmp_database()).connect() as connection:
        yield connection


@pytest.fixture
def role(server: DatabaseServer) -> Iterator[str]:
    """Make a role without any right. Name it before the fixtures whose databases it works in."""
    name = f"sqlvec_{uuid4().hex[:12]}"
    engine = create_engine(
        sqlalchemy_url(server.admin_dsn), poolclass=NullPool, isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name} LOGIN")
        yield name
        connection.exec_driver_sql(f"DROP ROLE {name}")


class TestInstall:
    def test_reports_its_version(self, bare: str) -> None:
        with make_engine(bare).connect() as connection:
            assert catalog.installed_version(connection) is None
            connection.rollback()
            catalog.install(connection)
        with make_engine(bare).connect() as connection:
            assert catalog.installed_version(connection) == catalog.VERSION
            use(connection)

    def test_twice_is_harmless(self, installed: Connection) -> None:
        use(installed)
        before = snapshot(installed)
        catalog.install(installed)
        assert differences(before, snapshot(installed)) == []
        assert list(installed.scalars(text(SEARCH))) == [1, 2]

    def test_mends_what_was_lost(self, installed: Connection) -> None:
        before = snapshot(installed)
        installed.exec_driver_sql("DROP PROCEDURE sqlvec.check()")
        catalog.install(installed)
        assert differences(before, snapshot(installed)) == []

    @pytest.mark.parametrize("planted", ["schema", "function"])
    def test_over_what_another_role_has_made(
        self, role: str, tmp_database: CreateDatabase, planted: str
    ) -> None:
        """Functions that were there before would stay that role's, who could replace them."""
        engine = make_engine(tmp_database(None)).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE EXTENSION vector")
            connection.exec_driver_sql("CREATE TABLE trace (called_by name)")
            connection.exec_driver_sql(f"GRANT INSERT ON trace TO {role}")
            if planted == "schema":
                connection.exec_driver_sql(f"CREATE SCHEMA sqlvec AUTHORIZATION {role}")
            else:
                connection.exec_driver_sql("CREATE SCHEMA sqlvec")
                connection.exec_driver_sql(f"GRANT CREATE, USAGE ON SCHEMA sqlvec TO {role}")
            connection.exec_driver_sql(f"SET ROLE {role}")
            connection.exec_driver_sql(
                "CREATE FUNCTION sqlvec.version() RETURNS text LANGUAGE sql AS"
                " $$ INSERT INTO public.trace VALUES (current_user); SELECT '0.0.1' $$"
            )
            connection.exec_driver_sql("RESET ROLE")
            for command in (catalog.install, catalog.upgrade):
                with pytest.raises(MissingRequirement, match=f'of role "{role}"'):
                    command(connection)
            with pytest.raises(ProgrammingError, match=f'of role "{role}"'):
                connection.exec_driver_sql(
                    catalog.bundle(), execution_options={"no_parameters": True}
                )
            assert connection.exec_driver_sql("TABLE trace").all() == []
            connection.exec_driver_sql("DROP SCHEMA sqlvec CASCADE")
            catalog.install(connection)
            assert catalog.installed_version(connection) == catalog.VERSION
            connection.exec_driver_sql(f"DROP OWNED BY {role}")

    def test_two_installers_at_once(self, bare: str) -> None:
        def run(_: int) -> None:
            with make_engine(bare).connect() as connection:
                catalog.install(connection)

        with ThreadPoolExecutor() as pool:
            list(pool.map(run, range(3)))
        with make_engine(bare).connect() as connection:
            use(connection)

    def test_joins_the_callers_transaction(self, bare: str) -> None:
        with make_engine(bare).connect() as connection:
            with connection.begin() as transaction:
                catalog.install(connection)
                assert catalog.installed_version(connection) == catalog.VERSION
                transaction.rollback()
            assert catalog.installed_version(connection) is None

    def test_on_an_autocommit_connection_is_one_transaction(self, bare: str) -> None:
        engine = make_engine(bare).execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            version = catalog.VERSION
            connection.exec_driver_sql("UPDATE pg_extension SET extversion = '0.7.4'")
            with pytest.raises(MissingRequirement):
                catalog.install(connection)
            connection.exec_driver_sql("UPDATE pg_extension SET extversion = '0.8.0'")
            catalog.install(connection)
            assert catalog.installed_version(connection) == version

    def test_puts_the_search_path_back(self, bare: str) -> None:
        with make_engine(bare).begin() as connection:
            connection.exec_driver_sql('SET search_path = "$user", public, pg_catalog')
            catalog.install(connection)
            path = connection.scalar(text("SHOW search_path"))
        assert path == '"$user", public, pg_catalog'

    @pytest.mark.parametrize("schema", ["extensions", 'Odd "name"; --'])
    def test_pgvector_in_another_schema(self, tmp_database: CreateDatabase, schema: str) -> None:
        quoted = '"' + schema.replace('"', '""') + '"'
        with make_engine(tmp_database(None)).connect() as connection:
            connection.exec_driver_sql(f"CREATE SCHEMA {quoted}")
            connection.exec_driver_sql(f"CREATE EXTENSION vector SCHEMA {quoted}")
            catalog.install(connection)
            use(connection, f"{quoted}.vector")

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    async def test_from_an_async_engine(self, bare: str, driver: str) -> None:
        engine = create_async_engine(sqlalchemy_url(bare, driver), poolclass=NullPool)
        async with engine.begin() as connection:
            await connection.exec_driver_sql("UPDATE pg_extension SET extversion = '0.7.4'")
            with pytest.raises(MissingRequirement, match=r"(?s)0\.8\.0 or newer.*ALTER EXTENSION"):
                await connection.run_sync(catalog.install)
        async with engine.begin() as connection:
            await connection.run_sync(catalog.install)
            assert await connection.run_sync(catalog.installed_version) == catalog.VERSION

    def test_by_a_role_that_owns_only_the_database(self, role: str, bare: str) -> None:
        with make_engine(bare).connect() as connection:
            connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
            database = connection.engine.url.database
            connection.exec_driver_sql(f'GRANT CREATE ON DATABASE "{database}" TO {role}')
            connection.exec_driver_sql(f"CREATE SCHEMA app AUTHORIZATION {role}")
            connection.exec_driver_sql(f"SET SESSION AUTHORIZATION {role}")
            connection.exec_driver_sql("SET search_path = app, public")
            catalog.install(connection)
            use(connection)

    def test_makes_pgvector_when_asked(self, tmp_database: CreateDatabase) -> None:
        with make_engine(tmp_database(None)).connect() as connection:
            catalog.install(connection, create_extension=True)
            use(connection)


class TestInstallRefuses:
    def test_without_pgvector(self, tmp_database: CreateDatabase) -> None:
        with make_engine(tmp_database(None)).connect() as connection:
            with pytest.raises(MissingRequirement, match="CREATE EXTENSION vector"):
                catalog.install(connection)
            assert not connection.scalar(text("SELECT to_regnamespace('sqlvec') IS NOT NULL"))

    def test_with_an_old_pgvector(self, bare: str) -> None:
        with make_engine(bare).begin() as connection:
            connection.exec_driver_sql("UPDATE pg_extension SET extversion = '0.7.4'")
            with pytest.raises(
                MissingRequirement, match="needs pgvector 0.8.0 or newer.*has 0.7.4"
            ):
                catalog.install(connection)

    def test_without_the_right_to_create_a_schema(self, role: str, bare: str) -> None:
        with make_engine(bare).begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL SESSION AUTHORIZATION {role}")
            with pytest.raises(
                MissingRequirement, match=f'"{role}" may not create schema "sqlvec"'
            ):
                catalog.install(connection)

    def test_to_make_pgvector_without_the_right(
        self, role: str, tmp_database: CreateDatabase
    ) -> None:
        with make_engine(tmp_database(None)).begin() as connection:
            connection.exec_driver_sql(f"SET LOCAL SESSION AUTHORIZATION {role}")
            with pytest.raises(MissingRequirement, match="permission denied to create extension"):
                catalog.install(connection, create_extension=True)

    def test_a_newer_release(self, installed: Connection) -> None:
        pretend_version(installed, "99.0.0")
        with pytest.raises(
            VersionMismatch, match="sqlvec 99.0.0 is installed here, which is newer"
        ):
            catalog.install(installed)

    def test_an_older_release(self, installed: Connection) -> None:
        pretend_version(installed, "0.0.1")
        with pytest.raises(VersionMismatch, match="sqlvec 0.0.1 is installed; upgrade it"):
            catalog.install(installed)


class TestUninstall:
    def test_leaves_nothing(self, installed: Connection) -> None:
        catalog.uninstall(installed)
        assert catalog.installed_version(installed) is None
        assert snapshot(installed) == {}
        with pytest.raises(NotInstalled, match="sqlvec is not installed in database"):
            catalog.uninstall(installed)

    def test_refuses_while_something_depends_on_it(self, installed: Connection) -> None:
        use(installed)
        installed.exec_driver_sql("CREATE VIEW mine AS SELECT sqlvec.version()")
        with pytest.raises(InUse, match=r"column doc\.embedding_binary, .*view mine"):
            catalog.uninstall(installed)
        assert catalog.installed_version(installed) == catalog.VERSION

    def test_with_everything_that_depends_on_it(self, installed: Connection) -> None:
        use(installed)
        installed.exec_driver_sql("CREATE VIEW mine AS SELECT sqlvec.version()")
        catalog.uninstall(installed, drop_derived=True)
        columns = (
            "SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = 'doc'::regclass"
        )
        alive = " AND attnum > 0 AND NOT attisdropped"
        assert installed.scalar(text(columns + alive)) == ["id", "embedding"]
        assert installed.scalar(text("SELECT to_regclass('mine')")) is None
        installed.exec_driver_sql("INSERT INTO doc VALUES (4, '[1,1,1]')")


def findings(connection: Connection) -> list[catalog.Finding]:
    """Check, and leave out what depends on the server alone."""
    return [finding for finding in catalog.check(connection) if finding.severity != "note"]


class TestCheck:
    def test_of_a_sound_installation(self, installed: Connection) -> None:
        use(installed)
        assert findings(installed) == []

    def test_of_another_release(self, installed: Connection) -> None:
        pretend_version(installed, "0.0.1")
        (finding,) = findings(installed)
        assert finding.severity == "warning"
        assert finding.problem.startswith("the database holds sqlvec 0.0.1, this package is")

    def test_of_a_disabled_trigger(self, installed: Connection) -> None:
        use(installed)
        installed.exec_driver_sql("ALTER TABLE doc DISABLE TRIGGER USER")
        (finding,) = findings(installed)
        assert 'column "embedding_binary" of table public.doc' in finding.problem
        assert finding.remedy

    def test_in_sql_is_in_order_only_without_warnings(self, installed: Connection) -> None:
        use(installed)
        said: list[tuple[str | None, str | None]] = []
        driver = installed.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        driver.add_notice_handler(lambda d: said.append((d.severity, d.message_primary)))
        installed.exec_driver_sql("CALL sqlvec.check()")
        assert said[-1] == ("NOTICE", f"sqlvec {catalog.VERSION} is in order")
        installed.exec_driver_sql("ALTER TABLE doc DISABLE TRIGGER USER")
        said.clear()
        installed.exec_driver_sql("CALL sqlvec.check()")
        assert "WARNING" in [severity for severity, _ in said]
        assert "in order" not in str(said)

    def test_of_nothing(self, bare: str) -> None:
        with make_engine(bare).connect() as connection, pytest.raises(NotInstalled):
            catalog.check(connection)


class TestScript:
    """The script runs in the real psql, from a file and pasted."""

    @pytest.fixture
    def psql(self, postgres: Path) -> Callable[..., tuple[int, str]]:
        program = postgres / "bin" / "psql"

        def run(dsn: str, script: str, *options: str) -> tuple[int, str]:
            result = subprocess.run(
                [program, "-X", "-q", *options, dsn], input=script, capture_output=True, text=True
            )
            return result.returncode, result.stdout + result.stderr

        return run

    def test_installs(self, bare: str, psql: Callable[..., tuple[int, str]]) -> None:
        for _ in range(2):
            assert psql(bare, catalog.script()) == (0, "")
        with make_engine(bare).connect() as connection:
            use(connection)

    def test_equals_an_installation_from_python(
        self, bare: str, installed: Connection, psql: Callable[..., tuple[int, str]]
    ) -> None:
        psql(bare, catalog.script())
        with make_engine(bare).connect() as connection:
            assert differences(snapshot(connection), snapshot(installed)) == []

    def test_without_pgvector(
        self, tmp_database: CreateDatabase, psql: Callable[..., tuple[int, str]]
    ) -> None:
        dsn = tmp_database(None)
        status, output = psql(dsn, catalog.script(), "-v", "ON_ERROR_STOP=1")
        assert status == 3
        assert "Run CREATE EXTENSION vector;" in output
        with make_engine(dsn).connect() as connection:
            assert catalog.installed_version(connection) is None

    @pytest.mark.parametrize("page", ["README.md", "docs/install.md"])
    def test_as_the_pages_run_it_it_stops_at_the_first_error(
        self, tmp_database: CreateDatabase, psql: Callable[..., tuple[int, str]], page: str
    ) -> None:
        shown = re.search(
            r"\bpsql (.*)-f sqlvec\.sql", (Path(__file__).parents[2] / page).read_text("utf-8")
        )
        assert shown is not None
        status, output = psql(tmp_database(None), catalog.script(), *shown[1].split())
        assert status == 3
        assert output.count("ERROR:") == 1

    def test_for_pg_tle(self, bare: str, psql: Callable[..., tuple[int, str]]) -> None:
        with make_engine(bare).begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA pgtle")
            connection.exec_driver_sql("""
                CREATE TABLE pgtle.given
                    (name text, version text, description text, body text, requires text[])
            """)
            # The signature of the function that pg_tle brings.
            connection.exec_driver_sql("""
                CREATE FUNCTION pgtle.install_extension
                    (name text, version text, description text, ext text, requires text[] = NULL)
                RETURNS boolean LANGUAGE sql
                BEGIN ATOMIC
                    INSERT INTO pgtle.given VALUES (name, version, description, ext, requires)
                    RETURNING true;
                END
            """)
        status, output = psql(bare, catalog.pg_tle_script(), "-At", "-v", "ON_ERROR_STOP=1")
        assert (status, output) == (0, "t\n")
        with make_engine(bare).connect() as connection:
            given = connection.execute(text("SELECT * FROM pgtle.given")).one()
        assert (given.name, given.version) == ("sqlvec", catalog.VERSION)
        assert given.requires == ["vector"]
        assert catalog.bundle() in given.body


@pytest.fixture(scope="module")
def extension_server(postgres: Path) -> Iterator[Server]:
    """Start a server whose share/extension has the files of sqlvec."""
    folder = Path(tempfile.mkdtemp(prefix="sqlvec-test-"))
    folder.chmod(0o755)  # The server may run under another account.
    copied = copy_installation(postgres, folder / "postgres")
    share = subprocess.check_output([copied / "bin" / "pg_config", "--sharedir"], text=True)
    for name, content in catalog.extension_files().items():
        (Path(share.strip()) / "extension" / name).write_text(content, encoding="utf-8")
    with Server(**server_options(postgres=copied)) as server:
        yield server
    shutil.rmtree(folder)


@pytest.fixture
def extended(extension_server: Server) -> Iterator[Connection]:
    """Connect to a database where a role that is not superuser made the extension."""
    name = f"sqlvec_{uuid4().hex[:12]}"
    with make_engine(extension_server.create_database(name)).connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {name}")
        connection.exec_driver_sql(f"ALTER DATABASE {name} OWNER TO {name}")
        connection.exec_driver_sql("CREATE EXTENSION vector")
        connection.exec_driver_sql(f"SET ROLE {name}")
        connection.exec_driver_sql("CREATE EXTENSION sqlvec")
        connection.commit()
        yield connection


class TestExtension:
    def test_works(self, extended: Connection) -> None:
        assert catalog.installed_version(extended) == catalog.VERSION
        use(extended)

    def test_equals_an_installation_from_python(
        self, extended: Connection, extension_server: Server
    ) -> None:
        plain = extension_server.create_database(f"sqlvec_{uuid4().hex[:12]}")
        with make_engine(plain).connect() as connection:
            catalog.install(connection, create_extension=True)
            owned = {
                name: re.sub(r"\bpostgres\b", str(extended.engine.url.database), definition)
                for name, definition in snapshot(connection).items()
            }
        assert differences(owned, snapshot(extended)) == []

    def test_dump_keeps_the_catalog(self, extended: Connection, extension_server: Server) -> None:
        use(extended)
        extended.exec_driver_sql(
            """CALL sqlvec.create_encoder('rotated', 'binary', 3, '{"rotate": true}')"""
        )
        extended.commit()
        tables = ["encoder", "encoder_vector", "relation", "derived", "backfill_state"]
        rows = "SELECT t::text FROM sqlvec.{} AS t ORDER BY 1"
        kept = ("encoder", "encoder_vector")
        before = {t: list(extended.scalars(text(rows.format(t)))) for t in kept}
        assert all(before.values())

        copy = extension_server.create_database(f"sqlvec_{uuid4().hex[:12]}")
        source = extension_server.dsn(str(extended.engine.url.database))
        dump = subprocess.check_output([extension_server.bin / "pg_dump", source])
        psql = [str(extension_server.bin / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", copy]
        subprocess.run(psql, input=dump, check=True, capture_output=True)

        with make_engine(copy).connect() as connection:
            assert {t: list(connection.scalars(text(rows.format(t)))) for t in kept} == before
            for table in tables:
                count = text(f"SELECT count(*) FROM sqlvec.{table}")
                assert connection.scalar(count) == extended.scalar(count)
            assert list(connection.scalars(text(SEARCH))) == [1, 2]
            connection.exec_driver_sql("INSERT INTO doc VALUES (4, '[1,-1,1]')")
            code = text("SELECT embedding_binary::text FROM doc WHERE id = 4")
            assert connection.scalar(code) == "101"
            # The identity sequences went along: new rows get new numbers.
            connection.exec_driver_sql("CREATE TABLE other (id int, embedding vector(3))")
            connection.exec_driver_sql("CALL sqlvec.add_quantized('other', 'embedding', 'binary')")

    def test_is_left_to_its_own_commands(self, extended: Connection) -> None:
        catalog.install(extended)  # The same release is there: nothing to do.
        catalog.upgrade(extended)
        with pytest.raises(InstalledAsExtension, match="DROP EXTENSION sqlvec"):
            catalog.uninstall(extended)
        extended.exec_driver_sql("RESET ROLE")
        pretend_version(extended, "0.0.1")
        with pytest.raises(InstalledAsExtension, match="ALTER EXTENSION sqlvec UPDATE TO"):
            catalog.install(extended)
        with pytest.raises(InstalledAsExtension, match="ALTER EXTENSION sqlvec UPDATE TO"):
            catalog.upgrade(extended)

    def test_drop_leaves_nothing(self, extended: Connection) -> None:
        extended.exec_driver_sql("DROP EXTENSION sqlvec")
        assert snapshot(extended) == {}


def pretend_version(connection: Connection, version: str) -> None:
    connection.exec_driver_sql(
        "CREATE OR REPLACE FUNCTION sqlvec.version() RETURNS text LANGUAGE sql IMMUTABLE"
        f" RETURN '{version}'"
    )


def test_every_public_object_has_a_comment(conn: Connection) -> None:
    uncommented = """
        SELECT p.oid::regprocedure::text
        FROM pg_proc AS p
        WHERE p.pronamespace = 'sqlvec'::regnamespace AND p.proname !~ '^_'
          AND obj_description(p.oid, 'pg_proc') IS NULL
        UNION ALL
        SELECT c.oid::regclass::text
        FROM pg_class AS c
        WHERE c.relnamespace = 'sqlvec'::regnamespace AND c.relname !~ '^_'
          AND c.relkind IN ('r', 'p', 'v', 'm')
          AND obj_description(c.oid, 'pg_class') IS NULL
        UNION ALL
        SELECT t.oid::regtype::text
        FROM pg_type AS t
        WHERE t.typnamespace = 'sqlvec'::regnamespace AND t.typname !~ '^_'
          AND (t.typtype IN ('d', 'e', 'r') OR (SELECT c.relkind FROM pg_class AS c WHERE c.oid = t.typrelid) = 'c')
          AND obj_description(t.oid, 'pg_type') IS NULL
        UNION ALL
        SELECT 'schema sqlvec' WHERE obj_description('sqlvec'::regnamespace, 'pg_namespace') IS NULL
        ORDER BY 1
    """
    assert list(conn.scalars(text(uncommented))) == []
