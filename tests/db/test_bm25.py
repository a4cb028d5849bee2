"""Declaring BM25 columns, the trigger that keeps them, and searches over small tables."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.db.test_session_settings import SETTINGS

Connection = psycopg.Connection[Any]


@pytest.fixture
def doc(db: Connection) -> Connection:
    db.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, note text)")
    db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
    return db


def value(db: Connection, statement: str, *parameters: Any) -> Any:
    row = db.execute(statement, parameters or None).fetchone()
    assert row is not None
    return row[0]


def search(
    db: Connection, query: str, table: str = "doc", column: str | None = "body", **arguments: Any
) -> list[tuple[Any, float]]:
    """Return ids and scores."""
    given = "".join(f", {name} => %s" for name in arguments)
    return db.execute(
        f"SELECT (hit).id, score FROM sqlvec.bm25_search(NULL::{table}, %s, %s{given})",
        [column, query, *arguments.values()],
    ).fetchall()


def ids(db: Connection, query: str, *where: Any, **arguments: Any) -> list[Any]:
    return [key for key, _ in search(db, query, *where, **arguments)]


def analyze(db: Connection, table: str = "doc") -> None:
    """Count, and leave the weights alone: that works in a transaction."""
    db.execute(f"CALL sqlvec.analyze_bm25('{table}', drift => 1000)")


def fails(db: Connection, statement: str, message: str, *parameters: Any) -> psycopg.Error:
    """Expect an error, and that it changes nothing."""
    before = catalog_rows(db)
    with pytest.raises(psycopg.Error, match=message) as caught, db.transaction():
        db.execute(statement, parameters or None)
    assert catalog_rows(db) == before
    return caught.value


def catalog_rows(db: Connection) -> list[Any]:
    return [
        db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("sqlvec.encoder", "sqlvec.relation", "sqlvec.derived", "pg_attribute")
    ]


def columns(db: Connection, table: str = "doc") -> dict[str, str]:
    return dict(
        db.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            [table],
        ).fetchall()
    )


class TestDeclaration:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ("NULL, 'body'", "needs a table, a text search configuration, k1 and b"),
            ("'doc', NULL", "add_bm25 needs a column"),
            ("'doc', 'body', config => NULL", "needs a table, a text search configuration"),
            ("'doc', 'body', config => 0", "text search configuration - does not exist"),
            ("'doc', 'body', config => 'nope'", 'text search configuration "nope" does not exist'),
            ("'doc', 'body', k1 => NULL", "needs a table"),
            ("'doc', 'body', b => NULL", "needs a table"),
            ("'doc', 'body', k1 => -0.1", "k1 is a number from 0 to 100, not -0.1"),
            ("'doc', 'body', k1 => 'NaN'", "k1 is a number from 0 to 100, not NaN"),
            ("'doc', 'body', b => 1.01", "b is a number from 0 to 1, not 1.01"),
            ("'doc', 'body', b => 'NaN'", "b is a number from 0 to 1, not NaN"),
            ("'doc', 'nope'", 'column "nope" of table public.doc does not exist'),
            ("'doc', 'ctid'", 'column "ctid" of table public.doc does not exist'),
            ("'doc', 'id'", 'column "id" of table .* is of type integer, not text or tsvector'),
            ("'doc', 'tags'", r'column "tags" .* is of type text\[\], not text or tsvector'),
            ("'doc', 'generated'", "a generated column of table"),
            ("'doc', 'body', target => 'generated'", "a generated column of table"),
            ("'doc', 'body', tenant => 'nope'", 'column "nope" of table .* does not exist'),
            ("'doc', 'body', tenant => 'data'", 'column "data" .* cannot be compared'),
            ("'doc', 'body', target => 'body'", 'column "body" cannot hold its own code'),
            ("'doc', 'body', target => ''", 'target "" is not a column name'),
            ("'doc', 'body', target => repeat('x', 64)", "is not a column name of 1 to 63 bytes"),
            ("'doc', 'body', target => 'id'", 'column "id" .* is of type integer, encoder'),
            ("'doc', 'body', target => 'narrow'", r"is of type .*sparsevec\(5\), encoder .* makes"),
            ("'doc', 'body', target => 'ctid'", "conflicts with a system column"),
            ("'doc', 'body', fields => '{\"body\": 1}'", "give a column or fields, not both"),
            ("'doc', NULL, fields => '{}'", "fields is a JSON object"),
            ("'doc', NULL, fields => '[\"body\"]'", "fields is a JSON object"),
            ("'doc', NULL, fields => 'null'", "fields is a JSON object"),
            ("'doc', NULL, fields => '{\"nope\": 1}'", 'column "nope" .* does not exist'),
            ("'doc', NULL, fields => '{\"body\": 0}'", 'weight of field "body" is a number from'),
            ("'doc', NULL, fields => '{\"body\": \"2\"}'", 'weight of field "body" .* not "2"'),
            ("'doc', NULL, fields => '{\"body\": null}'", 'weight of field "body" .* not null'),
            ("'doc', NULL, fields => '{\"body\": 1e9}'", 'weight of field "body" is a number'),
            ("'doc', NULL, fields => '{\"body\": 1, \"words\": 2}'", "tsvector, not text"),
            (
                '\'doc\', NULL, fields => \'{"body": 1, "a": 2, "b": 3, "c": 4, "d": 5}\'',
                "fields have 5 different weights; a tsvector tells four apart",
            ),
            ("'doc', 'words', fields => '{\"E\": 2}'", "are its labels A, B, C and D"),
            ("'doc', 'words', fields => '{\"a\": 2}'", "are its labels A, B, C and D"),
            ("'some_view', 'body'", "some_view is not a table"),
            ("'part_1', 'body'", "part_1 is a partition"),
            ("'parent', 'body'", "takes part in inheritance"),
            ("'child', 'body'", "takes part in inheritance"),
        ],
    )
    def test_refusals(self, db: Connection, arguments: str, message: str) -> None:
        db.execute(
            "CREATE TABLE doc (id int PRIMARY KEY, body text, words tsvector, tags text[], data json,"
            " narrow sparsevec(5), a text, b text, c text, d text,"
            " generated tsvector GENERATED ALWAYS AS (to_tsvector('simple', body)) STORED)"
        )
        db.execute("CREATE VIEW some_view AS SELECT * FROM doc")
        db.execute("CREATE TABLE part (id int, body text) PARTITION BY LIST (id)")
        db.execute("CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1)")
        db.execute("CREATE TABLE parent (id int, body text)")
        db.execute("CREATE TABLE child () INHERITS (parent)")
        fails(db, f"CALL sqlvec.add_bm25({arguments})", message)

    def test_default_names_and_types(self, doc: Connection) -> None:
        assert columns(doc) == {
            "id": "integer",
            "body": "text",
            "note": "text",
            "body_bm25": "sparsevec(1000000000)",
            "body_bm25_tsv": "tsvector",
        }
        assert value(
            doc,
            "SELECT count(*) FROM pg_index WHERE indrelid = 'doc'::regclass"
            " AND pg_get_indexdef(indexrelid) LIKE '%%gin (body_bm25_tsv)%%'",
        )

    def test_taken_target(self, doc: Connection) -> None:
        for target in ("body_bm25", "body_bm25_tsv"):
            error = fails(
                doc,
                "CALL sqlvec.add_bm25('doc', 'note', target => %s)",
                'already derived from "body"',
                target,
            )
            assert "drop_derived('public.doc', 'body_bm25')" in str(error.diag.message_hint)
        fails(doc, "CALL sqlvec.add_bm25('doc', 'body')", 'column "body_bm25" .* already derived')

    def test_columns_that_are_there(self, db: Connection) -> None:
        """Columns of the right types are taken over, as after a restore of the schema."""
        db.execute(
            "CREATE TABLE doc (id int, body text, body_bm25 sparsevec(1000000000), body_bm25_tsv tsvector)"
        )
        db.execute("INSERT INTO doc VALUES (1, 'apple')")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        assert ids(db, "apple") == [1]
        db.execute("INSERT INTO doc VALUES (2, 'apple', NULL, 'other:1')")
        assert ids(db, "apple") == [1, 2]
        assert ids(db, "other") == []

    def test_a_second_column_of_the_wrong_type(self, db: Connection) -> None:
        db.execute("CREATE TABLE doc (id int, body text, body_bm25_tsv text)")
        fails(db, "CALL sqlvec.add_bm25('doc', 'body')", "is of type text, encoder .* tsvector")

    @pytest.mark.parametrize(
        "name",
        [
            'a"b',
            "with space",
            "UPPER",
            "a%b",
            "%s%1$I",
            "it's",
            "back\\slash",
            "select",
            "ü" * 31,
            "x" * 63,
            "a$1",
            "--",
        ],
    )
    def test_odd_names(self, db: Connection, name: str) -> None:
        quoted = psycopg.sql.Identifier(name)
        db.execute(
            psycopg.sql.SQL("CREATE TABLE {0} (id int PRIMARY KEY, {0} text, other text)").format(
                quoted
            )
        )
        table = quoted.as_string(db)
        t = table.replace("%", "%%")
        db.execute("CALL sqlvec.add_bm25(%s, %s, 'simple', tenant => %s)", [table, name, name])
        made = value(db, "SELECT target_column FROM sqlvec.derived_column")
        db.execute("CALL sqlvec.drop_derived(%s, %s)", [table, made])
        db.execute("CALL sqlvec.add_bm25(%s, %s, 'simple')", [table, name])
        db.execute(f"INSERT INTO {t} VALUES (1, 'apple pear')", [])
        found = f"FROM sqlvec.bm25_search(NULL::{t}, %s, 'apple', filter => jsonb_build_object(%s::text, 'apple pear'))"
        assert value(db, f"SELECT (hit).id {found}", name, name) == 1
        found = f"FROM sqlvec.bm25_search_keys(NULL::{t}, %s, 'apple', key => NULL::int)"
        assert value(db, f"SELECT key {found}", name) == 1
        db.execute("CALL sqlvec.analyze_bm25(%s, drift => 1000)", [table])
        assert value(db, f"SELECT sqlvec.bm25_score(t, %s, 'apple') FROM {t} AS t", name) > 0
        headline = f"SELECT sqlvec.bm25_headline(t, %s, 'apple') FROM {t} AS t"
        assert value(db, headline, name) == "<b>apple</b> pear"
        explain = f"SELECT count(*) FROM sqlvec.explain_bm25_search(NULL::{t}, %s, 'apple')"
        assert value(db, explain, name) > 5
        db.execute("CALL sqlvec.drop_derived(%s, %s)", [table, made])
        assert set(columns(db, table)) == {"id", name, "other"}

    def test_several_on_one_table(self, doc: Connection) -> None:
        doc.execute("CALL sqlvec.add_bm25('doc', 'note', config => 'english')")
        doc.execute(
            """CALL sqlvec.add_bm25('doc', NULL, config => 'simple', fields => '{"note": 2, "body": 1}')"""
        )
        doc.execute("INSERT INTO doc VALUES (1, 'the apple', 'running'), (2, 'x', 'apple')")
        error = fails(doc, "SELECT sqlvec.bm25_search(NULL::doc, NULL, 'apple')", "several BM25")
        assert "body_bm25 or note_bm25" in str(error.diag.message_hint)
        # A name stands for the column of its own, not for those in which it is a field.
        assert ids(doc, "apple", column="body") == [1]
        doc.execute("CALL sqlvec.add_bm25('doc', 'body', target => 'other')")
        fails(doc, "SELECT sqlvec.bm25_search(NULL::doc, 'body', 'x')", 'several .* on "body"')
        assert ids(doc, "apple", column="body_bm25") == [1]
        assert ids(doc, "run", column="note_bm25") == [1]
        assert ids(doc, "apple", column="body_note_bm25") == [2, 1]

    @pytest.mark.parametrize(
        ("column_type", "text", "query"),
        [
            ("varchar(20)", "apple", "apple"),
            ("char(20)", "apple", "apple"),
            ("citext", "Apple", "apple"),
            ("name", "apple", "apple"),
            ("short_text", "apple", "apple"),
            ('text COLLATE "C"', "apple", "apple"),
        ],
    )
    def test_types_of_text(self, db: Connection, column_type: str, text: str, query: str) -> None:
        if column_type == "citext":
            if not value(db, "SELECT count(*) FROM pg_available_extensions WHERE name = 'citext'"):
                pytest.skip("citext is not there")
            db.execute("CREATE EXTENSION citext")
        db.execute("CREATE DOMAIN short_text AS varchar(10) CHECK (length(VALUE) > 2)")
        db.execute(f"CREATE TABLE doc (id int, body {column_type})")
        db.execute("INSERT INTO doc VALUES (1, %s)", [text])
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        db.execute("INSERT INTO doc VALUES (2, %s)", [text])
        assert ids(db, query) == [1, 2]
        analyze(db)
        assert ids(db, query) == [1, 2]
        assert value(db, "SELECT sqlvec.bm25_headline(d, 'body', 'apple') FROM doc AS d LIMIT 1")

    def test_configurations(self, db: Connection) -> None:
        db.execute("CREATE SCHEMA app")
        db.execute('CREATE TEXT SEARCH CONFIGURATION app."My %s" (COPY = english)')
        db.execute("CREATE TABLE doc (id int, body text)")
        for config, target in (("simple", "s"), ("english", "e"), ('app."My %s"', "m")):
            db.execute("CALL sqlvec.add_bm25('doc', 'body', %s, target => %s)", [config, target])
        db.execute("INSERT INTO doc VALUES (1, 'the running apples')")
        db.execute("SET search_path = app")
        assert [ids(db, "the", "public.doc", t) for t in "sem"] == [[1], [], []]
        assert [ids(db, "run", "public.doc", t) for t in "sem"] == [[], [1], [1]]

    def test_drop_leaves_nothing(self, doc: Connection) -> None:
        doc.execute("INSERT INTO doc VALUES (1, 'apple')")
        analyze(doc)
        doc.execute("CALL sqlvec.drop_derived('doc', 'body_bm25')")
        assert set(columns(doc)) == {"id", "body", "note"}
        for table in ("relation", "derived", "bm25_corpus", "bm25_frequency"):
            assert value(doc, f"SELECT count(*) FROM sqlvec.{table}") == 0
        assert value(doc, "SELECT count(*) FROM sqlvec.encoder WHERE kind = 'bm25'") == 0
        assert value(doc, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'doc'::regclass") == 0
        doc.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple', k1 => 2)")
        assert ids(doc, "apple") == [1]

    @pytest.mark.parametrize("dropped", ["body_bm25", "body_bm25_tsv", "body"])
    def test_a_column_dropped_by_hand(self, doc: Connection, dropped: str) -> None:
        """Writes go on, the search says what is wrong, and the declaration can be taken back."""
        doc.execute("INSERT INTO doc VALUES (1, 'apple')")
        doc.execute(f"ALTER TABLE doc DROP COLUMN {dropped}")
        doc.execute("INSERT INTO doc (id, note) VALUES (2, 'x')")
        doc.execute("UPDATE doc SET note = 'y'")
        fails(doc, "SELECT sqlvec.bm25_search(NULL::doc, NULL, 'apple')", "has no BM25 column")
        problem = value(doc, "SELECT problem FROM sqlvec.derived_column")
        assert f'"{dropped}" is gone' in problem
        doc.execute(problem.split("; ", 1)[1])
        assert set(columns(doc)) <= {"id", "body", "note"}
        doc.execute("ALTER TABLE doc ADD COLUMN IF NOT EXISTS body text")
        doc.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        doc.execute("UPDATE doc SET body = 'pear' WHERE id = 2")
        assert ids(doc, "pear") == [2]

    def test_declared_anew_after_a_column_was_dropped_by_hand(self, doc: Connection) -> None:
        doc.execute("INSERT INTO doc VALUES (1, 'apple')")
        doc.execute("ALTER TABLE doc DROP COLUMN body_bm25_tsv")
        doc.execute("CALL sqlvec.drop_derived('doc', 'body_bm25')")
        doc.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        assert ids(doc, "apple") == [1]

    def test_rollback_leaves_nothing(self, db: Connection) -> None:
        db.execute("CREATE TABLE doc (id int, body text)")
        before = catalog_rows(db)
        with db.transaction(force_rollback=True):
            db.execute("CALL sqlvec.add_bm25('doc', 'body')")
            analyze(db)
        assert catalog_rows(db) == before
        assert value(db, "SELECT count(*) FROM sqlvec.bm25_corpus") == 0

    def test_tsvector_of_the_application(self, db: Connection) -> None:
        db.execute("CREATE TABLE doc (id int, words tsvector)")
        db.execute(
            """CALL sqlvec.add_bm25('doc', 'words', config => 'simple', fields => '{"A": 10}')"""
        )
        assert set(columns(db)) == {"id", "words", "words_bm25"}
        db.execute(
            "INSERT INTO doc VALUES (1, 'apple:1 pear:2'), (2, 'apple:1A pear:2'), (3, 'fig')"
        )
        assert ids(db, "apple", column="words") == [2, 1]
        db.execute("CALL sqlvec.drop_derived('doc', 'words_bm25')")
        assert set(columns(db)) == {"id", "words"}

    def test_a_table_takes_the_name_of_another(self, doc: Connection) -> None:
        """The renamed one keeps its indexes under the names they have."""
        doc.execute("INSERT INTO doc VALUES (1, 'apple')")
        for number in range(2):
            doc.execute(f"ALTER TABLE doc RENAME TO doc_{number}")
            doc.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
            doc.execute("INSERT INTO doc VALUES (2, 'apple')")
            doc.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
            doc.execute("INSERT INTO doc VALUES (3, 'apple')")
            assert ids(doc, "apple") == [2, 3]
            analyze(doc)
        assert ids(doc, "apple", "doc_0") == [1]
        assert (
            value(
                doc,
                "SELECT count(*) FROM pg_index WHERE indrelid = 'doc'::regclass AND NOT indisprimary",
            )
            == 2
        )

    def test_plan_of_a_partitioned_table(self, db: Connection) -> None:
        """Postgres refuses CONCURRENTLY there."""
        db.execute("CREATE TABLE doc (id int, body text) PARTITION BY LIST (id)")
        db.execute("CREATE TABLE doc_1 PARTITION OF doc FOR VALUES IN (1)")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        db.execute("DROP INDEX ix_doc_body_bm25_tsv")
        statement = value(
            db, "SELECT statement FROM sqlvec.plan_index('doc', 'body_bm25') WHERE method = 'gin'"
        )
        db.execute(statement)

    def test_large_table_waits_for_its_index(self, db: Connection) -> None:
        """Building an index takes a lock: the client does it CONCURRENTLY."""
        db.execute("CREATE TABLE doc (id int, body text)")
        db.execute("ALTER TABLE doc ALTER body SET STORAGE PLAIN")
        db.execute(
            "INSERT INTO doc SELECT i, repeat('apple ', 1000) || i FROM generate_series(1, 5600) AS i"
        )
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        statement = value(
            db, "SELECT statement FROM sqlvec.plan_index('doc', 'body_bm25') WHERE method = 'gin'"
        )
        assert "CONCURRENTLY" in statement
        assert ids(db, "4711") == [4711]


class TestTrigger:
    def test_writes(self, doc: Connection) -> None:
        doc.execute("INSERT INTO doc VALUES (1, 'apple pear'), (2, NULL), (3, '')")
        assert doc.execute(
            "SELECT id, body_bm25 IS NULL, body_bm25_tsv FROM doc ORDER BY id"
        ).fetchall()[1:] == [(2, True, None), (3, False, "")]
        assert ids(doc, "apple") == [1]
        doc.execute("UPDATE doc SET body = 'fig' WHERE id = 1")
        assert (ids(doc, "apple"), ids(doc, "fig")) == ([], [1])
        doc.execute("UPDATE doc SET body = NULL")
        assert value(doc, "SELECT count(body_bm25) + count(body_bm25_tsv) FROM doc") == 0
        doc.execute("UPDATE doc SET body = 'kiwi' WHERE id = 3")
        doc.execute("DELETE FROM doc WHERE id = 1")
        assert (ids(doc, "fig"), ids(doc, "kiwi")) == ([], [3])

    def test_on_conflict(self, doc: Connection) -> None:
        for text in ("apple", "pear"):
            doc.execute(
                "INSERT INTO doc VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                [text],
            )
        assert (ids(doc, "apple"), ids(doc, "pear")) == ([], [1])

    def test_merge(self, doc: Connection) -> None:
        doc.execute("INSERT INTO doc VALUES (1, 'apple')")
        doc.execute(
            "MERGE INTO doc USING (VALUES (1, 'pear'), (2, 'fig')) AS v (id, body) ON doc.id = v.id"
            " WHEN MATCHED THEN UPDATE SET body = v.body"
            " WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.body)"
        )
        assert (ids(doc, "apple"), ids(doc, "pear fig")) == ([], [1, 2])

    def test_copy(self, doc: Connection) -> None:
        with doc.cursor().copy("COPY doc (id, body) FROM STDIN") as copy:
            for key, text in ((1, "apple"), (2, None), (3, "")):
                copy.write_row((key, text))
        assert ids(doc, "apple") == [1]

    def test_triggers_of_the_application_come_first(self, doc: Connection) -> None:
        doc.execute(
            "CREATE FUNCTION add_note() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN NEW.body := NEW.body || ' ' || NEW.note; RETURN NEW; END $$"
        )
        doc.execute(
            "CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION add_note()"
        )
        doc.execute("INSERT INTO doc VALUES (1, 'apple', 'pear')")
        assert ids(doc, "pear") == [1]
        doc.execute("UPDATE doc SET note = 'fig'")
        assert ids(doc, "fig") == [1]

    def test_codes_cannot_be_forged(self, doc: Connection) -> None:
        expected = "SELECT body_bm25::text, body_bm25_tsv::text FROM doc WHERE id = 1"
        doc.execute("INSERT INTO doc VALUES (1, 'apple pear')")
        right = doc.execute(expected).fetchone()
        doc.execute(
            "INSERT INTO doc (id, body, body_bm25, body_bm25_tsv)"
            " VALUES (2, 'apple', '{1:9}/1000000000', 'pear:1')"
        )
        assert ids(doc, "pear") == [1]
        for forged in (
            "body_bm25 = '{1:9}/1000000000'",
            "body_bm25_tsv = 'fig:1'",
            "body_bm25 = NULL",
            "body_bm25_tsv = NULL",
            "body_bm25 = '{1:9}/1000000000', body_bm25_tsv = 'fig:1'",
        ):
            doc.execute(f"UPDATE doc SET {forged} WHERE id = 1")
            assert doc.execute(expected).fetchone() == right

    def test_maintain_off(self, doc: Connection) -> None:
        """Rows wait for their code, and are found while they do."""
        doc.execute("INSERT INTO doc VALUES (1, 'apple'), (2, 'pear')")
        doc.execute("SET LOCAL sqlvec.maintain = off")
        doc.execute("INSERT INTO doc VALUES (3, 'apple fig')")
        doc.execute("UPDATE doc SET body = 'kiwi apple' WHERE id = 2")
        assert value(doc, "SELECT count(body_bm25) + count(body_bm25_tsv) FROM doc") == 2
        assert sorted(ids(doc, "apple")) == [1, 2, 3]
        assert ids(doc, "pear") == []
        assert ids(doc, "+apple -fig kiwi") == [2, 1]
        assert "backfill" in str(
            doc.execute(
                "SELECT * FROM sqlvec.explain_bm25_search(NULL::doc, 'body', 'apple')"
            ).fetchall()
        )

    @pytest.mark.parametrize("how", ["disabled", "enabled again", "repaired", "declared anew"])
    def test_writes_past_the_trigger(self, doc: Connection, how: str) -> None:
        """Searches read the text until the terms have been compared with it."""
        doc.execute("SET LOCAL client_min_messages = error")
        doc.execute("INSERT INTO doc VALUES (1, 'apple'), (2, 'pear'), (3, 'apple pear')")
        doc.execute("CREATE TABLE other AS SELECT * FROM doc")
        analyze(doc)
        doc.execute("ALTER TABLE doc DISABLE TRIGGER ALL")
        doc.execute("UPDATE doc SET body = 'fig' WHERE id = 1")
        doc.execute("INSERT INTO doc VALUES (4, 'apple fig')")
        table = "doc"
        if how != "disabled":
            doc.execute("ALTER TABLE doc ENABLE TRIGGER ALL")
        if how == "repaired":
            doc.execute("CALL sqlvec.repair('doc')")
        if how == "declared anew":
            table = "other"
            doc.execute("UPDATE other SET body = 'fig' WHERE id = 1")
            doc.execute("INSERT INTO other VALUES (4, NULL, NULL), (5, 'fig', NULL)")
            doc.execute("CALL sqlvec.add_bm25('other', 'body', config => 'simple')")
            assert sorted(ids(doc, "fig", table)) == [1, 5]
            assert sorted(ids(doc, "apple", table)) == [3]
        else:
            assert sorted(ids(doc, "fig")) == [1, 4]
            assert sorted(ids(doc, "apple")) == [3, 4]
            assert ids(doc, "apple -pear") == [4]
        assert "may be stale" in str(
            doc.execute(
                f"SELECT * FROM sqlvec.explain_bm25_search(NULL::{table}, 'body', 'fig')"
            ).fetchall()
        )

    def test_backfill(self, fresh: Connection) -> None:
        fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
        fresh.execute("INSERT INTO doc SELECT i, 'apple w' || i FROM generate_series(1, 3000) AS i")
        fresh.execute("INSERT INTO doc VALUES (0, NULL)")
        fresh.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        assert ids(fresh, "apple w7 w2999", k=5) == [7, 2999, 1, 2, 3]
        fresh.execute("CALL sqlvec.backfill('doc')")
        assert value(fresh, "SELECT count(body_bm25) FROM doc") == 3000
        assert ids(fresh, "apple w7 w2999", k=5) == [7, 2999, 1, 2, 3]
        # Statistics that are there count for rows that wait, too.
        fresh.execute("CALL sqlvec.analyze_bm25('doc')")
        before = search(fresh, "apple w7 w2999", k=20)
        fresh.execute("SET sqlvec.maintain = off")
        fresh.execute("UPDATE doc SET body = body || ' ' WHERE id < 10")
        assert search(fresh, "apple w7 w2999", k=20) == before
        fresh.execute("UPDATE doc SET body_bm25 = NULL WHERE id % 2 = 0")
        assert search(fresh, "apple w7 w2999", k=20) == before

    def test_weights_do_not_depend_on_how_the_session_prints_numbers(self, doc: Connection) -> None:
        doc.execute("INSERT INTO doc VALUES (1, 'apple apple pear fig')")
        doc.execute("SET LOCAL extra_float_digits = -15")
        doc.execute("INSERT INTO doc VALUES (2, 'apple apple pear fig')")
        assert value(doc, "SELECT count(DISTINCT body_bm25::text) FROM doc") == 1
        doc.execute("CALL sqlvec.add_bm25('doc', 'note', k1 => 1.23, b => 0.456)")
        doc.execute("SET LOCAL extra_float_digits = 1")
        scores = [score for _, score in search(doc, "apple")]
        assert value(
            doc, "SELECT sqlvec.bm25_score(doc, 'body', 'apple') FROM doc WHERE id = 2"
        ) == (pytest.approx(scores[0], rel=1e-6))

    @pytest.mark.parametrize("options", ["", ", k1 => 0", ", b => 0"])
    @pytest.mark.parametrize(
        "text",
        [
            # Over 1 MB of different words; more terms than a sparsevec holds; tiers that would make
            # the tsvector too long; positions past 16,383; a word that no tsvector holds.
            "(SELECT string_agg(md5(i::text) || md5(i::text), ' ') FROM generate_series(1, 20000) AS i)",
            "(SELECT string_agg('w' || i, ' ') FROM generate_series(1, 20000) AS i)",
            "(SELECT string_agg(repeat(md5(i::text), 2), ' ') FROM generate_series(1, 4000) AS i)",
            "repeat('pear ', 60000)",
            "repeat('x', 2046) || ' ' || repeat('y', 3000) || repeat(' pear', 300)",
            "repeat('x', 2000) || ' ' || repeat('y', 1999)",
            "repeat('é', 1000000)",
            "repeat(E'\\n', 1000000)",
        ],
    )
    def test_huge_documents(self, db: Connection, options: str, text: str) -> None:
        db.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
        db.execute(f"CALL sqlvec.add_bm25('doc', 'body', config => 'simple'{options})")
        db.execute(f"INSERT INTO doc VALUES (1, 'apple ' || {text}), (2, 'apple')")
        assert sorted(ids(db, "apple")) == [1, 2]
        analyze(db)
        assert sorted(ids(db, "apple")) == [1, 2]
        assert ids(db, "apple", k=1)
        db.execute("SET LOCAL sqlvec.maintain = off")
        db.execute("UPDATE doc SET body = body || ' '")
        assert sorted(ids(db, "apple")) == [1, 2]

    def test_backfill_of_huge_tsvectors(self, fresh: Connection) -> None:
        """A stored tsvector is compressed: its size on disk says little."""
        fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, words tsvector)")
        fresh.execute(
            "INSERT INTO doc SELECT 1, (SELECT string_agg(repeat('a', 40) || i || ':1,2,3,4,5,6,7,8,9', ' ')"
            " FROM generate_series(1, 12000) AS i)::tsvector || 'apple'"
        )
        fresh.execute("CALL sqlvec.add_bm25('doc', 'words', config => 'simple', b => 0)")
        fresh.execute("CALL sqlvec.backfill('doc')")
        assert ids(fresh, "apple", column="words") == [1]


# Two words on one dimension, found by trying a hundred thousand.
COLLIDING = ("word8667", "word27309")


class TestCollisions:
    def test_they_collide(self, db: Connection) -> None:
        dimensions = {
            1 + int(hashlib.md5(word.encode()).hexdigest()[:15], 16) % 10**9 for word in COLLIDING
        }
        assert len(dimensions) == 1
        assert dimensions == {
            row[0]
            for row in db.execute(
                "SELECT sqlvec._bm25_dimension(w) FROM unnest(%s::text[]) AS w", [list(COLLIDING)]
            )
        }

    def test_each_word_scores_for_itself(self, doc: Connection) -> None:
        one, other = COLLIDING
        texts = {
            1: f"{one} apple",
            2: f"{other} apple",
            3: f"{one} {other}",
            4: f"{one} {one} {other} apple pear",
            5: "apple",
            6: "pear fig",
        }
        for key, text in texts.items():
            doc.execute("INSERT INTO doc VALUES (%s, %s)", [key, text])
        analyze(doc)
        assert value(doc, "SELECT collisions FROM sqlvec.bm25_health") == 2
        for query in (one, other, f"{one} apple", f"{one} {other}", f"{other} apple -pear"):
            compare(doc, query)

    def test_words_of_one_query_before_they_are_counted(self, doc: Connection) -> None:
        one, other = COLLIDING
        for key, text in enumerate((f"{one} apple", f"{other} {other}", other)):
            doc.execute("INSERT INTO doc VALUES (%s, %s)", [key, text])
        compare(doc, f"{one} {other}")

    def test_a_document_keeps_its_bound(self, doc: Connection) -> None:
        doc.execute("INSERT INTO doc VALUES (1, %s)", [" ".join(COLLIDING * 200)])
        code = value(doc, "SELECT body_bm25::text FROM doc")
        assert code.count(":") == 1
        assert float(code.split(":")[1].split("}")[0]) <= 2.2


def brute_force(
    db: Connection, query: str, table: str = "doc", column: str = "body", where: str = "true"
) -> list[tuple[int, float]]:
    """Score every row that matches from its terms, with the weights of words that a search takes."""
    return db.execute(
        f"""
        SELECT t.id, sqlvec._bm25_score(t.terms, (p.q).lexemes, (p.q).weights, (p.o ->> 'k1')::float8,
                                        (p.o ->> 'b')::float8, (p.o ->> 'average_length')::float8,
                                        sqlvec._bm25_weights(p.o)) AS score
        FROM (SELECT q, ((q).derived).options AS o
              FROM sqlvec._prepare_bm25('{table}'::regclass, %s, %s, NULL, NULL) AS q) AS p,
             (SELECT t.*, {column}_bm25_tsv AS terms FROM {table} AS t WHERE {where}) AS t
        WHERE t.terms @@ (p.q).condition
        ORDER BY 2 DESC, 1
        """,
        [f"{column}_bm25", query],
    ).fetchall()


def compare(db: Connection, query: str, *k: int, where: str = "true", **arguments: Any) -> None:
    """Compare searches for k rows, 10 where it is not said, with a scan."""
    expected = brute_force(db, query, where=where)
    scores = dict(expected)
    for rows in k or (10,):
        found = search(db, query, k=rows, **arguments)
        assert [score for _, score in found] == pytest.approx(
            [score for _, score in expected[:rows]], rel=1e-5, abs=1e-6
        ), query
        for key, score in found:
            assert scores[key] == pytest.approx(score, rel=1e-5, abs=1e-6), query


def skewed(generator: random.Random, words: int) -> str:
    """Make up a text: empty to long, some words many times."""
    chosen = generator.choices(
        [f"w{i}" for i in range(words)],
        [1 / (i + 1) ** generator.choice([0.5, 1, 1.5]) for i in range(words)],
        k=generator.choice([0, 1, 3, 10, 10, 10, 100]),
    )
    if chosen and generator.random() < 0.2:
        chosen += [generator.choice(chosen)] * generator.choice([5, 60, 300])
    return " ".join(chosen)


class TestTiers:
    """The bounds that save work never cost a hit: against a scan over all rows."""

    @pytest.mark.parametrize("stage", ["counted", "never counted", "suspect", "waiting rows"])
    @pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (1.2, 0), (0, 0.75), (100, 1)])
    def test_same_as_a_scan(self, doc: Connection, k1: float, b: float, stage: str) -> None:
        generator = random.Random(f"{k1} {b} {stage}")
        doc.execute("CALL sqlvec.drop_derived('doc', 'body_bm25')")
        doc.execute(
            f"CALL sqlvec.add_bm25('doc', 'body', config => 'simple', k1 => {k1}, b => {b})"
        )
        words = generator.choice([5, 40, 200])
        with doc.cursor().copy("COPY doc (id, body) FROM STDIN") as copy:
            for key in range(2500):
                copy.write_row((key, None if key % 50 == 7 else skewed(generator, words)))
        if stage != "never counted":
            analyze(doc)
        if stage == "suspect":
            doc.execute("UPDATE sqlvec.derived SET suspect = true, reweighed = true")
        if stage == "waiting rows":
            with doc.transaction():
                doc.execute("SET LOCAL sqlvec.maintain = off")
                doc.execute("UPDATE doc SET body_bm25 = NULL WHERE id % 3 = 0")
        for number in range(8):
            query = " ".join(f"w{generator.randrange(words)}" for _ in range(1 + number % 6))
            query += generator.choice(["", "", " -w1", " +w2", " w3*", " +w1*", ' "w1 w2"'])
            compare(doc, query, 1, 10, 300, 10000)
            compare(doc, query, 10, filter='{"id": {"$lt": 900}}', where="id < 900")

    def test_fields(self, db: Connection) -> None:
        generator = random.Random(5)
        db.execute("CREATE TABLE doc (id int PRIMARY KEY, body text, title text)")
        db.execute(
            "CALL sqlvec.add_bm25('doc', NULL, config => 'simple', target => 'body_bm25',"
            """ fields => '{"title": 40, "body": 0.5}')"""
        )
        with db.cursor().copy("COPY doc (id, body, title) FROM STDIN") as copy:
            for key in range(2500):
                copy.write_row((key, skewed(generator, 30), skewed(generator, 30)[:20]))
        analyze(db)
        for number in range(20):
            query = " ".join(f"w{generator.randrange(30)}" for _ in range(1 + number % 5))
            compare(db, query, generator.choice([1, 10, 100]), column="body_bm25")

    def test_equal_scores_by_key(self, doc: Connection) -> None:
        keys = list(range(3000))
        random.Random(1).shuffle(keys)
        with doc.cursor().copy("COPY doc (id, body) FROM STDIN") as copy:
            for key in keys:
                copy.write_row((key, "apple pear"))
        for k in (1, 10, 1000, 3000):
            assert ids(doc, "apple pear", k=k) == list(range(k))
        analyze(doc)
        for k in (1, 10, 1000, 3000):
            assert ids(doc, "apple pear", k=k) == list(range(k))


class TestSearch:
    @pytest.fixture
    def fruit(self, doc: Connection) -> Connection:
        for key, text in enumerate(
            [
                "apple pear apple",
                "pear fig quick",
                "the apple tree and the pear tree",
                "fig",
                "apple-tart and e-mail",
                "",
                None,
                "O'Reilly's \\ back",
            ]
        ):
            doc.execute("INSERT INTO doc VALUES (%s, %s, %s)", [key, text, f"note{key % 2}"])
        return doc

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("apple", {0, 2, 4}),
            ("apple fig", {0, 1, 2, 3, 4}),
            ("+apple fig", {0, 2, 4}),
            ("+apple +pear", {0, 2}),
            ("apple -pear", {4}),
            ("-pear apple", {4}),
            ("-pear", set()),
            ("-pear -fig", set()),
            ('"apple pear"', {0}),
            ('"pear apple"', {0}),
            ('"apple tree" fig', {2}),
            ('-"apple tree" apple', {0, 4}),
            ('"apple tree" or fig', {1, 2, 3}),
            ('fig or "apple tree" or tart', {1, 2, 3, 4}),
            ('fig or tart or "apple tree"', {1, 2, 3, 4}),
            ("fig OR tart", {1, 3, 4}),
            ("+fig or +tart", {1, 3, 4}),
            ("or", set()),
            ("or or or fig", {1, 3}),
            ("app*", {0, 2, 4}),
            ("+app* fig", {0, 2, 4}),
            ("+app* -pear", {4}),
            ("app* -tar*", {0, 2}),
            ("nothing apple", {0, 2, 4}),
            ("nothing", set()),
            ("", set()),
            ("   ", set()),
            ('"', set()),
            ('""', set()),
            ("+", set()),
            ("-", set()),
            ("*", set()),
            ("+-*", set()),
            ('"apple', {0, 2, 4}),
            ("e-mail", {4}),
            ("'", set()),
            ("\\", set()),
            ("o'reilly", {7}),
            ("back\\", {7}),
            ("'apple' | 'fig' & !('x')", {0, 1, 2, 3, 4}),
            ("\x01apple", {0, 2, 4}),
            ("\x05", set()),
            ("\x01apple*", {0, 2, 4}),
            ("APPLE", {0, 2, 4}),
            ("ÄÖÜ 🍎 漢字 \u202e \ufeff apple", {0, 2, 4}),
            ("app\u0301le", set()),
            ("%s %I $1 apple", {0, 2, 4, 7}),
        ],
    )
    def test_language(self, fruit: Connection, query: str, found: set[int]) -> None:
        assert set(ids(fruit, query)) == found
        analyze(fruit)
        assert set(ids(fruit, query)) == found
        assert fruit.execute(
            "SELECT sqlvec.bm25_tsquery(NULL::doc, 'body', %s), sqlvec.bm25_query(NULL::doc, 'body', %s)",
            [query, query],
        ).fetchone()
        fruit.execute("SELECT sqlvec.bm25_score(d, 'body', %s) FROM doc AS d", [query])
        fruit.execute("SELECT sqlvec.bm25_headline(d, 'body', %s) FROM doc AS d", [query])
        fruit.execute("SELECT * FROM sqlvec.explain_bm25_search(NULL::doc, 'body', %s)", [query])

    def test_completions_score(self, fruit: Connection) -> None:
        analyze(fruit)
        for query in ("app*", "+app*"):
            assert min(score for _, score in search(fruit, query)) > 0

    def test_what_matches_by_a_prefix_alone_is_found(self, doc: Connection) -> None:
        doc.execute(
            "INSERT INTO doc SELECT i, 'apple' || i || CASE WHEN i %% 2 = 0 THEN ' fig' ELSE '' END"
            " FROM generate_series(1, 5000) AS i",
            [],
        )
        analyze(doc)
        for query in ("+apple* fig", "apple* fig"):
            assert len(ids(doc, query, k=10000)) == 5000

    @pytest.mark.parametrize(
        "query",
        [
            " ".join(f"w{i}" for i in range(20000)),
            " ".join(f"+w{i}" for i in range(3000)),
            " ".join(f"-w{i}" for i in range(3000)) + " apple",
            " ".join(f"w{i}*" for i in range(2000)),
            " ".join("abcdefghijklmnopqrstuvwxyz"[i % 26] + "*" for i in range(4000)),
            '"a b" or ' * 2000,
            "apple " * 20000,
            "x" * 100000,
            "'" * 100000,
            '"' * 100000,
            "(" * 100000,
            "-" * 100000,
            " or " * 30000,
        ],
        ids=lambda query: query[:8],
    )
    def test_very_long_queries(self, doc: Connection, query: str) -> None:
        doc.execute("SET LOCAL client_min_messages = error")
        doc.execute(
            "INSERT INTO doc SELECT i, 'apple w' || i || ' w' || i %% 7 FROM generate_series(1, 3000) AS i",
            [],
        )
        analyze(doc)
        doc.execute("SET LOCAL statement_timeout = '20s'")
        search(doc, query)

    def test_arguments_are_checked(self, doc: Connection) -> None:
        for arguments, message in (
            ("'body', NULL", "the query is NULL"),
            ("'body', 'x', k => 0", "k is a number from 1 to 10000, not 0"),
            ("'body', 'x', k => 10001", "k is a number from 1 to 10000, not 10001"),
            ("'body', 'x', k => NULL", "k is a number"),
            ("'note', 'x'", 'has no BM25 column on "note"'),
            ("'nope', 'x'", 'column "nope" .* does not exist'),
            ("'body', 'x', backend => 'nope'", 'backend "nope" is unknown'),
            ("'body', 'x', backend => 'paradedb'", "no index of paradedb"),
            ("'body', 'x', tenant => 'a'", "was not declared with a tenant"),
            ("'body', 'x', filter => '[]'", "a JSON object is needed"),
            ("'body', 'x', filter => '{\"nope\": 1}'", 'column "nope" .* does not exist'),
            ("'body', 'x', candidates => 20, oversample => 2", "give one"),
            ("'body', 'x', where_sql => 'nope = 1'", 'column "nope" does not exist'),
        ):
            fails(doc, f"SELECT sqlvec.bm25_search(NULL::doc, {arguments})", message)
        fails(doc, "SELECT sqlvec.bm25_search(NULL::int, 'body', 'x')", "typed NULL row")

    @pytest.mark.parametrize(
        "attack",
        ["'; DROP TABLE doc; --", '"; DROP TABLE doc; --', "$$", "\\'", "%I", "{1,2}", ")"],
    )
    def test_values_never_become_sql(self, fruit: Connection, attack: str) -> None:
        analyze(fruit)
        assert search(fruit, attack) == []
        assert search(fruit, "apple", filter=Jsonb({"note": attack})) == []
        assert search(fruit, "apple", where_sql="doc.note = ($1)[1]", params=[attack], k=3) == []
        for argument in ("column_name", "backend", "tenant", "key"):
            with pytest.raises(psycopg.Error) as caught, fruit.transaction():
                if argument == "column_name":
                    search(fruit, "apple", column=attack)
                elif argument == "key":
                    fruit.execute(
                        "SELECT * FROM sqlvec.bm25_search_keys(NULL::doc, 'body', 'apple',"
                        " key => NULL::int, key_column => %s)",
                        [attack],
                    )
                else:
                    search(fruit, "apple", **{argument: attack})
            assert not isinstance(caught.value, psycopg.errors.SyntaxError)
        fails(
            fruit,
            "SELECT sqlvec.bm25_search(NULL::doc, 'body', 'apple', filter => %s)",
            "filter: unknown operator|does not exist",
            Jsonb({attack: 1}),
        )
        assert value(fruit, "SELECT count(*) FROM doc") == 8

    def test_where_sql(self, fruit: Connection) -> None:
        fruit.execute("CREATE TABLE allowed (id int)")
        fruit.execute("INSERT INTO allowed VALUES (2), (3)")
        where = "doc.id IN (SELECT a.id FROM allowed AS a) AND doc.id > ($1)[1]::int -- why"
        assert ids(fruit, "apple pear fig", where_sql=where, params=["2"]) == [3]
        assert ids(fruit, "apple", where_sql="true", filter='{"note": "note0"}') == [0, 2, 4]
        assert ids(fruit, "apple", where_sql="NULL") == []
        assert ids(fruit, "apple", where_sql="false OR true", filter='{"id": 2}') == [2]

    @pytest.mark.parametrize(
        "key_type", ["uuid", "text", "timestamptz", "numeric", 'text COLLATE "C"']
    )
    def test_types_of_keys(self, db: Connection, key_type: str) -> None:
        literal = {
            "uuid": "('00000000-0000-0000-0000-00000000000' || i)::uuid",
            "timestamptz": "'2026-01-01'::timestamptz + i * interval '1 day'",
            "numeric": "i + 0.5",
        }.get(key_type, "'k' || i")
        db.execute(f"CREATE TABLE doc (id {key_type} PRIMARY KEY, body text)")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        db.execute(f"INSERT INTO doc SELECT {literal}, 'apple' FROM generate_series(9, 1, -1) AS i")
        plain = key_type.split()[0]
        keys = [row[0] for row in db.execute("SELECT id FROM doc ORDER BY id")]
        assert ids(db, "apple", k=5) == keys[:5]
        found = db.execute(
            f"SELECT key FROM sqlvec.bm25_search_keys(NULL::doc, 'body', 'apple', key => NULL::{plain}, k => 5)"
        ).fetchall()
        assert [key for (key,) in found] == keys[:5]

    def test_composite_keys_and_none(self, db: Connection) -> None:
        db.execute("CREATE TABLE doc (a int, id int, body text, PRIMARY KEY (a, id))")
        db.execute("CREATE TABLE bare (id int, body text)")
        for table in ("doc", "bare"):
            db.execute(f"CALL sqlvec.add_bm25('{table}', 'body', config => 'simple')")
        db.execute("INSERT INTO doc SELECT i % 3, i, 'apple' FROM generate_series(12, 1, -1) AS i")
        db.execute("INSERT INTO bare SELECT i, 'apple' FROM generate_series(12, 1, -1) AS i")
        assert ids(db, "apple", k=6) == [3, 6, 9, 12, 1, 4]
        assert ids(db, "apple", "bare", k=3) == [12, 11, 10]
        keys = "SELECT key FROM sqlvec.bm25_search_keys(NULL::{}, 'body', 'apple', key => NULL::int, k => 2"
        fails(db, keys.format("doc") + ")", "has a composite primary key")
        fails(db, keys.format("bare") + ")", "has no primary key")
        assert db.execute(keys.format("bare") + ", key_column => 'id')").fetchall() == [(1,), (2,)]

    def test_settings_are_put_back(self, fruit: Connection) -> None:
        show = "SELECT current_setting('enable_seqscan'), current_setting('jit')"
        fruit.execute("SET LOCAL enable_seqscan = on")
        fruit.execute("SET LOCAL jit = on")
        before = fruit.execute(show).fetchone()
        search(fruit, "apple")
        fruit.execute("SELECT * FROM sqlvec.explain_bm25_search(NULL::doc, 'body', 'apple')")
        assert fruit.execute(show).fetchone() == before
        with pytest.raises(psycopg.errors.DivisionByZero), fruit.transaction():
            search(fruit, "apple", where_sql="1 / (doc.id - doc.id) = 1")
        assert fruit.execute(show).fetchone() == before
        # Caught where no savepoint of the client is.
        fruit.execute(
            "DO $$ BEGIN PERFORM sqlvec.bm25_search(NULL::doc, 'body', 'apple', where_sql => '1 / (doc.id - doc.id) = 1');"
            " EXCEPTION WHEN division_by_zero THEN NULL; END $$"
        )
        assert fruit.execute(show).fetchone() == before

    @pytest.mark.parametrize("setting", SETTINGS)
    def test_settings_of_the_session(self, dsn: str, setting: str) -> None:
        """Functions compile under the settings of their first call: each in a session of its own."""
        with psycopg.connect(dsn) as session:
            session.execute(f"SET LOCAL {setting}")
            session.execute("CREATE TABLE public.doc (id int PRIMARY KEY, body text, note text)")
            session.execute("CALL sqlvec.add_bm25('public.doc', 'body', config => 'simple')")
            session.execute(
                "INSERT INTO public.doc SELECT i, 'null apple o''back' || i || ' w' || i % 9, 'a' FROM generate_series(1, 50) AS i"
            )
            for _ in range(2):
                found = ids(
                    session,
                    """app* +w7 "null apple" -"o'back7" -\\ -w1*""",
                    "public.doc",
                    filter='{"note": "a", "id": {"$lt": 40}}',
                    k=3,
                )
                assert found == [16, 25, 34]
                analyze(session, "public.doc")
            session.rollback()

    def test_read_only_transaction(self, fresh: Connection) -> None:
        fresh.execute("CREATE TABLE doc (id int PRIMARY KEY, body text)")
        fresh.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        fresh.execute("INSERT INTO doc VALUES (1, 'apple')")
        fresh.execute("SET default_transaction_read_only = on")
        assert ids(fresh, "apple") == [1]

    def test_inside_larger_statements(self, fruit: Connection) -> None:
        analyze(fruit)
        assert fruit.execute(
            "SELECT q, array_agg((s.hit).id ORDER BY s.score DESC, (s.hit).id)"
            " FROM unnest(ARRAY['apple', 'fig', 'nothing']) AS q,"
            " LATERAL sqlvec.bm25_search(NULL::doc, 'body', q, k => 2) AS s GROUP BY q ORDER BY q"
        ).fetchall() == [("apple", [0, 2]), ("fig", [3, 1])]
        assert fruit.execute(
            "WITH found AS (SELECT key, score FROM sqlvec.bm25_search_keys(NULL::doc, 'body', 'apple', key => NULL::int))"
            " SELECT d.id, found.score > 0 FROM doc AS d JOIN found ON found.key = d.id"
            " ORDER BY found.score DESC"
        ).fetchall() == [(0, True), (2, True), (4, True)]

    def test_a_statement_sees_one_snapshot(self, doc: Connection) -> None:
        """A search does not see what its own statement has written."""
        doc.execute("INSERT INTO doc VALUES (1, 'apple')")
        assert (
            value(
                doc,
                "WITH added AS (INSERT INTO doc VALUES (2, 'apple') RETURNING id)"
                " SELECT (SELECT count(*) FROM sqlvec.bm25_search(NULL::doc, 'body', 'apple'))"
                " FROM added",
            )
            == 1
        )
        assert ids(doc, "apple") == [1, 2]

    def test_empty_table(self, doc: Connection) -> None:
        assert search(doc, "apple") == []
        analyze(doc)
        assert search(doc, "apple +pear fig* -kiwi") == []
        doc.execute("INSERT INTO doc VALUES (1, ''), (2, NULL)")
        analyze(doc)
        assert search(doc, "apple") == []

    def test_score_of_the_search_and_of_a_row(self, fruit: Connection) -> None:
        for counted in (False, True):
            if counted:
                analyze(fruit)
            for key, score in search(fruit, "apple pear pear"):
                assert value(
                    fruit,
                    "SELECT sqlvec.bm25_score(d, 'body', 'apple pear pear') FROM doc AS d WHERE id = %s",
                    key,
                ) == pytest.approx(score, rel=1e-6)

    def test_partitions(self, db: Connection) -> None:
        db.execute("CREATE TABLE doc (id int, body text, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
        # Columns of the partitions stand in another order.
        db.execute("CREATE TABLE doc_1 (gone int, body text, id int NOT NULL)")
        db.execute("ALTER TABLE doc_1 DROP COLUMN gone")
        db.execute("ALTER TABLE doc ATTACH PARTITION doc_1 FOR VALUES FROM (0) TO (100)")
        db.execute("CREATE TABLE doc_2 PARTITION OF doc FOR VALUES FROM (100) TO (200)")
        db.execute("INSERT INTO doc VALUES (50, 'apple')")
        db.execute("CALL sqlvec.add_bm25('doc', 'body', config => 'simple')")
        db.execute("INSERT INTO doc VALUES (1, 'apple pear'), (101, 'apple apple'), (102, 'fig')")
        assert sorted(ids(db, "apple")) == [1, 50, 101]
        analyze(db)
        whole = dict(search(db, "apple pear fig"))
        assert len(whole) == 4
        for part, keys in (("doc_1", {1, 50}), ("doc_2", {101, 102})):
            assert dict(search(db, "apple pear fig", part)) == {key: whole[key] for key in keys}
        db.execute("ALTER TABLE doc DETACH PARTITION doc_2")
        assert sorted(ids(db, "apple")) == [1, 50]
        fails(db, "SELECT sqlvec.bm25_search(NULL::doc_2, 'body', 'x')", "has no BM25 column")
        db.execute("UPDATE doc_2 SET body = 'kiwi' WHERE id = 102")
        db.execute("INSERT INTO doc_2 VALUES (103, 'apple')")
        db.execute("ALTER TABLE doc ATTACH PARTITION doc_2 FOR VALUES FROM (100) TO (200)")
        assert sorted(ids(db, "apple")) == [1, 50, 101, 103]
