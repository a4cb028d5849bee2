"""Declaring quantized columns, and the trigger that keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from tests.db import vectors

MATCHES = "SELECT bool_and(code IS NOT DISTINCT FROM binary_quantize(embedding)::bit(4)) FROM doc"


def run(conn: Connection, statement: str, **values: Any) -> Any:
    return conn.execute(text(statement), values)


def scalar(conn: Connection, statement: str, **values: Any) -> Any:
    return run(conn, statement, **values).scalar()


@pytest.fixture
def doc(conn: Connection) -> Connection:
    run(conn, "CREATE TABLE doc (id bigint PRIMARY KEY, embedding vector(4), note text)")
    run(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    return conn


def fails(conn: Connection, statement: str, *fragments: str, **values: Any) -> None:
    """Expect an error that says all the fragments, and changes nothing."""
    before = catalog_rows(conn)
    with pytest.raises(DBAPIError) as caught, conn.begin_nested():
        run(conn, statement, **values)
    message = str(caught.value.orig)
    for fragment in fragments:
        assert fragment in message
    assert catalog_rows(conn) == before


def catalog_rows(conn: Connection) -> list[Any]:
    return [
        run(conn, f"SELECT * FROM {table} ORDER BY 1, 2").all()
        for table in ("sqlvec.encoder", "sqlvec.relation", "sqlvec.derived", "pg_attribute")
    ]


def test_new_rows_get_their_code(doc: Connection) -> None:
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]'), (2, NULL)")
    assert run(doc, "SELECT id, code::text FROM doc ORDER BY id").all() == [(1, "1001"), (2, None)]


def test_code_follows_the_source(doc: Connection) -> None:
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]'), (2, NULL)")
    run(doc, "UPDATE doc SET embedding = '[-1,1,1,-1]' WHERE id = 1")
    assert scalar(doc, "SELECT code::text FROM doc WHERE id = 1") == "0110"
    run(doc, "UPDATE doc SET embedding = '[1,1,1,1]' WHERE id = 2")
    assert scalar(doc, MATCHES)
    run(doc, "UPDATE doc SET embedding = NULL")
    assert scalar(doc, "SELECT count(code) FROM doc") == 0


def test_code_cannot_be_forged(doc: Connection) -> None:
    run(doc, "INSERT INTO doc (id, embedding, code) VALUES (1, '[1,-1,0,2]', B'1111')")
    assert scalar(doc, MATCHES)
    run(doc, "UPDATE doc SET code = B'1111'")
    assert scalar(doc, MATCHES)
    run(doc, "UPDATE doc SET code = NULL, note = 'x'")
    assert scalar(doc, MATCHES)


def test_own_triggers_of_the_application_come_first(doc: Connection) -> None:
    run(
        doc,
        "CREATE FUNCTION negate() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.embedding := (NEW.embedding * '[-1,-1,-1,-1]'); RETURN NEW; END $$",
    )
    run(
        doc,
        "CREATE TRIGGER zzzz BEFORE INSERT OR UPDATE ON doc FOR EACH ROW EXECUTE FUNCTION negate()",
    )
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert scalar(doc, "SELECT code::text FROM doc") == "0100"
    run(doc, "UPDATE doc SET note = 'only the trigger changes the vector'")
    assert scalar(doc, "SELECT code::text FROM doc") == "1001"


def test_on_conflict(doc: Connection) -> None:
    for vector in ("[1,-1,0,2]", "[-1,1,1,-1]"):
        run(
            doc,
            "INSERT INTO doc VALUES (1, :vector)"
            " ON CONFLICT (id) DO UPDATE SET embedding = EXCLUDED.embedding",
            vector=vector,
        )
    assert scalar(doc, "SELECT code::text FROM doc") == "0110"


def test_copy(tmp_database: Callable[..., str]) -> None:
    with psycopg.connect(tmp_database(), autocommit=True) as connection:
        connection.execute("CREATE TABLE doc (id int, embedding vector(4))")
        connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        with connection.cursor().copy("COPY doc (id, embedding) FROM STDIN") as copy:
            copy.write_row((1, "[1,-1,0,2]"))
            copy.write_row((2, None))
        assert connection.execute("SELECT id, code::text FROM doc ORDER BY 1").fetchall() == [
            (1, "1001"),
            (2, None),
        ]


def test_maintain_off_leaves_no_stale_code(doc: Connection) -> None:
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]'), (2, '[1,1,1,1]')")
    run(doc, "SET LOCAL sqlvec.maintain = off")
    run(doc, "UPDATE doc SET embedding = '[-1,1,1,-1]' WHERE id = 1")
    run(doc, "UPDATE doc SET note = 'x' WHERE id = 2")
    run(doc, "INSERT INTO doc VALUES (3, '[1,1,1,1]')")
    run(doc, "INSERT INTO doc (id, embedding, code) VALUES (4, '[1,1,1,1]', B'1111')")
    codes = {key: code for key, code in run(doc, "SELECT id, code::text FROM doc")}
    assert codes == {1: None, 2: "1111", 3: None, 4: "1111"}


@pytest.mark.parametrize("maintain", ["on", "off"])
@pytest.mark.parametrize("renamed", ["embedding", "code", "both"])
def test_renamed_columns_are_followed(doc: Connection, renamed: str, maintain: str) -> None:
    source, target = "embedding", "code"
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]'), (2, '[1,1,1,1]')")
    if renamed in ("embedding", "both"):
        source = 'The "source"'
        run(doc, 'ALTER TABLE doc RENAME embedding TO "The ""source"""')
    if renamed in ("code", "both"):
        target = "CODE"
        run(doc, 'ALTER TABLE doc RENAME code TO "CODE"')
    quoted_source, quoted_target = source.replace('"', '""'), target
    check = (
        f'SELECT array_agg("{quoted_target}" ='
        f' binary_quantize("{quoted_source}")::bit(4) ORDER BY id) FROM doc'
    )
    for mended in (False, True):
        if mended:
            run(doc, "CALL sqlvec.repair('doc')")
        run(doc, f"SET LOCAL sqlvec.maintain = {maintain}")
        run(doc, f"UPDATE doc SET \"{quoted_source}\" = '[-1,1,1,-1]' WHERE id = 1")
        run(doc, "DELETE FROM doc WHERE id = 3")
        run(doc, f"INSERT INTO doc (id, \"{quoted_source}\") VALUES (3, '[1,-1,1,-1]')")
        run(doc, "UPDATE doc SET note = 'y'")
        run(doc, "SET LOCAL sqlvec.maintain = on")
        assert scalar(doc, check) == (
            [True, True, True] if maintain == "on" else [None, True, None]
        )
        problem = scalar(doc, "SELECT problem FROM sqlvec.derived_column")
        assert (problem is None) == mended
        run(doc, f'UPDATE doc SET "{quoted_target}" = NULL')
        assert scalar(doc, check) == [True, True, True]
        run(doc, f"UPDATE doc SET \"{quoted_source}\" = '[1,-1,0,2]' WHERE id = 1")
    found = run(doc, "SELECT source_column, target_column FROM sqlvec.derived_column").one()
    assert found == (source, target)


def test_renamed_table_is_followed(doc: Connection) -> None:
    run(doc, "CREATE SCHEMA other")
    run(doc, "ALTER TABLE doc RENAME TO article")
    run(doc, "ALTER TABLE article SET SCHEMA other")
    run(doc, "INSERT INTO other.article VALUES (1, '[1,-1,0,2]')")
    assert scalar(doc, "SELECT code::text FROM other.article") == "1001"
    assert scalar(doc, "SELECT relation::text FROM sqlvec.derived_column") == "other.article"
    assert scalar(doc, "SELECT problem FROM sqlvec.derived_column") is None
    # The old name is free for another table with codes of its own.
    run(doc, "CREATE TABLE doc (embedding vector(2))")
    run(doc, "CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec')")
    run(doc, "CALL sqlvec.drop_derived('other.article', 'code')")
    assert scalar(doc, "SELECT relation::text FROM sqlvec.derived_column") == "doc"


def test_columns_dropped_by_hand(doc: Connection) -> None:
    run(doc, "CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec')")
    run(doc, "ALTER TABLE doc DROP code")
    run(doc, "INSERT INTO doc (id, embedding) VALUES (1, '[1,-1,0,2]')")
    assert scalar(doc, "SELECT embedding_halfvec::text FROM doc") == "[1,-1,0,2]"
    problem = scalar(doc, "SELECT problem FROM sqlvec.derived_column WHERE target_column = 'code'")
    assert problem == "column \"code\" is gone; CALL sqlvec.drop_derived('doc', 'code');"
    run(doc, problem.split("; ", 1)[1])
    run(doc, "ALTER TABLE doc DROP embedding")
    run(doc, "INSERT INTO doc (id) VALUES (2)")
    problem = scalar(doc, "SELECT problem FROM sqlvec.derived_column")
    run(doc, problem.split("; ", 1)[1])
    run(doc, "INSERT INTO doc (id) VALUES (3)")
    assert scalar(doc, "SELECT count(*) FROM sqlvec.relation") == 0


def test_column_dropped_by_hand_and_declared_again(doc: Connection) -> None:
    run(doc, "ALTER TABLE doc DROP code")
    run(doc, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert scalar(doc, "SELECT code::text FROM doc") == "1001"
    assert scalar(doc, "SELECT count(*) FROM sqlvec.derived_column") == 1


def test_table_dropped_and_made_again(doc: Connection) -> None:
    """The catalog knew the dropped table by the same name."""
    run(doc, "DROP TABLE doc")
    assert scalar(doc, "SELECT count(*) FROM sqlvec.derived_column") == 0
    run(doc, "CREATE TABLE doc (id bigint PRIMARY KEY, embedding vector(4), code bit(4))")
    run(doc, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert scalar(doc, "SELECT code::text FROM doc") == "1001"
    assert scalar(doc, "SELECT count(*) FROM sqlvec.encoder") == 1
    assert scalar(doc, "SELECT count(*) FROM sqlvec.relation") == 1
    functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'maintain\\_%'"
    assert doc.exec_driver_sql(functions.replace("%", "%%")).scalar() == 1


@pytest.mark.parametrize(
    "harm", ['DROP TRIGGER "~sqlvec" ON doc', "ALTER TABLE doc DISABLE TRIGGER ALL"]
)
def test_repair_puts_the_trigger_back(doc: Connection, harm: str) -> None:
    run(doc, harm)
    assert "CALL sqlvec.repair" in scalar(doc, "SELECT problem FROM sqlvec.derived_column")
    run(doc, "CALL sqlvec.repair('doc')")
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert scalar(doc, "SELECT code::text FROM doc") == "1001"
    assert scalar(doc, "SELECT problem FROM sqlvec.derived_column") == (
        "codes may be stale; CALL sqlvec.backfill('doc', 'code');"
    )


ODD = [
    "plain",
    "Upper Case",
    'quo"te',
    "apo'strophe",
    "per%cent",
    "doll$ar",
    "ünïcödé",
    "x" * 63,
    "select",
]


@pytest.mark.parametrize("name", ODD)
def test_odd_names(conn: Connection, name: str) -> None:
    table = sql.Identifier(name, name).as_string()
    column = sql.Identifier(name).as_string()
    conn.exec_driver_sql(f"CREATE SCHEMA {column}".replace("%", "%%"))
    conn.exec_driver_sql(
        f"CREATE TABLE {table} (id uuid PRIMARY KEY DEFAULT gen_random_uuid(),"
        f" {column} vector(4))".replace("%", "%%")
    )
    for encoder in ("binary", "linear"):
        run(
            conn,
            "CALL sqlvec.add_quantized(CAST(:rel AS regclass), :column, :encoder, options => :options)",
            rel=table,
            column=name,
            encoder=encoder,
            options='{"dimensions": 2}' if encoder == "linear" else None,
        )
    conn.exec_driver_sql(f"INSERT INTO {table} ({column}) VALUES ('[1,-1,0,2]')".replace("%", "%%"))
    targets = run(conn, "SELECT target_column FROM sqlvec.derived_column").scalars().all()
    assert len(targets) == 2
    assert all(len(target.encode()) <= 63 for target in targets)
    hit = run(
        conn,
        f"SELECT s.key IS NOT NULL FROM sqlvec.vector_search_keys(NULL::{table}, :column,"
        " '[1,0,0,0]', key => NULL::uuid) AS s".replace(":column", ":column"),
        column=name,
    )
    assert hit.all() == [(True,)]
    for target in targets:
        run(
            conn,
            "CALL sqlvec.drop_derived(CAST(:rel AS regclass), :target)",
            rel=table,
            target=target,
        )
    assert scalar(conn, "SELECT count(*) FROM sqlvec.encoder") == 0


def test_partitioned_table(conn: Connection) -> None:
    run(conn, "CREATE TABLE doc (id int, note text, embedding vector(4)) PARTITION BY RANGE (id)")
    run(conn, "CREATE TABLE doc_1 PARTITION OF doc FOR VALUES FROM (0) TO (10)")
    # Columns of a partition may stand in another order.
    run(conn, "CREATE TABLE doc_2 (embedding vector(4), dropped int, id int, note text)")
    run(conn, "ALTER TABLE doc_2 DROP dropped")
    run(conn, "ALTER TABLE doc ATTACH PARTITION doc_2 FOR VALUES FROM (10) TO (20)")
    run(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    run(conn, "CREATE TABLE doc_3 PARTITION OF doc FOR VALUES FROM (20) TO (30)")
    run(
        conn,
        "INSERT INTO doc VALUES (1, '', '[1,-1,0,2]'), (11, '', '[1,1,1,1]'), (21, '', '[-1,1,-1,-1]')",
    )
    assert scalar(conn, MATCHES)
    run(conn, "UPDATE doc SET id = 2, embedding = '[1,1,1,1]' WHERE id = 21")
    assert scalar(conn, MATCHES)
    run(conn, "ALTER TABLE doc RENAME embedding TO vec")
    run(conn, "INSERT INTO doc (id, vec) VALUES (12, '[1,-1,0,2]')")
    assert scalar(conn, MATCHES.replace("embedding", "vec"))
    run(conn, "CALL sqlvec.repair('doc')")
    run(conn, "INSERT INTO doc_2 (id, vec) VALUES (13, '[1,-1,0,2]')")
    assert scalar(conn, MATCHES.replace("embedding", "vec"))
    fails(
        conn,
        "CALL sqlvec.add_quantized('doc_1', 'vec', 'halfvec')",
        "table public.doc_1 is a partition",
        "Add the column to the partitioned table: public.doc",
    )


def test_composed_encoders(conn: Connection) -> None:
    run(conn, "CREATE TABLE doc (id int, embedding vector(8))")
    run(
        conn,
        """CALL sqlvec.add_quantized('doc', 'embedding', 'truncate', 'short', options => '{"dimensions": 4}')""",
    )
    run(conn, "CALL sqlvec.add_quantized('doc', 'short', 'binary', 'bits')")
    run(conn, "INSERT INTO doc VALUES (1, '[3,-4,0,0,1,1,1,1]')")
    assert run(conn, "SELECT short::text, bits::text FROM doc").one() == (
        "[0.60009766,-0.7998047,0,0]",
        "1000",
    )
    run(conn, "UPDATE doc SET embedding = '[0,0,-3,4,1,1,1,1]'")
    assert scalar(conn, "SELECT bits::text FROM doc") == "0001"


def test_codes_of_an_unknown_encoder_are_left_aside_until_compared(autocommit: Connection) -> None:
    for statement in (
        "CREATE TABLE doc (id int PRIMARY KEY, embedding vector(3), embedding_binary bit(3))",
        "INSERT INTO doc VALUES (1, '[1,1,1]', B'000'), (2, '[1,-1,1]', B'101')",
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary')",
    ):
        autocommit.exec_driver_sql(statement)
    suspect = text("SELECT suspect FROM sqlvec.derived")
    assert autocommit.scalar(suspect)
    autocommit.exec_driver_sql("CALL sqlvec.backfill('doc')")
    assert not autocommit.scalar(suspect)
    codes = autocommit.scalars(text("SELECT embedding_binary::text FROM doc ORDER BY id")).all()
    assert codes == ["111", "101"]


def test_existing_column_is_adopted(conn: Connection) -> None:
    run(conn, "CREATE TABLE doc (id int, embedding vector(4), code bit(4), wide bit(5))")
    run(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    run(conn, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert scalar(conn, MATCHES)
    fails(
        conn,
        "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'wide')",
        'column "wide" of table public.doc is of type bit(5)',
        "makes bit(4)",
    )


def test_column_without_dimensions(conn: Connection) -> None:
    run(conn, "CREATE TABLE doc (id int, embedding vector)")
    fails(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary')", "names no dimensions")
    run(conn, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    run(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    run(conn, "INSERT INTO doc VALUES (2, '[1,-1,0,2]')")
    fails(
        conn,
        "INSERT INTO doc VALUES (3, '[1,2,3]')",
        'column "embedding" of table public.doc takes vectors of 4 dimensions for its derived column "code", not 3',
    )


def test_dimensions_changed_under_the_code(doc: Connection) -> None:
    run(doc, "ALTER TABLE doc ALTER embedding TYPE vector(3)")
    fails(
        doc,
        "INSERT INTO doc VALUES (3, '[1,2,3]')",
        'takes vectors of 4 dimensions for its derived column "code", not 3',
        "CALL sqlvec.drop_derived('public.doc', 'code'); and declare it anew.",
    )


@pytest.mark.parametrize("slow", [False, True])
def test_value_that_cannot_be_encoded(conn: Connection, slow: bool) -> None:
    run(conn, "CREATE TABLE doc (id int, embedding vector(2), other vector(2))")
    run(conn, "CALL sqlvec.add_quantized('doc', 'other', 'binary', 'bits')")
    run(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'halfvec', 'code')")
    source = "embedding"
    if slow:
        source = "renamed"
        run(conn, "ALTER TABLE doc RENAME embedding TO renamed")
    run(conn, "INSERT INTO doc VALUES (1, '[1,2]', '[1e38,1]')")
    for statement in (
        "INSERT INTO doc VALUES (2, '[1e38,1]', '[1,2]')",
        f"UPDATE doc SET {source} = '[1e38,1]'",
    ):
        with pytest.raises(DBAPIError) as caught, conn.begin_nested():
            run(conn, statement)
        error = caught.value.orig
        assert isinstance(error, psycopg.errors.NumericValueOutOfRange)
        assert error.diag.message_primary == (
            f'encoder "public.doc.code" cannot encode column "{source}" of table public.doc:'
            ' "1e+38" is out of range for type halfvec'
        )
        assert "CALL sqlvec.drop_derived('public.doc', 'code');" in str(error.diag.message_hint)


def test_dimensions_after_another_code(conn: Connection) -> None:
    """Vectors of other dimensions are told from those that cannot be encoded."""
    run(conn, "CREATE TABLE doc (id int, a vector(2), b vector)")
    run(conn, "CALL sqlvec.create_encoder('four', 'binary', 4)")
    run(conn, "CALL sqlvec.add_quantized('doc', 'a', 'binary', 'a_code')")
    run(conn, "CALL sqlvec.add_quantized('doc', 'b', 'four', 'b_code')")
    with pytest.raises(DBAPIError) as caught, conn.begin_nested():
        run(conn, "INSERT INTO doc VALUES (1, '[1,2]', '[1,2,3]')")
    assert str(caught.value.orig).startswith(
        'column "b" of table public.doc takes vectors of 4 dimensions'
        ' for its derived column "b_code", not 3'
    )


def test_searches_leave_a_code_of_other_dimensions_aside(doc: Connection) -> None:
    run(doc, "INSERT INTO doc SELECT i, '[1,-1,0,2]' FROM generate_series(1, 20) AS i")
    run(doc, "CREATE INDEX ON doc USING hnsw (code bit_hamming_ops)")
    search = (
        "SELECT count(*) FROM sqlvec.vector_search_keys(NULL::doc, 'embedding', '[1,1,1,1]',"
        " key => NULL::bigint, k => 5{})"
    )
    assert scalar(doc, search.format(", mode => 'code'")) == 5
    # Postgres builds the index anew.
    run(doc, "ALTER TABLE doc ALTER code TYPE bit(5) USING B'10101'")
    assert scalar(doc, search.format("")) == 5
    fails(doc, search.format(", mode => 'code'"), 'mode "code" is neither')


PROBLEM = "SELECT problem FROM sqlvec.derived_column"


@pytest.fixture
def two_sessions(
    tmp_database: Callable[..., str],
) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """Open two connections to a table with a code; the second has the plans of its trigger."""
    dsn = tmp_database()
    with (
        psycopg.connect(dsn, autocommit=True) as one,
        psycopg.connect(dsn, autocommit=True, prepare_threshold=None) as other,
    ):
        one.execute("CREATE TABLE doc (id bigint PRIMARY KEY, embedding vector(4), note text)")
        one.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        other.execute("INSERT INTO doc SELECT i, '[1,-1,0,2]' FROM generate_series(1, 20) AS i")
        other.execute("UPDATE doc SET embedding = '[-1,1,1,-1]' WHERE id <= 20")
        yield one, other


def notices(connection: psycopg.Connection[Any]) -> list[str]:
    """Return the list that the messages of a connection are going to be appended to."""
    heard: list[str] = []
    connection.add_notice_handler(lambda diag: heard.append(str(diag.message_primary)))
    return heard


def test_source_of_another_vector_type_in_open_sessions(
    two_sessions: tuple[psycopg.Connection[Any], psycopg.Connection[Any]],
) -> None:
    one, other = two_sessions
    heard = notices(other)
    one.execute("ALTER TABLE doc ALTER embedding TYPE halfvec(4)")
    other.execute("INSERT INTO doc VALUES (21, '[1,-1,0,2]')")
    other.execute("UPDATE doc SET embedding = '[1,1,-1,-1]' WHERE id = 1")
    other.execute("UPDATE doc SET note = 'x' WHERE id = 2")
    slow = (
        "columns of table public.doc were renamed, dropped or given another type since sqlvec"
        " wrote its trigger; writes take a slow path"
    )
    assert heard == [slow] * 3
    row = one.execute(MATCHES).fetchone()
    assert row == (True,)
    row = one.execute(PROBLEM).fetchone()
    assert row == (
        "a column was given another type, writes of sessions that were open take the slow path;"
        " CALL sqlvec.repair('doc');",
    )
    said = notices(one)
    one.execute("CALL sqlvec.check()")
    assert any("was given another type" in message for message in said)
    one.execute("CALL sqlvec.repair('doc')")
    assert one.execute(PROBLEM).fetchone() == (None,)
    heard.clear()
    other.execute("INSERT INTO doc VALUES (22, '[1,-1,0,2]')")
    assert heard == []
    assert one.execute(MATCHES).fetchone() == (True,)


@pytest.mark.parametrize(
    ("change", "misfit"),
    [
        (
            "embedding TYPE text",
            'column "embedding" of table public.doc is of type text,'
            ' encoder "public.doc.code" takes vector or halfvec',
        ),
        (
            "embedding TYPE int USING 1",
            'column "embedding" of table public.doc is of type integer,'
            ' encoder "public.doc.code" takes vector or halfvec',
        ),
        (
            "code TYPE int USING 1",
            'column "code" of table public.doc is of type integer,'
            ' encoder "public.doc.code" makes bit(4)',
        ),
        (
            "code TYPE bit(5) USING B'10101'",
            'column "code" of table public.doc is of type bit(5),'
            ' encoder "public.doc.code" makes bit(4)',
        ),
    ],
)
def test_types_that_do_not_fit_the_encoder(
    two_sessions: tuple[psycopg.Connection[Any], psycopg.Connection[Any]], change: str, misfit: str
) -> None:
    one, other = two_sessions
    one.execute(f"ALTER TABLE doc ALTER {change}")
    value = "1" if "embedding TYPE int" in change else "'[1,-1,0,2]'"
    with psycopg.connect(one.info.dsn, autocommit=True) as fresh:
        for session in (other, fresh):
            for statement in (
                f"INSERT INTO doc VALUES (21, {value})",
                "UPDATE doc SET embedding = NULL, code = NULL, note = 'x'",
                f"UPDATE doc SET code = NULL, embedding = {value}",
            )[:: 2 if "bit(5)" in change or "text" in change else 1]:
                with pytest.raises(psycopg.errors.DatatypeMismatch) as caught:
                    session.execute(statement)
                assert caught.value.diag.message_primary == misfit
                assert "CALL sqlvec.drop_derived('public.doc', 'code');" in str(
                    caught.value.diag.message_hint
                )
    problem = misfit.replace(" of table public.doc", "")
    assert one.execute("SELECT maintained, problem FROM sqlvec.derived_column").fetchone() == (
        False,
        f"{problem}; CALL sqlvec.drop_derived('doc', 'code');",
    )
    said = notices(one)
    one.execute("CALL sqlvec.check()")
    assert f'column "code" of table public.doc: {problem}' in said
    with pytest.raises(psycopg.errors.DatatypeMismatch, match="encoder") as caught:
        one.execute("CALL sqlvec.backfill('doc')")
    assert caught.value.diag.message_primary == misfit
    one.execute("CALL sqlvec.drop_derived('doc', 'code')")
    other.execute(f"INSERT INTO doc VALUES (21, {value})")


def test_halfvec_source(conn: Connection) -> None:
    run(conn, "CREATE TABLE doc (id int, embedding halfvec(4))")
    run(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
    run(conn, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert scalar(conn, "SELECT code::text FROM doc") == "1001"


def test_missing_parameters_never_fail_a_write(doc: Connection) -> None:
    """A restore of data alone brings the table and its trigger without the encoder's matrix."""
    run(
        doc,
        """CALL sqlvec.add_quantized('doc', 'embedding', 'linear', 'lin', options => '{"dimensions": 2}')""",
    )
    run(doc, "DELETE FROM sqlvec.encoder_vector")
    run(doc, "INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
    assert run(doc, "SELECT code::text, lin FROM doc").one() == ("1001", None)


@pytest.mark.parametrize("options", ['{"dimensions": 2}', '{"dimensions": 4, "seed": -9}'])
def test_null_through_a_matrix(doc: Connection, options: str) -> None:
    run(
        doc,
        "CALL sqlvec.add_quantized('doc', 'embedding', 'linear', 'lin', options => CAST(:o AS jsonb))",
        o=options,
    )
    run(doc, "INSERT INTO doc VALUES (1, NULL), (2, '[1,2,3,4]'), (3, '[0,0,0,0]')")
    run(doc, "UPDATE doc SET embedding = NULL WHERE id = 2")
    rows = run(doc, "SELECT lin IS NULL FROM doc ORDER BY id").scalars().all()
    assert rows == [True, True, False]


def test_named_encoder_serves_several_tables(conn: Connection) -> None:
    run(
        conn,
        """CALL sqlvec.create_encoder('half the size', 'linear', 4, '{"dimensions": 2, "seed": 3}')""",
    )
    for table in ("a", "b"):
        run(conn, f"CREATE TABLE {table} (embedding vector(4))")
        run(conn, f"CALL sqlvec.add_quantized('{table}', 'embedding', 'half the size', 'code')")
        run(conn, f"INSERT INTO {table} VALUES ('[1,2,3,4]')")
    assert scalar(conn, "SELECT a.code = b.code FROM a, b")
    fails(conn, "CALL sqlvec.drop_encoder('half the size')", 'is in use by column "code"')
    run(conn, "CALL sqlvec.drop_derived('a', 'code')")
    run(conn, "CALL sqlvec.drop_derived('b', 'code')")
    run(conn, "CALL sqlvec.drop_encoder('half the size')")
    assert scalar(conn, "SELECT count(*) FROM sqlvec.encoder_vector") == 0


def test_centred_codes_use_the_mean_of_the_table(conn: Connection) -> None:
    data = vectors.clustered(500, 16) + np.float32(3)
    run(conn, "CREATE TABLE doc (id int, embedding vector(16))")
    fails(
        conn,
        """CALL sqlvec.add_quantized('doc', 'embedding', 'binary', options => '{"center": true}')""",
        'option "center" needs rows in column "embedding"',
    )
    conn.execute(
        text("INSERT INTO doc VALUES (:id, :embedding)"),
        [{"id": i, "embedding": vectors.text(row)} for i, row in enumerate(data)],
    )
    run(
        conn,
        """CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code', options => '{"center": true}')""",
    )
    run(conn, "UPDATE doc SET code = NULL")
    codes = run(conn, "SELECT code::text FROM doc ORDER BY id").scalars().all()
    ones = np.array([[int(bit) for bit in code] for code in codes]).mean()
    assert 0.4 < ones < 0.6  # Without centring every bit would be one.


BAD = [
    (
        "'doc', 'nowhere', 'binary'",
        'column "nowhere" of table public.doc does not exist',
        "Columns are: id, embedding, note, code.",
    ),
    (
        "'doc', 'note', 'binary'",
        'column "note" of table public.doc is of type text, not vector or halfvec',
    ),
    (
        "'doc', 'embedding', 'bogus'",
        'unknown encoder or encoder kind "bogus"',
        "halfvec, binary, truncate, linear",
    ),
    (
        "'doc', 'embedding', 'halfvec', 'code'",
        'column "code" of table public.doc is already derived from "embedding"',
    ),
    ("'doc', 'embedding', 'halfvec', 'embedding'", "cannot hold its own code"),
    ("'doc', 'embedding', 'halfvec', ''", "is not a column name"),
    ("'doc', 'embedding', 'halfvec', repeat('x', 64)", "is not a column name of 1 to 63 bytes"),
    ("'doc', 'embedding', 'halfvec', 'note'", 'column "note" of table public.doc is of type text'),
    (
        "'doc', 'embedding', 'halfvec', metric => 'manhattan'",
        'metric "manhattan"',
        "l2, inner_product, cosine, l1",
    ),
    ("'doc', 'embedding', 'truncate'", 'option "dimensions"', "from 1 to 4"),
    ("""'doc', 'embedding', 'truncate', options => '{"dimensions": 5}'""", "from 1 to 4, not 5"),
    ("""'doc', 'embedding', 'truncate', options => '{"dimensions": "2"}'""", 'not "2"'),
    (
        """'doc', 'embedding', 'truncate', options => '{"dimensions": 2, "type": "text"}'""",
        '"halfvec" or "vector"',
    ),
    (
        """'doc', 'embedding', 'binary', options => '{"rotat": true}'""",
        'has no option "rotat"',
        "rotate",
    ),
    ("""'doc', 'embedding', 'binary', options => '{"rotate": 1}'""", "true or false"),
    ("""'doc', 'embedding', 'binary', options => '[]'""", "JSON object"),
    *(
        (
            f"""'doc', 'embedding', 'binary', options => '{{"levels": {levels}}}'""",
            f'option "levels" is an integer from 1 to 8, not {levels}',
        )
        for levels in ("0", "9", '"x"', "1.5", "-1", "null", "true")
    ),
    ("""'doc', 'embedding', 'linear', options => '{"dimensions": 2, "seed": 1.5}'""", "integer"),
    ("'doc', NULL, 'binary'", "needs a table, a column and an encoder"),
    ("'doc_view', 'embedding', 'binary'", "public.doc_view is not a table"),
]


@pytest.mark.parametrize(("arguments", "fragments"), [(bad[0], bad[1:]) for bad in BAD])
def test_bad_declarations(doc: Connection, arguments: str, fragments: tuple[str, ...]) -> None:
    run(doc, "CREATE VIEW doc_view AS SELECT * FROM doc")
    fails(doc, f"CALL sqlvec.add_quantized({arguments.replace(':', chr(92) + ':')})", *fragments)


def test_encoder_for_other_dimensions(doc: Connection) -> None:
    run(doc, "CALL sqlvec.create_encoder('eight', 'halfvec', 8)")
    fails(
        doc,
        "CALL sqlvec.add_quantized('doc', 'embedding', 'eight')",
        'column "embedding" of table public.doc has 4 dimensions, encoder "eight" takes 8',
    )


def test_inheritance_is_refused(doc: Connection) -> None:
    run(doc, "CREATE TABLE parent (embedding vector(4))")
    run(doc, "CREATE TABLE child () INHERITS (parent)")
    fails(doc, "CALL sqlvec.add_quantized('parent', 'embedding', 'binary')", "inheritance")


BAD_ENCODERS = [
    ("'', 'halfvec', 4", "needs a name"),
    ("'e', 'halfvec', 0", "1 to 16000 dimensions, not 0"),
    ("'e', 'halfvec', 16001", "1 to 16000 dimensions, not 16001"),
    ("""'e', 'binary', 4097, '{"rotate": true}'""", "4096 is the limit"),
    ("""'e', 'binary', 4, '{"center": true}'""", "needs a mean vector"),
    ("""'e', 'binary', 4, '{"center": true}', '[1,2]'""", "takes 4 dimensions, its mean has 2"),
    ("'e', 'binary', 4, mean => '[1,2,3,4]'", "does not centre"),
]


@pytest.mark.parametrize(("arguments", "fragment"), BAD_ENCODERS)
def test_bad_encoders(conn: Connection, arguments: str, fragment: str) -> None:
    fails(conn, f"CALL sqlvec.create_encoder({arguments.replace(':', chr(92) + ':')})", fragment)


def test_encoders_do_not_change(conn: Connection) -> None:
    run(conn, "CALL sqlvec.create_encoder('e', 'halfvec', 4)")
    fails(conn, "CALL sqlvec.create_encoder('e', 'binary', 4)", 'encoder "e" already exists')


def test_encode_checks_its_input(conn: Connection) -> None:
    run(conn, "CALL sqlvec.create_encoder('e', 'halfvec', 4)")
    assert (
        scalar(conn, "SELECT sqlvec.encode('e', '[1,2,3,4]', NULL::halfvec)::text") == "[1,2,3,4]"
    )
    fails(
        conn,
        "SELECT sqlvec.encode('e', '[1]', NULL::halfvec)",
        "takes vectors of 4 dimensions, not 1",
    )
    fails(conn, "SELECT sqlvec.encode('f', '[1]', NULL::halfvec)", 'encoder "f" does not exist')
    fails(conn, "SELECT sqlvec.encode('e', '[NaN,1,2,3]', NULL::halfvec)", "NaN")


def test_generated_columns_are_refused(conn: Connection) -> None:
    run(
        conn,
        "CREATE TABLE doc (raw vector(4), embedding vector(4) GENERATED ALWAYS AS (raw + raw) STORED)",
    )
    fails(conn, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary')", "generated column")


def test_both_columns_dropped_and_made_again(doc: Connection) -> None:
    run(doc, "ALTER TABLE doc DROP code, DROP embedding, ADD embedding vector(4)")
    run(doc, "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', target => 'code')")
    assert scalar(doc, "SELECT count(*) FROM sqlvec.derived_column") == 1


def test_names_with_a_newline(conn: Connection) -> None:
    run(conn, 'CREATE TABLE "two\nlines" (embedding vector(2))')
    run(conn, """CALL sqlvec.add_quantized('"two\nlines"', 'embedding', 'binary', E'co\nde')""")
    run(conn, "INSERT INTO \"two\nlines\" VALUES ('[1,-1]')")
    assert scalar(conn, 'SELECT "co\nde"::text FROM "two\nlines"') == "10"


def test_an_encoder_of_one_column_is_not_shared(doc: Connection) -> None:
    run(doc, "CREATE TABLE other (embedding vector(4))")
    fails(
        doc,
        "CALL sqlvec.add_quantized('other', 'embedding', 'public.doc.code')",
        'encoder "public.doc.code" belongs to another column',
    )


def test_kinds_are_no_names(conn: Connection) -> None:
    fails(conn, "CALL sqlvec.create_encoder('binary', 'binary', 4)", "is a kind of encoder")


class TestRoles:
    """What roles other than the owner of sqlvec may do."""

    @pytest.fixture
    def database(self, tmp_database: Callable[..., str]) -> Any:
        with psycopg.connect(tmp_database(), autocommit=True) as connection:
            for role in ("app_owner", "writer", "stranger"):
                connection.execute(f"DROP ROLE IF EXISTS {role}")
                connection.execute(f"CREATE ROLE {role}")
            connection.execute("CREATE SCHEMA app AUTHORIZATION app_owner")
            connection.execute("GRANT USAGE ON SCHEMA app TO writer, stranger")
            connection.execute("SET ROLE app_owner")
            connection.execute("CREATE TABLE app.doc (id int PRIMARY KEY, embedding vector(4))")
            connection.execute(
                "CALL sqlvec.add_quantized('app.doc', 'embedding', 'binary', 'code')"
            )
            connection.execute(
                "CALL sqlvec.add_quantized('app.doc', 'embedding', 'linear', 'lin',"
                """ options => '{"dimensions": 2}')"""
            )
            connection.execute("GRANT INSERT ON app.doc TO writer")
            yield connection
            connection.execute("RESET ROLE")
            connection.execute("DROP SCHEMA app CASCADE")
            for role in ("app_owner", "writer", "stranger"):
                connection.execute(f"DROP OWNED BY {role}")
                connection.execute(f"DROP ROLE {role}")

    def test_a_role_that_may_only_insert(self, database: psycopg.Connection[Any]) -> None:
        database.execute("SET ROLE writer")
        database.execute("INSERT INTO app.doc (id, embedding) VALUES (1, '[1,-1,0,2]')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.execute("SELECT * FROM app.doc")
        database.execute("SET ROLE app_owner")
        assert database.execute("SELECT code::text, lin IS NOT NULL FROM app.doc").fetchall() == [
            ("1001", True)
        ]

    def test_search_runs_with_the_rights_of_the_caller(
        self, database: psycopg.Connection[Any]
    ) -> None:
        database.execute("INSERT INTO app.doc (id, embedding) VALUES (1, '[1,-1,0,2]')")
        database.execute("GRANT SELECT (id, embedding) ON app.doc TO stranger")
        database.execute("SET ROLE stranger")
        search = "sqlvec.vector_search{}(NULL::app.doc, 'embedding', '[1,0,0,0]'{})"
        found = database.execute(
            "SELECT key FROM " + search.format("_keys", ", key => NULL::int")
        ).fetchall()
        assert found == [(1,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.execute("SELECT * FROM " + search.format("", ""))

    @pytest.mark.parametrize(
        "statement",
        [
            "CALL sqlvec.add_quantized('app.doc', 'embedding', 'halfvec')",
            "CALL sqlvec.drop_derived('app.doc', 'code')",
            "CALL sqlvec.repair('app.doc')",
            "CALL sqlvec.drop_encoder('app.doc.code')",
            "INSERT INTO sqlvec.relation (oid, schema_name, table_name)"
            " VALUES ('app.doc'::regclass, 'app', 'doc')",
            "UPDATE sqlvec.relation SET oid = 'pg_class'::regclass",
            "UPDATE sqlvec.derived SET metric = 'l2'",
            "DELETE FROM sqlvec.derived",
            "DELETE FROM sqlvec.relation",
            "DELETE FROM sqlvec.encoder_vector",
            "DELETE FROM sqlvec.encoder",
            "UPDATE sqlvec.encoder SET kind = 'binary'",
            "UPDATE sqlvec.encoder_vector SET position = position",
            "INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions, owner)"
            " VALUES ('mine', 'halfvec', 4, 'halfvec', 4, 'app_owner')",
            "INSERT INTO sqlvec.encoder_vector SELECT name, 'high', 99, '[1,2,3,4]'"
            " FROM sqlvec.encoder",
            "TRUNCATE sqlvec.encoder CASCADE",
        ],
    )
    def test_strangers_change_nothing(
        self, database: psycopg.Connection[Any], statement: str
    ) -> None:
        tables = ("encoder", "encoder_vector", "relation", "derived")
        before = [
            database.execute(f"SELECT * FROM sqlvec.{t} ORDER BY 1, 2").fetchall() for t in tables
        ]
        database.execute("SET ROLE stranger")
        with pytest.raises(
            (psycopg.errors.InsufficientPrivilege, psycopg.errors.DependentObjectsStillExist)
        ):
            database.execute(statement)
        database.execute("RESET ROLE")
        assert before == [
            database.execute(f"SELECT * FROM sqlvec.{t} ORDER BY 1, 2").fetchall() for t in tables
        ]

    def test_a_row_cannot_be_turned_to_another_table(
        self, database: psycopg.Connection[Any]
    ) -> None:
        """By its names, by reusing the trigger function, or by a table of that name before."""
        database.execute("RESET ROLE")
        database.execute("CREATE SCHEMA lair AUTHORIZATION stranger")
        database.execute("SET ROLE stranger")
        database.execute("CREATE TABLE lair.doc (id int, embedding vector(4), code bit(4))")
        database.execute("CALL sqlvec.add_quantized('lair.doc', 'embedding', 'binary', 'code')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.execute(
                "UPDATE sqlvec.relation SET schema_name = 'app' WHERE schema_name = 'lair'"
            )
        with pytest.raises(psycopg.errors.GeneratedAlways):
            database.execute(
                "INSERT INTO sqlvec.relation (id, oid, schema_name, table_name)"
                " VALUES (77, 'lair.doc'::regclass, 'lair', 'doc')"
            )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.execute(
                "INSERT INTO sqlvec.encoder (name, kind, dimensions, code_type, code_dimensions)"
                " VALUES ('binary', 'binary', 4, 'bit', 4)"
            )
        name = database.execute(
            "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgrelid = 'app.doc'::regclass"
        ).fetchone()
        assert name is not None
        database.execute(
            "CREATE TABLE lair.trap (id int, embedding vector(4), code bit(4), lin halfvec(2))"
        )
        database.execute(
            f"CREATE TRIGGER trap BEFORE INSERT ON lair.trap FOR EACH ROW EXECUTE FUNCTION {name[0]}()"
        )
        database.execute("SET ROLE app_owner")
        database.execute("CALL sqlvec.repair('app.doc')")
        database.execute("INSERT INTO app.doc (id, embedding) VALUES (1, '[1,-1,0,2]')")
        assert database.execute("SELECT code::text FROM app.doc").fetchall() == [("1001",)]
        assert database.execute(
            "SELECT relation::text, target_column, problem FROM sqlvec.derived_column ORDER BY 1, 2"
        ).fetchall() == [
            ("app.doc", "code", None),
            ("app.doc", "lin", None),
            ("lair.doc", "code", None),
        ]
        database.execute("RESET ROLE")
        database.execute("DROP SCHEMA lair CASCADE")

    def test_another_member_of_the_owning_role(self, database: psycopg.Connection[Any]) -> None:
        database.execute("RESET ROLE")
        database.execute("GRANT app_owner TO writer, stranger")
        database.execute("SET ROLE writer")
        database.execute("CALL sqlvec.add_quantized('app.doc', 'embedding', 'binary', 'more')")
        database.execute("SET ROLE stranger")
        database.execute("CALL sqlvec.drop_derived('app.doc', 'more')")
        database.execute("CALL sqlvec.drop_derived('app.doc', 'lin')")

    def test_codes_that_the_caller_may_not_read(self, database: psycopg.Connection[Any]) -> None:
        database.execute(
            "INSERT INTO app.doc (id, embedding)"
            " SELECT i, ARRAY[cos(i), sin(i), 1, -1]::vector FROM generate_series(1, 20000) AS i"
        )
        database.execute("CREATE INDEX ON app.doc USING hnsw (code bit_hamming_ops)")
        database.execute("ANALYZE app.doc")
        database.execute("GRANT SELECT (id, embedding) ON app.doc TO stranger")
        database.execute("SET ROLE stranger")
        found = database.execute(
            "SELECT key FROM sqlvec.vector_search_keys(NULL::app.doc, 'embedding',"
            " (SELECT embedding FROM app.doc WHERE id = 9), key => NULL::int, k => 1)"
        ).fetchall()
        assert found == [(9,)]

    def test_operators_planted_in_public(self, database: psycopg.Connection[Any]) -> None:
        """What a stranger leaves on the search_path does not run as the superuser."""
        database.execute("RESET ROLE")
        database.execute("GRANT CREATE ON SCHEMA public TO stranger")
        database.execute("SET ROLE stranger")
        types = [
            ("int[]", "int[]"),
            ("text[]", "text[]"),
            ("regclass", "regclass"),
            ("oid[]", "oid[]"),
        ]
        types += [
            ("float8", "int"),
            ("int", "float8"),
            ("real", "int"),
            ("name", "name"),
            ("jsonb", "text"),
        ]
        for left, right in types:
            database.execute(
                f"CREATE FUNCTION public.evil({left}, {right}) RETURNS boolean LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'planted operator'; END $$"
            )
            for operator in ("=", "<>", "+", "*", "/", "<=", ">"):
                database.execute(
                    f"CREATE OPERATOR public.{operator}"
                    f" (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = public.evil)"
                )
        database.execute("RESET ROLE")
        database.execute("INSERT INTO app.doc (id, embedding) VALUES (1, '[1,-1,0,2]')")
        database.execute(
            "CALL sqlvec.add_quantized('app.doc', 'embedding', 'truncate', 't', options => '{\"dimensions\": 2}')"
        )
        database.execute("CALL sqlvec.backfill('app.doc')")
        database.execute("CALL sqlvec.repair('app.doc')")
        database.execute("CALL sqlvec.check()")
        for function in ("vector_search", "explain_search"):
            database.execute(
                f"SELECT sqlvec.{function}(NULL::app.doc, 'embedding', '[1,2,3,4]',"
                """ filter => '{"id": {"$gt": 0}}', oversample => 3)"""
            )
        database.execute("SELECT * FROM sqlvec.plan_index('app.doc', 'embedding')")
        database.execute("CALL sqlvec.drop_derived('app.doc', 't')")

    def test_the_trigger_function_cannot_be_turned(self, database: psycopg.Connection[Any]) -> None:
        """Anyone may have it written again, which writes the same text."""
        name = database.execute(
            "SELECT tgfoid::regproc::text FROM pg_trigger WHERE tgname = '~sqlvec'"
        ).fetchone()
        assert name is not None
        before = database.execute("SELECT pg_get_functiondef(%s::regproc)", name).fetchone()
        database.execute("SET ROLE stranger")
        number = int(name[0].rsplit("_", 1)[1])
        database.execute("SELECT sqlvec._write_maintain(%s)", [number])
        database.execute("SELECT sqlvec._write_maintain(%s)", [number + 1000])
        database.execute("SELECT sqlvec._drop_maintain(%s)", [number])
        database.execute("RESET ROLE")
        assert database.execute("SELECT pg_get_functiondef(%s::regproc)", name).fetchone() == before
        assert database.execute(
            "SELECT count(*) FROM pg_proc WHERE proname = %s", [f"maintain_{number + 1000}"]
        ).fetchone() == (0,)


def test_pgvector_off_the_search_path(tmp_database: Callable[..., str]) -> None:
    """Writers and searchers need neither pgvector nor sqlvec on their search_path."""
    with psycopg.connect(tmp_database(), autocommit=True) as connection:
        connection.execute("CREATE SCHEMA extensions")
        connection.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(4))")
        connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary', 'code')")
        connection.execute("CREATE INDEX ON doc USING hnsw (code bit_hamming_ops)")
        # Moving the extension after installation must not break what is there.
        connection.execute("ALTER EXTENSION vector SET SCHEMA extensions")
        connection.execute("SET search_path = pg_catalog")
        connection.execute(
            "INSERT INTO public.doc SELECT i, ('[1,-1,0,' || i || ']')::extensions.vector"
            " FROM generate_series(1, 300) AS i"
        )
        connection.execute("UPDATE public.doc SET embedding = '[-1,1,1,-1]' WHERE id = 5")
        assert connection.execute("SELECT code::text FROM public.doc WHERE id = 5").fetchall() == [
            ("0110",)
        ]
        for mode in ("auto", "exact", "code"):
            found = connection.execute(
                "SELECT key FROM sqlvec.vector_search_keys(NULL::public.doc, 'embedding',"
                " '[-1,1,1,-1]', key => NULL::int, k => 1, mode => %s)",
                [mode],
            ).fetchall()
            assert found == [(5,)]


def test_two_declarations_at_once_take_turns(tmp_database: Callable[..., str]) -> None:
    dsn = tmp_database()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE doc (id int, embedding vector(4))")
    failures: list[Exception] = []

    def declare(target: str) -> None:
        try:
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(
                    "CALL sqlvec.add_quantized('doc', 'embedding', 'binary', %s)", [target]
                )
        except psycopg.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=declare, args=(f"code_{i}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("INSERT INTO doc VALUES (1, '[1,-1,0,2]')")
        row = connection.execute(
            "SELECT num_nulls(code_0, code_1, code_2, code_3, code_4, code_5) FROM doc"
        ).fetchone()
        assert row == (0,)
        assert connection.execute("SELECT count(*) FROM sqlvec.relation").fetchone() == (1,)
