"""BM25 columns in production: rights, tenants, statistics, dumps, replication, crashes."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import NullPool, create_engine

from sqlvec import catalog
from sqlvec.embedded import Server
from tests.db.server import sqlalchemy_url
from tests.db.test_bm25 import analyze, fails, ids, search, value
from tests.db.test_install import extension_server  # noqa: F401

Connection = psycopg.Connection[Any]


@pytest.fixture
def tenants(db: Connection) -> Connection:
    """Make a table whose policy shows each role its own tenant, and two roles."""
    db.execute("CREATE ROLE reader")
    db.execute("CREATE ROLE mallory")
    db.execute("CREATE TABLE doc (id int PRIMARY KEY, tenant varchar(9), body text)")
    db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple', tenant => 'tenant')")
    db.execute(
        "INSERT INTO doc VALUES (1, 'a', 'apple pear'), (2, 'a', 'fig fig apple'),"
        " (3, 'b', 'secret apple'), (4, 'b', 'secret'), (5, NULL, 'nobody')"
    )
    analyze(db)
    db.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
    db.execute("CREATE POLICY own ON doc USING (tenant = current_setting('app.tenant', true))")
    db.execute("GRANT SELECT ON doc TO reader")
    db.execute("SET LOCAL app.tenant = 'a'")
    return db


def words(db: Connection) -> set[str]:
    return {row[0] for row in db.execute("SELECT lexeme FROM sqlvec.bm25_frequency")}


class TestTenants:
    def test_own_words_only(self, tenants: Connection) -> None:
        assert words(tenants) == {"apple", "pear", "fig", "secret"}
        tenants.execute("SET LOCAL ROLE reader")
        assert words(tenants) == {"apple", "pear", "fig"}
        for table in ("bm25_corpus", "bm25_health"):
            assert tenants.execute(f"SELECT tenant, documents FROM sqlvec.{table}").fetchall() == [
                ("a", 2)
            ]
        tenants.execute("SET LOCAL app.tenant = 'b'")
        assert words(tenants) == {"apple", "secret"}
        tenants.execute("SET LOCAL app.tenant = ''")
        assert words(tenants) == set()

    def test_search_and_score(self, tenants: Connection) -> None:
        before = search(tenants, "apple secret", tenant="a")
        tenants.execute("SET LOCAL ROLE reader")
        assert search(tenants, "apple secret", tenant="a") == before
        assert search(tenants, "apple secret", filter='{"tenant": "a"}') == before
        assert [key for key, _ in before] == [1, 2]
        assert search(tenants, "apple secret", tenant="b") == []
        # What another tenant's words weigh cannot be asked for.
        assert value(
            tenants,
            "SELECT sqlvec.bm25_query(NULL::doc, 'body', 'secret', tenant => 'b')::text"
            " = replace(sqlvec.bm25_query(NULL::doc, 'body', 'nowhere', tenant => 'b')::text,"
            " sqlvec._bm25_dimension('nowhere')::text, sqlvec._bm25_dimension('secret')::text)",
        )

    def test_argument_and_filter_both_hold(self, tenants: Connection) -> None:
        assert ids(tenants, "apple", tenant="a", filter='{"tenant": "b"}') == []
        assert ids(tenants, "apple", tenant="a", filter='{"tenant": {"$ne": "a"}}') == []
        assert ids(tenants, "apple", tenant="a", filter='{"id": 2}') == [2]
        assert ids(tenants, "apple", tenant="nobody") == []

    @pytest.mark.parametrize(
        "arguments",
        [
            "",
            ', filter => \'{"tenant": ["a", "b"]}\'',
            ', filter => \'{"tenant": {"$in": ["a"]}}\'',
            ', filter => \'{"$or": [{"tenant": "a"}]}\'',
            ", filter => '{\"tenant\": null}'",
        ],
    )
    def test_one_tenant_must_be_named(self, tenants: Connection, arguments: str) -> None:
        fails(
            tenants,
            f"SELECT sqlvec.bm25_search(NULL::doc, 'body', 'apple'{arguments})",
            'statistics of its own for each "tenant"',
        )

    def test_scores_of_rows(self, tenants: Connection) -> None:
        """Each row by the statistics of its tenant; a row of nobody has no score."""
        assert tenants.execute(
            "SELECT array_agg(id ORDER BY id) FILTER (WHERE score > 0), array_agg(id) FILTER (WHERE score IS NULL)"
            " FROM (SELECT id, sqlvec.bm25_score(d, 'body', 'apple nobody') AS score FROM doc AS d) AS s"
        ).fetchall() == [([1, 2, 3], [5])]

    def test_no_rights_no_words(self, tenants: Connection) -> None:
        tenants.execute("SET LOCAL ROLE mallory")
        assert words(tenants) == set()
        assert tenants.execute("SELECT * FROM sqlvec.bm25_corpus").fetchall() == []
        # That the column is there, anyone may read in the catalog.
        assert tenants.execute(
            "SELECT tenant, documents, avgdl, terms, analyzed_at FROM sqlvec.bm25_health"
        ).fetchall() == [(None,) * 5]
        fails(
            tenants,
            "SELECT sqlvec.bm25_search(NULL::doc, 'body', 'secret', tenant => 'b')",
            "permission|may read neither|may not read",
        )

    @pytest.mark.parametrize(
        "statement",
        [
            "INSERT INTO sqlvec.bm25_corpus (derived_id, tenant, documents, average_length, terms, collisions)"
            " SELECT id, 'z', 1, 1, 1, 0 FROM sqlvec.derived",
            "INSERT INTO sqlvec.bm25_frequency SELECT generate_series(0, 99), 'x', 1, '{0,0,0,0}'",
            "UPDATE sqlvec.derived SET reweighed = true",
            "UPDATE sqlvec.encoder SET options = options || '{\"k1\": 9}'",
            "CALL sqlvec.analyze_bm25('doc')",
            "CALL sqlvec.drop_derived('doc', 'body_bm25')",
            "TRUNCATE sqlvec.bm25_frequency",
        ],
    )
    def test_statistics_cannot_be_fabricated(self, tenants: Connection, statement: str) -> None:
        tenants.execute("GRANT SELECT ON doc TO mallory")
        tenants.execute("SET LOCAL ROLE mallory")
        with pytest.raises(psycopg.Error), tenants.transaction():
            tenants.execute(statement)

    def test_statistics_of_others_cannot_be_changed(self, tenants: Connection) -> None:
        state = "SELECT * FROM sqlvec.bm25_corpus AS c JOIN sqlvec.bm25_frequency ON corpus_id = c.id ORDER BY corpus_id, lexeme"
        before = tenants.execute(state).fetchall()
        tenants.execute("SET LOCAL ROLE reader")
        for statement in (
            "UPDATE sqlvec.bm25_corpus SET documents = 1000",
            "UPDATE sqlvec.bm25_frequency SET documents = 1000",
            "DELETE FROM sqlvec.bm25_frequency",
            "DELETE FROM sqlvec.bm25_corpus",
        ):
            tenants.execute(statement)
        tenants.execute("RESET ROLE")
        assert tenants.execute(state).fetchall() == before

    def test_operators_of_the_reader_do_not_open_the_policy(self, tenants: Connection) -> None:
        """Who asks for statistics chooses the search_path that the question runs under."""
        tenants.execute("CREATE SCHEMA mine AUTHORIZATION reader")
        tenants.execute("SET LOCAL ROLE reader")
        for operands in ("varchar, varchar", "text, text", "int, int", "oid, oid"):
            left, right = operands.split(", ")
            tenants.execute(f"CREATE FUNCTION mine.yes({operands}) RETURNS bool RETURN true")
            tenants.execute(
                f"CREATE OPERATOR mine.= (leftarg = {left}, rightarg = {right}, function = mine.yes)"
            )
        tenants.execute("SET LOCAL search_path = mine, public, pg_catalog")
        assert words(tenants) == {"apple", "pear", "fig"}
        assert search(tenants, "secret", tenant="b") == []

    def test_the_owner_under_the_policy_cannot_count(self, tenants: Connection) -> None:
        tenants.execute("ALTER TABLE doc OWNER TO mallory")
        tenants.execute("ALTER TABLE doc FORCE ROW LEVEL SECURITY")
        tenants.execute("SET LOCAL ROLE mallory")
        fails(tenants, "CALL sqlvec.analyze_bm25('doc')", "row security hides rows")


class TestRights:
    @pytest.fixture
    def doc(self, db: Connection) -> Connection:
        db.execute("CREATE ROLE reader")
        db.execute("CREATE ROLE mallory")
        db.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, note text)")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        db.execute("INSERT INTO doc VALUES (1, 'apple pear'), (2, 'apple')")
        return db

    def test_insert_only_role(self, doc: Connection) -> None:
        doc.execute("GRANT INSERT ON doc TO mallory")
        doc.execute("SET LOCAL ROLE mallory")
        doc.execute("INSERT INTO doc VALUES (3, 'fig')")
        doc.execute("RESET ROLE")
        assert ids(doc, "fig") == [3]

    def test_a_stranger_learns_nothing(self, doc: Connection) -> None:
        for counted in (False, True):
            if counted:
                analyze(doc)
            doc.execute("SET LOCAL ROLE mallory")
            assert words(doc) == set()
            for call in (
                "bm25_search(NULL::doc, 'body', 'apple')",
                "bm25_search_keys(NULL::doc, 'body', 'apple', key => NULL::int)",
                "explain_bm25_search(NULL::doc, 'body', 'apple')",
            ):
                fails(doc, f"SELECT sqlvec.{call}", "permission denied|may read neither")
            weights = {
                value(doc, f"SELECT sqlvec.bm25_query(NULL::doc, 'body', '{word}')::text").split(
                    ":"
                )[1]
                for word in ("apple", "pear", "nowhere")
            }
            assert len(weights) == 1
            doc.execute("RESET ROLE")

    @pytest.mark.parametrize("option", ["k1", "b", "average_length", "weights"])
    def test_rows_of_the_catalog_are_no_code(self, db: Connection, option: str) -> None:
        """An owner may write any encoder for his table; others only search it."""
        db.execute("CREATE ROLE mallory")
        db.execute("CREATE SCHEMA m AUTHORIZATION mallory")
        db.execute("SET LOCAL ROLE mallory")
        db.execute("CREATE TABLE m.doc (id int PRIMARY KEY, body text)")
        db.execute("INSERT INTO m.doc VALUES (1, 'apple')")
        db.execute("CALL sqlvec.add_bm25('m.doc', 'body', config => 'simple')")
        db.execute("CREATE TABLE m.seen (who text)")
        db.execute("GRANT ALL ON m.seen TO PUBLIC")
        db.execute(
            "CREATE FUNCTION m.attack() RETURNS real LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO m.seen VALUES (current_user); RETURN 1; END $$"
        )
        bad = '["1}\'::real[], m.attack()) --"]' if option == "weights" else '"m.attack()"'
        db.execute(
            "INSERT INTO sqlvec.encoder (name, kind, code_type, code_dimensions, options)"
            " SELECT 'bad', kind, code_type, code_dimensions, options || %s::jsonb FROM sqlvec.encoder"
            " WHERE kind = 'bm25'",
            [f'{{"{option}": {bad}}}'],
        )
        db.execute("UPDATE sqlvec.derived SET encoder = 'bad'")
        db.execute("RESET ROLE")
        for statement in (
            "SELECT sqlvec.bm25_search(NULL::m.doc, 'body', 'apple')",
            "SELECT sqlvec.bm25_score(d, 'body', 'apple') FROM m.doc AS d",
            "SELECT * FROM sqlvec.explain_bm25_search(NULL::m.doc, 'body', 'apple')",
            "CALL sqlvec.analyze_bm25('m.doc', drift => 1000)",
            "CALL sqlvec.check()",
        ):
            try:
                with db.transaction():
                    db.execute(statement)
            except psycopg.Error:
                pass
        assert value(db, "SELECT count(*) FROM m.seen") == 0

    def test_operators_planted_in_public(self, doc: Connection) -> None:
        """What a stranger leaves on the search_path does not run as the superuser."""
        analyze(doc)
        before = search(doc, "apple pear")
        doc.execute(
            "CREATE FUNCTION public.attack() RETURNS void LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'attacked'; END $$"
        )
        planted = [
            ("-", "int", "float8", "float8"),
            ("-", "float8", "int", "float8"),
            ("-", "numeric", "float8", "float8"),
            ("<", "real", "int", "bool"),
            (">", "float8", "real", "bool"),
            (">=", "int", "int8", "bool"),
            ("=", "varchar", "varchar", "bool"),
            ("=", "name", "varchar", "bool"),
            ("=", "int[]", "int[]", "bool"),
            ("<>", "text[]", "text[]", "bool"),
            ("=", "regclass", "regclass", "bool"),
            ("->>", "jsonb", "name", "text"),
            ("->", "jsonb", "name", "jsonb"),
            ("||", "text[]", "name", "text[]"),
            ("||", "text", "name", "text"),
            ("||", "text", "int", "text"),
            ("||", "text", "text[]", "text"),
            ("@@", "tsvector", "text", "bool"),
            ("*", "float8", "int", "float8"),
            ("+", "int", "float8", "float8"),
        ]
        for number, (operator, left, right, result) in enumerate(planted):
            doc.execute(
                f"CREATE FUNCTION public.op{number}({left}, {right}) RETURNS {result} LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM public.attack(); END $$"
            )
            doc.execute(
                f"CREATE OPERATOR public.{operator} (leftarg = {left}, rightarg = {right}, function = public.op{number})"
            )
        assert search(doc, "apple pear") == before
        for statement in (
            "SELECT sqlvec.bm25_search(NULL::doc, 'body', '+apple pea* -\"x y\"', filter => '{\"id\": {\"$gt\": 0}}')",
            "SELECT sqlvec.bm25_search_keys(NULL::doc, 'body', 'apple', key => NULL::int)",
            "SELECT sqlvec.bm25_score(d, 'body', 'apple') FROM doc AS d",
            "SELECT sqlvec.bm25_headline(d, 'body', 'apple') FROM doc AS d",
            "SELECT * FROM sqlvec.explain_bm25_search(NULL::doc, 'body', 'apple')",
            "SELECT * FROM sqlvec.bm25_health",
            "INSERT INTO doc VALUES (9, 'x')",
            "UPDATE doc SET body = body || ' y'",
            "CALL sqlvec.analyze_bm25('doc', drift => 1000)",
            "CALL sqlvec.add_bm25('doc', 'note')",
            "CALL sqlvec.drop_derived('doc', 'note_bm25')",
            "CALL sqlvec.check()",
        ):
            doc.execute(statement)


class TestStatistics:
    @pytest.fixture
    def doc(self, fresh: Connection) -> Connection:
        fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
        fresh.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        fresh.execute("INSERT INTO doc SELECT i, 'apple w' || i FROM generate_series(1, 3000) AS i")
        return fresh

    def test_not_inside_a_transaction_when_lengths_have_drifted(self, doc: Connection) -> None:
        with pytest.raises(psycopg.errors.InvalidTransactionTermination), doc.transaction():
            doc.execute("CALL sqlvec.analyze_bm25('doc')")
        assert value(doc, "SELECT count(*) FROM sqlvec.bm25_corpus") == 0
        doc.execute("CALL sqlvec.analyze_bm25('doc')")
        with doc.transaction():
            doc.execute("INSERT INTO doc VALUES (0, 'apple fig')")
            doc.execute("CALL sqlvec.analyze_bm25('doc')")
        assert value(doc, "SELECT documents FROM sqlvec.bm25_health") == 3001

    def test_weights_follow_the_mean_length(self, doc: Connection) -> None:
        doc.execute("CALL sqlvec.analyze_bm25('doc')")
        assert doc.execute(
            "SELECT documents, avgdl, terms, stale FROM sqlvec.bm25_health"
        ).fetchall() == [(3000, 2.0, 3001, False)]
        # tf = 1 and the mean length: (k1 + 1) / (1 + k1).
        assert value(doc, "SELECT body_bm25::text LIKE '%:1,%:1}%' FROM doc WHERE id = 1")
        doc.execute("UPDATE doc SET body = body || ' x y'")
        doc.execute("CALL sqlvec.analyze_bm25('doc')")
        assert value(doc, "SELECT avgdl FROM sqlvec.bm25_health") == 4.0
        assert (
            value(doc, "SELECT count(DISTINCT body_bm25::text LIKE '%:1,%:1,%:1,%:1}%') FROM doc")
            == 1
        )
        assert value(doc, "SELECT problem FROM sqlvec.derived_column") is None
        assert doc.execute("SELECT suspect, reweighed FROM sqlvec.derived").fetchall() == [
            (False, False)
        ]

    def test_staleness(self, doc: Connection) -> None:
        health = "SELECT changes_since, stale, advice FROM sqlvec.bm25_health"
        assert doc.execute(health).fetchall()[0][1:] == (
            True,
            "never counted; CALL sqlvec.analyze_bm25('doc');",
        )
        doc.execute("SELECT pg_stat_force_next_flush()")
        doc.execute("CALL sqlvec.analyze_bm25('doc')")
        assert doc.execute(health).fetchall() == [(0, False, None)]
        doc.execute("INSERT INTO doc SELECT i, 'pear' FROM generate_series(4001, 4400) AS i")
        doc.execute("DELETE FROM doc WHERE id <= 100")
        doc.execute("SELECT pg_stat_force_next_flush()")
        assert doc.execute(health).fetchall() == [
            (500, True, "many rows have changed; CALL sqlvec.analyze_bm25('doc');")
        ]

    def test_counters_that_start_again(self, doc: Connection) -> None:
        """After a crash the server counts from zero."""
        doc.execute("CALL sqlvec.analyze_bm25('doc')")
        doc.execute("SELECT pg_stat_force_next_flush()")
        doc.execute("SELECT pg_stat_reset()")
        doc.execute("INSERT INTO doc SELECT i, 'pear' FROM generate_series(4001, 4700) AS i")
        doc.execute("SELECT pg_stat_force_next_flush()")
        assert value(doc, "SELECT stale FROM sqlvec.bm25_health")

    def test_four_at_once(self, doc: Connection) -> None:
        failed: list[Exception] = []

        def run(dsn: str) -> None:
            try:
                with psycopg.connect(dsn, autocommit=True) as session:
                    session.execute("CALL sqlvec.analyze_bm25('doc', drift => 0)")
            except psycopg.Error as error:
                failed.append(error)

        threads = [threading.Thread(target=run, args=(doc.info.dsn,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []
        assert doc.execute("SELECT maintained, problem FROM sqlvec.derived_column").fetchall() == [
            (True, None)
        ]
        assert value(doc, "SELECT count(*) FROM sqlvec.encoder WHERE kind = 'bm25'") == 1

    def test_searches_meanwhile_see_the_old_or_the_new(self, doc: Connection) -> None:
        """While rows are encoded anew, no search mixes weights of two kinds."""
        doc.execute("CALL sqlvec.analyze_bm25('doc')")
        doc.execute("UPDATE doc SET body = body || ' x y z'")
        query = "apple w77"
        seen = {round(search(doc, query, k=1)[0][1], 4)}
        stop = threading.Event()

        def watch(dsn: str) -> None:
            with psycopg.connect(dsn, autocommit=True) as session:
                while not stop.is_set():
                    found = search(session, query, k=20)
                    assert [key for key, _ in found][:4] == [77, 1, 2, 3]
                    seen.add(round(found[0][1], 4))

        thread = threading.Thread(target=watch, args=(doc.info.dsn,))
        thread.start()
        try:
            doc.execute("CALL sqlvec.analyze_bm25('doc')")
        finally:
            stop.set()
            thread.join()
        seen.add(round(search(doc, query, k=1)[0][1], 4))
        assert len(seen) == 2

    def test_interrupted(self, doc: Connection) -> None:
        """A re-encode that was stopped leaves searches right, and the next one ends it."""
        doc.execute(
            "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.id = 2000 THEN RAISE 'stopped'; END IF; RETURN NEW; END $$"
        )
        doc.execute("CREATE TRIGGER stop BEFORE UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION stop()")
        with pytest.raises(psycopg.errors.RaiseException, match="stopped"):
            doc.execute("CALL sqlvec.analyze_bm25('doc')")
        assert "anew" in value(doc, "SELECT advice FROM sqlvec.bm25_health")
        interrupted = search(doc, "apple w77", k=20)
        doc.execute("DROP TRIGGER stop ON doc")
        doc.execute("CALL sqlvec.backfill('doc')")
        found = search(doc, "apple w77", k=20)
        assert [key for key, _ in found] == [key for key, _ in interrupted]
        assert [score for _, score in found] == pytest.approx([s for _, s in interrupted], rel=1e-6)
        assert "anew" not in str(value(doc, "SELECT advice FROM sqlvec.bm25_health"))


def install(dsn: str) -> None:
    with create_engine(sqlalchemy_url(dsn), poolclass=NullPool).connect() as connection:
        catalog.install(connection, create_extension=True)


def tool(server: Server, program: str, *arguments: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    result = subprocess.run(
        [server.bin / program, *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 0, result.stderr


QUERIES = ("apple", "w7 w8 fig", "+apple -fig w1*", '"apple w5"')


def fill(connection: Connection) -> None:
    connection.execute(
        "CREATE TABLE doc (id int PRIMARY KEY, tenant text, title text, body text, words tsvector)"
    )
    connection.execute(
        "INSERT INTO doc SELECT i, 't' || i % 3, 'title w' || i % 50,"
        " 'apple w' || i % 40 || CASE WHEN i % 7 = 0 THEN ' fig fig' ELSE '' END,"
        " to_tsvector('simple', 'apple w' || i % 40) FROM generate_series(1, 1000) AS i"
    )
    connection.execute("CREATE TEXT SEARCH CONFIGURATION mine (COPY = simple)")
    connection.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'mine')")
    connection.execute("CALL sqlvec.add_bm25('doc', 'words', config => 'simple')")
    connection.execute(
        "CALL sqlvec.add_bm25('doc', NULL, config => 'simple', target => 'both', tenant => 'tenant',"
        """ fields => '{"title": 2, "body": 1}')"""
    )
    connection.execute("CALL sqlvec.backfill('doc')")
    connection.execute("CALL sqlvec.analyze_bm25('doc')")


def answers(connection: Connection) -> Any:
    return [
        [
            search(connection, query, column="body_bm25", k=20),
            search(connection, query, column="words_bm25", k=20),
            search(connection, query, column="both", k=20, tenant="t1"),
        ]
        for query in QUERIES
    ]


@pytest.fixture(scope="module")
def first(start_server: Callable[..., Server]) -> Server:
    return start_server()


class TestServers:
    def test_dump_and_restore(self, first: Server, second_server: Server, tmp_path: Path) -> None:
        """The same hits with the same scores, without any further command."""
        dsn = first.create_database("dumped")
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE filler (id int)")
            fill(connection)
            connection.execute("ALTER TABLE doc RENAME COLUMN body TO text")
            connection.execute("CALL sqlvec.repair('doc')")
            before = answers(connection)
        file = str(tmp_path / "dump")
        tool(first, "pg_dump", "-Fc", "-f", file, dsn)
        target = second_server.create_database("dumped")
        tool(second_server, "pg_restore", "--exit-on-error", "-d", target, file)
        with psycopg.connect(target, autocommit=True) as connection:
            assert answers(connection) == before
            assert connection.execute(
                "SELECT DISTINCT problem FROM sqlvec.derived_column"
            ).fetchall() == [(None,)]
            plan = connection.execute(
                "SELECT detail FROM sqlvec.explain_bm25_search(NULL::doc, 'body_bm25', 'apple') WHERE topic = 'plan'"
            ).fetchall()
            assert plan == [("the index knows tiers of weight",)]
            connection.execute(
                "INSERT INTO doc (id, tenant, text, words) VALUES (5000, 't1', 'zebra', 'zebra')"
            )
            assert ids(connection, "zebra", column="body_bm25") == [5000]
            assert ids(connection, "zebra", column="words_bm25") == [5000]
            assert ids(connection, "zebra", column="both", tenant="t1") == [5000]
            connection.execute("CALL sqlvec.analyze_bm25('doc')")
            connection.execute("CALL sqlvec.check()")
            connection.execute("CALL sqlvec.drop_derived('doc', 'both')")

    def test_dump_by_the_owner_of_the_tables(
        self, first: Server, second_server: Server, tmp_path: Path
    ) -> None:
        """One role owns the database, the tables and sqlvec: no superuser takes part."""
        for server in (first, second_server):
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute("CREATE ROLE app LOGIN")
        dsn = first.create_database("owned")
        target = second_server.create_database("owned")
        for each in (dsn, target):
            with psycopg.connect(each, autocommit=True) as connection:
                connection.execute("CREATE EXTENSION vector")
                connection.execute("ALTER DATABASE owned OWNER TO app")
                connection.execute("ALTER SCHEMA public OWNER TO app")
        as_app = sqlalchemy_url(dsn).set(username="app")
        with create_engine(as_app, poolclass=NullPool).connect() as engine_connection:
            catalog.install(engine_connection)
        dsn_app = as_app.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(dsn_app, autocommit=True) as connection:
            fill(connection)
            connection.execute("ALTER TABLE doc ENABLE ROW LEVEL SECURITY")
            before = answers(connection)
        file = str(tmp_path / "dump")
        tool(first, "pg_dump", "-Fc", "-f", file, dsn_app)
        target_app = (
            sqlalchemy_url(target)
            .set(username="app", drivername="postgresql")
            .render_as_string(hide_password=False)
        )
        tool(
            second_server, "pg_restore", "--exit-on-error", "--no-comments", "-d", target_app, file
        )
        with psycopg.connect(target_app, autocommit=True) as connection:
            assert answers(connection) == before
            connection.execute("CALL sqlvec.analyze_bm25('doc', drift => 0)")

    def test_dump_of_the_extension(
        self,
        extension_server: Server,  # noqa: F811
        tmp_path: Path,
    ) -> None:
        """Statistics are rows of the user, not of the extension; its policies are its own."""
        source, target = (extension_server.create_database(name) for name in ("extended", "copied"))
        with psycopg.connect(source, autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("CREATE EXTENSION sqlvec")
            fill(connection)
            before = answers(connection)
        file = str(tmp_path / "dump")
        tool(extension_server, "pg_dump", "-Fc", "-f", file, source)
        tool(extension_server, "pg_restore", "--exit-on-error", "-d", target, file)
        with psycopg.connect(target, autocommit=True) as connection:
            assert answers(connection) == before
            connection.execute("CREATE ROLE stranger")
            connection.execute("SET ROLE stranger")
            assert words(connection) == set()
            connection.execute("RESET ROLE")
            connection.execute("CALL sqlvec.analyze_bm25('doc')")
            connection.execute("CALL sqlvec.check()")

    def test_logical_replication(self, first: Server, second_server: Server) -> None:
        source, target = (server.create_database("replicated") for server in (first, second_server))
        for each in (source, target):
            install(each)
        with (
            psycopg.connect(source, autocommit=True) as publisher,
            psycopg.connect(target, autocommit=True) as subscriber,
        ):
            for connection in (publisher, subscriber):
                connection.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
                connection.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
            publisher.execute("INSERT INTO doc VALUES (1, 'apple'), (2, 'pear')")
            # Without the codes: the subscriber makes its own.
            publisher.execute("CREATE PUBLICATION docs FOR TABLE doc (id, body)")
            subscriber.execute(
                sql.SQL("CREATE SUBSCRIPTION docs CONNECTION {} PUBLICATION docs").format(source)
            )
            try:
                deadline = time.monotonic() + 30
                while ids(subscriber, "apple pear") != [1, 2]:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                publisher.execute("UPDATE doc SET body = 'fig' WHERE id = 1")
                while ids(subscriber, "fig") != [1]:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                assert ids(subscriber, "apple") == []
                assert value(subscriber, "SELECT count(body_bm25) FROM doc") == 2
            finally:
                subscriber.execute("DROP SUBSCRIPTION docs")

    def test_killed_while_weights_are_encoded_anew(
        self, start_server: Callable[..., Server]
    ) -> None:
        server = start_server(settings={"fsync": "on", "full_page_writes": "on"})
        dsn = server.create_database("crash")
        install(dsn)
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
            session.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
            session.execute(
                "INSERT INTO doc SELECT i, 'apple w' || i FROM generate_series(1, 8000) AS i"
            )
            # Slow enough to be caught in the middle.
            session.execute(
                "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$"
            )
            session.execute("CREATE TRIGGER slow AFTER UPDATE ON doc EXECUTE FUNCTION slow()")
            thread = threading.Thread(target=interrupted_analysis, args=(dsn,))
            thread.start()
            deadline = time.monotonic() + 30
            while (
                value(session, "SELECT coalesce(max(rows_done), 0) FROM sqlvec.backfill_progress")
                or 0
            ) < 1000:
                assert time.monotonic() < deadline
        server.kill()
        thread.join(30)
        server.start()
        with psycopg.connect(dsn, autocommit=True) as session:
            before = search(session, "apple w77", k=20)
            assert len(before) == 20
            session.execute("DROP TRIGGER slow ON doc")
            if value(session, "SELECT suspect FROM sqlvec.derived"):
                session.execute("CALL sqlvec.backfill('doc')")
            session.execute("CALL sqlvec.analyze_bm25('doc')")
            assert [key for key, _ in search(session, "apple w77", k=20)] == [
                key for key, _ in before
            ]
            assert value(session, "SELECT advice FROM sqlvec.bm25_health") is None
            assert (
                value(session, "SELECT count(DISTINCT body_bm25::text LIKE '%:1,%:1}%') FROM doc")
                == 1
            )


def interrupted_analysis(dsn: str) -> None:
    with pytest.raises(psycopg.OperationalError), psycopg.connect(dsn, autocommit=True) as session:
        session.execute("CALL sqlvec.analyze_bm25('doc')")
