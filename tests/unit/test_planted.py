"""Functions under the caller's search_path name their types and operators in full."""

from __future__ import annotations

import re

import pytest

from sqlvec import catalog

KEYWORDS = ("int", "smallint", "bigint", "boolean", "real", "numeric", "bit")
"""Types that are words of the grammar: PostgreSQL takes these from pg_catalog."""

FUNCTION = re.compile(
    r"^CREATE OR REPLACE (?:FUNCTION|PROCEDURE) (sqlvec\.\w+)((?:(?!^CREATE ).)*?)"
    r"^AS \$body\$\n(.*?)^\$body\$;",
    re.DOTALL | re.MULTILINE,
)
DECLARE = re.compile(r"\ADECLARE\n(.*?)^BEGIN\n", re.DOTALL | re.MULTILINE)
VARIABLE = re.compile(r"^    \w+ (?:CONSTANT )?([\w.\"]+)(?![\w%])", re.MULTILINE)
CAST = re.compile(r"::([\w.\"]+)")
OPERATOR = re.compile(
    r"\s(?:[-+*/<>=~!@#%^&|?]{1,3}) |\bIN \(|\bBETWEEN\b|\bI?LIKE\b|\bDISTINCT FROM\b"
    r"|\bCASE [\w.]+\s+WHEN\b"
)
"""What search_path finds; a minus of a literal number has no blank after it."""
NO_OPERATOR = re.compile(
    r"--[^\n]*|E?'(?:[^']|'')*'|:=|=>|SELECT \*|(?:USING|SET|DIAGNOSTICS|,)\s+\w+ = "
)


def unqualified(body: str) -> set[str]:
    """Return the names of types in a body that search_path would find."""
    declared = DECLARE.match(body)
    names = CAST.findall(body) + (VARIABLE.findall(declared[1]) if declared else [])
    return {name for name in names if name not in KEYWORDS and not re.match(r"\w+\.\w", name)}


FUNCTIONS = [
    (name, body)
    for name, head, body in FUNCTION.findall(catalog.bundle())
    if "SET search_path" not in head
]


def test_the_functions_are_found() -> None:
    names = {name for name, _ in FUNCTIONS}
    assert {"sqlvec.vector_search", "sqlvec.backfill", "sqlvec.hybrid_search"} <= names


each = pytest.mark.parametrize(("name", "body"), FUNCTIONS, ids=[name for name, _ in FUNCTIONS])


@each
def test_operators_are_named_in_full(name: str, body: str) -> None:
    assert not OPERATOR.findall(NO_OPERATOR.sub("", body))


@each
def test_types_are_named_in_full(name: str, body: str) -> None:
    assert not unqualified(body)


def test_what_counts_as_unqualified() -> None:
    body = (
        "DECLARE\n    a text;\n    b CONSTANT pg_catalog.oid := 1;\n    c int[];\n    d rel%TYPE;\n"
        "BEGIN\n    PERFORM 1::float8;\nEND\n"
    )
    assert unqualified(body) == {"text", "float8"}


def test_what_counts_as_an_operator() -> None:
    for expression in (
        "a = b",
        "a || b",
        "a IS DISTINCT FROM b",
        "a IN (b)",
        "CASE a WHEN b",
        "- a",
    ):
        assert OPERATOR.search(f" {expression} ")
    for expression in ("a OPERATOR(pg_catalog.=) b", "-1", "a IS NOT NULL", "rel => a"):
        assert not OPERATOR.search(NO_OPERATOR.sub("", f" {expression} "))
