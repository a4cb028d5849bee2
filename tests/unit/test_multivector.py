"""Values of MULTIVECTOR: what is refused, and that nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sqlalchemy import ARRAY, Column, MetaData, Table
from sqlalchemy.dialects.postgresql import asyncpg, psycopg
from sqlalchemy.schema import CreateTable

from sqlvec.ddl import StoreExternal
from sqlvec.errors import DeclarationError, EncodingError
from sqlvec.types import HALFVEC, MULTIVECTOR, dimensions, type_name
from sqlvec.types.multivector import from_binary, from_database, from_text, to_binary, to_text

PSYCOPG: Any = psycopg.dialect()  # type: ignore[no-untyped-call]
ASYNCPG: Any = asyncpg.dialect()  # type: ignore[no-untyped-call]


def multivectors(width: Any) -> st.SearchStrategy[Any]:
    numbers = st.floats(width=width, allow_nan=False, allow_infinity=False)
    shapes = st.tuples(st.integers(1, 6), st.integers(1, 6))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=numbers))


@given(multivectors(16))
def test_halfvec_text_and_binary_keep_every_bit(x):
    for found in (from_text(to_text(x)), from_binary(to_binary(x, 1234))):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, x)


@given(multivectors(32))
def test_vector_text_and_binary_keep_every_bit(x):
    np.testing.assert_array_equal(from_text(to_text(x, element="vector")), x)
    np.testing.assert_array_equal(from_binary(to_binary(x, 1, element="vector"), "vector"), x)


def test_binary_form():
    data = to_binary([[1.0, -2.0]], 77, 2)
    assert data == bytes.fromhex(
        "00000001 00000000 0000004d 00000001 00000001 00000008 0002 0000 3c00 c000"
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "at least one vector"),
        ([[]], "at least one vector"),
        (np.zeros((0, 3)), "at least one vector"),
        ([[1.0, 2.0], [3.0]], "equally long"),
        ([1.0, 2.0, 3.0], "2 dimensions .n, d., found 1"),
        (np.zeros((1, 1, 3)), "found 3"),
        ([[1.0, 2.0]], "expected vectors of 3 dimensions, found 2"),
        ([[1.0, float("nan"), 0.0]], "NaN"),
        ([[1.0, float("inf"), 0.0]], "infinity"),
        ([[1.0, 1e39, 0.0]], "out of the range"),
        ([[1.0, 65520.0, 0.0]], "65520.0 is out of range for type halfvec"),
        ("tokens", "a list of equally long lists"),
        ([[1.0, None, 0.0], ["x", 1, 2]], "a list of equally long lists"),
    ],
)
@pytest.mark.parametrize("dialect", [PSYCOPG, ASYNCPG], ids=["psycopg", "asyncpg"])
def test_what_is_no_multivector(dialect, value, message):
    with pytest.raises(EncodingError, match=message):
        MULTIVECTOR(3).bind_processor(dialect)(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{NULL,"[1,2]"}', "NULLs"),
        ('{"[1,2]","[1,2,3]"}', "different"),
        ('{"[1,2]",[3],"[1,2,3]"}', "different"),
    ],
)
def test_arrays_that_are_no_multivectors(value, message):
    with pytest.raises(EncodingError, match=message):
        from_text(value)


def test_forms_of_results():
    assert from_text("{[1],[2]}").tolist() == [[1], [2]]
    assert from_text('[0:1]={"[1,2]","[3,4]"}').tolist() == [[1, 2], [3, 4]]
    assert from_database(["[1,2]", "[3,4]"]).tolist() == [[1, 2], [3, 4]]
    assert from_database([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert from_database("{}", 3).shape == (0, 3)
    with pytest.raises(EncodingError, match="NULLs"):
        from_database([None, [1, 2]])


def test_null_is_null():
    type_ = MULTIVECTOR(2)
    assert type_.bind_processor(PSYCOPG)(None) is None
    assert type_.result_processor(PSYCOPG, None)(None) is None
    assert type_.compare_values(None, None) and not type_.compare_values(None, [[1.0]])
    assert type_.compare_values(np.ones((2, 2)), [[1, 1], [1, 1]])


def test_ddl():
    doc = Table(
        "doc",
        MetaData(),
        Column("tokens", MULTIVECTOR(128)),
        Column("full", MULTIVECTOR(4, "vector")),
        Column("open", MULTIVECTOR()),
    )
    ddl = str(CreateTable(doc).compile(dialect=PSYCOPG))
    assert "tokens halfvec(128)[]" in ddl and "vector(4)[]" in ddl and "halfvec[]" in ddl
    external = StoreExternal("to%ken s").against(doc)
    assert (
        str(external.compile(dialect=PSYCOPG))
        == 'ALTER TABLE doc ALTER COLUMN "to%%ken s" SET STORAGE EXTERNAL'
    )


def test_names():
    assert type_name(MULTIVECTOR(3)) == "halfvec[]" and dimensions(MULTIVECTOR(3)) == 3
    assert type_name(MULTIVECTOR(3, "vector")) == "vector[]"
    assert type_name(ARRAY(HALFVEC(3))) == "halfvec[]" and dimensions(ARRAY(HALFVEC(3))) == 3
    assert repr(MULTIVECTOR(3, "vector")) == "MULTIVECTOR(dim=3, element='vector')"
    assert MULTIVECTOR(3)._static_cache_key != MULTIVECTOR(3, "vector")._static_cache_key
    with pytest.raises(DeclarationError, match="not 'bit'"):
        MULTIVECTOR(3, "bit")  # type: ignore[arg-type]


def test_literal():
    assert (
        MULTIVECTOR(2).literal_processor(PSYCOPG)([[1, 2]]) == """'{"[1.0, 2.0]"}'::halfvec(2)[]"""
    )
