"""Encoders of the catalog, loaded for numpy."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Connection, text

from sqlvec import catalog
from sqlvec.encoders import Binary, Linear
from sqlvec.errors import DeclarationError


def test_without_parameters(conn: Connection) -> None:
    conn.exec_driver_sql("CALL sqlvec.create_encoder('plain', 'binary', 3)")
    encoder, parts = catalog.load_encoder(conn, "plain")
    assert encoder == Binary()
    assert parts == {}


@pytest.mark.parametrize("rows", [1, 2])
def test_with_a_matrix(conn: Connection, rows: int) -> None:
    conn.execute(
        text("""
            CALL sqlvec.create_encoder(
                'small', 'linear', 3, jsonb_build_object('dimensions', CAST(:rows AS int),
                                                         'center', true), '[1,0,0]')
        """),
        {"rows": rows},
    )
    encoder, parts = catalog.load_encoder(conn, "small")
    assert encoder == Linear(rows, center=True)
    assert {name: part.shape for name, part in parts.items()} == {
        "mean": (3,),
        "high": (rows, 3),
        "low": (rows, 3),
        "scale": (rows,),
    }
    code = "SELECT sqlvec.encode('small', '[2,3,5]', NULL::halfvec)::real[]"
    expected = np.array(conn.scalar(text(code)), dtype=np.float16)
    np.testing.assert_array_equal(encoder.encode([2, 3, 5], parts), expected)


def test_unknown(conn: Connection) -> None:
    with pytest.raises(DeclarationError, match="there is no encoder 'nothing' in the catalog"):
        catalog.load_encoder(conn, "nothing")
