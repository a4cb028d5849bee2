"""The classes in ``sqlvec.functions`` are the public functions of the schema, no more, no less."""

from __future__ import annotations

import inspect

from sqlalchemy import Column, Integer, MetaData, Table, select, text

from sqlvec import functions
from sqlvec.functions import SqlvecFunction
from sqlvec.types import BIT, HALFVEC, VECTOR

IN_PYTHON = {
    name: cls
    for name, cls in vars(functions).items()
    # Their bases are named as classes are.
    if inspect.isclass(cls) and issubclass(cls, SqlvecFunction) and name.islower()
}


def arguments(function: type[SqlvecFunction]) -> set[str]:
    """Return the parameters of a class, those that it hands on to its base included."""
    names: set[str] = set()
    for cls in function.__mro__:
        if cls is SqlvecFunction:
            break
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            names |= {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} - {"self"}
    return names


def test_functions_and_their_arguments_agree_with_the_server(conn):
    statement = """
        SELECT p.proname, coalesce(
            (SELECT array_agg(a.name ORDER BY a.position)
             FROM unnest(p.proargnames, p.proargmodes) WITH ORDINALITY AS a (name, mode, position)
             WHERE a.mode IS NULL OR a.mode IN ('i', 'b', 'v')), '{}')
        FROM pg_proc AS p
        WHERE p.pronamespace = 'sqlvec'::regnamespace
          AND p.prokind = 'f' AND p.prorettype <> 'trigger'::regtype
          AND p.proname NOT LIKE '\\_%'
    """
    on_server = {name: set(names) for name, names in conn.execute(text(statement))}
    assert {name: arguments(cls) for name, cls in IN_PYTHON.items()} == on_server


def test_every_function_can_be_called(conn):
    table = Table(
        "called",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", VECTOR(2)),
        Column("bits", BIT(3)),
    )
    table.create(conn)
    conn.execute(table.insert(), {"id": 1, "embedding": [1, -1], "bits": "101"})
    assert conn.scalar(select(functions.version())) == conn.scalar(text("SELECT sqlvec.version()"))
    conn.execute(text("CALL sqlvec.create_encoder('called', 'halfvec', 2)"))
    assert conn.scalar(select(functions.encode("called", [1, 2], HALFVEC(2)))) == [1, 2]
    plans = functions.plan_index(table, "embedding", metric="l2").table_valued("name", "opclass")
    assert conn.execute(select(plans)).first() == ("source", "vector_l2_ops")
    hits = functions.vector_search(
        table, "embedding", [1, 0], k=1, oversample=2.5, filter={"id": 1}
    ).table_valued("hit", "distance", "complete")
    assert conn.execute(select(hits.c.complete)).one() == (True,)
    keys = functions.bit_search_keys(
        table, "bits", "111", Integer(), where_sql="called.id = ($1)[1]::int", params=["1"]
    ).table_valued("key", "distance", "complete")
    assert conn.execute(select(keys)).one() == (1, 1, True)
    steps = functions.explain_search(table, "embedding", [1, 0]).table_valued("topic", "detail")
    assert conn.execute(select(steps.c.topic)).first() == ("plan",)
