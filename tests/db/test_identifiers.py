"""Names and metrics mean the same to the server and to Python."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from sqlvec.identifiers import fit, index_name, target_column
from sqlvec.metrics import METRICS

# UTF-8 knows no surrogates, PostgreSQL no zero byte.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
names = st.text(characters, min_size=1, max_size=90)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(names, min_size=1, max_size=20))
@example(["a" * 63, "a" * 64, "ä" * 31, "ä" * 32, "😀" * 15, "😀" * 16, "x" + "😀" * 16])
def test_long_names_are_cut_alike(conn, bases):
    statement = text(
        "SELECT sqlvec._name(n) FROM unnest(CAST(:names AS text[])) WITH ORDINALITY AS t (n, i)"
        " ORDER BY i"
    )
    cut = [fit(base) for base in bases]
    assert conn.scalars(statement, {"names": bases}).all() == cut
    assert all(len(name.encode()) <= 63 for name in cut)


def test_default_names():
    assert target_column("embedding", "binary") == "embedding_binary"
    assert index_name("doc", "embedding_binary", "hnsw") == "ix_doc_embedding_binary_hnsw"
    long = "é" * 40
    assert target_column(long, "binary") == "é" * 27 + "_b5597342"
    assert target_column(long, "binary") != target_column(long, "halfvec")


def test_operators_and_operator_classes_agree_with_the_server(conn):
    for metric in METRICS.values():
        operator = conn.scalar(text("SELECT sqlvec._operator(:metric)"), {"metric": metric.name})
        assert operator.endswith(f".{metric.operator})")
        for column_type in metric.column_types:
            opclass = conn.scalar(
                text("SELECT sqlvec._opclass(:type, :metric)"),
                {"type": column_type, "metric": metric.name},
            )
            assert opclass == metric.opclass(column_type)
            known = text("SELECT count(*) FROM pg_opclass WHERE opcname = :opclass")
            assert conn.scalar(known, {"opclass": opclass}) >= 1
