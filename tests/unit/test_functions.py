"""The function classes themselves; tests/db/test_functions.py compares them with the server."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, func, select
from sqlalchemy.dialects.postgresql import psycopg

from sqlvec import functions
from sqlvec.types import BIT, VECTOR

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]
DOC = Table("doc", MetaData(), Column("id", Integer), Column("embedding", VECTOR(3)), schema="app")


def rendered(element: functions.SqlvecFunction) -> str:
    return str(select(element).compile(dialect=PSYCOPG))


def test_functions_are_called_in_their_schema_by_argument_name():
    assert rendered(functions.version()) == "SELECT sqlvec.version() AS version_1"
    assert rendered(functions.encode("rotated", [1, 2, 3], BIT(3))) == (
        "SELECT sqlvec.encode(encoder => %(param_1)s::VARCHAR, x => %(param_2)s, "
        "code => CAST(NULL AS BIT(3))) AS encode_1"
    )
    assert rendered(functions.plan_index(DOC, "embedding")) == (
        "SELECT sqlvec.plan_index(rel => 'app.doc'::regclass, "
        "column_name => %(param_1)s::VARCHAR) AS plan_index_1"
    )


def test_the_type_of_the_key_keeps_its_place():
    sql = rendered(functions.vector_search_keys(DOC, "embedding", [1, 2, 3], Integer(), k=5))
    assert sql.startswith(
        "SELECT sqlvec.vector_search_keys(rel => NULL::app.doc, "
        "column_name => %(param_1)s::VARCHAR, query => %(param_2)s, key => CAST(NULL AS INTEGER), "
        "k => %(param_3)s::INTEGER)"
    )


def test_nothing_is_registered_for_everyone():
    assert type(func.version()) is not functions.version
    assert str(func.version()) == "version()"
    assert type(func.vector_search()) is not functions.vector_search


def test_values_are_no_part_of_the_cache_key():
    one, two = (
        functions.vector_search(DOC, "embedding", [n, 2, 3], k=n, oversample=n, filter={"id": n})
        for n in (1, 2)
    )
    assert one._generate_cache_key() == two._generate_cache_key()
    other = functions.vector_search(DOC.to_metadata(MetaData(), schema="x"), "embedding", [1, 2, 3])
    shorter = functions.vector_search(DOC, "embedding", [1, 2, 3])
    assert other._generate_cache_key() != shorter._generate_cache_key()
