"""The SQL files, and the texts that are made from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sqlvec import catalog
from sqlvec.errors import VersionMismatch

SQL = Path(__file__).parents[2] / "sql"


def test_manifest_lists_every_file_once() -> None:
    assert sorted(catalog.manifest()) == sorted(path.name for path in SQL.glob("*.sql"))


def test_bundle_names_its_version() -> None:
    assert "@VERSION@" not in catalog.bundle()
    assert catalog.bundle(catalog.VERSION) == catalog.bundle()


def test_frozen_bundle_of_this_release_equals_the_source() -> None:
    frozen = SQL / "releases" / f"sqlvec--{catalog.VERSION}.sql"
    if frozen.exists():
        assert frozen.read_text(encoding="utf-8") == catalog.bundle(), "run make freeze"


def test_unknown_release() -> None:
    with pytest.raises(VersionMismatch, match="does not hold the SQL of release 0.0.1"):
        catalog.bundle("0.0.1")


def test_upgrade_runs_the_steps_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text(f"{catalog.VERSION}\n")
    (tmp_path / "manifest.txt").write_text("# comment\nlast.sql\n")
    (tmp_path / "last.sql").write_text("SELECT '@VERSION@';\n")
    (tmp_path / "upgrades").mkdir()
    (tmp_path / "upgrades" / "0.0.1--0.0.2.sql").write_text("SELECT 1;\n")
    (tmp_path / "upgrades" / f"0.0.2--{catalog.VERSION}.sql").write_text("SELECT 2;\n")
    monkeypatch.setattr(catalog, "_source", lambda: tmp_path)

    text = catalog.upgrade_bundle("0.0.1")

    assert text.split("\n") == [
        *("SELECT 1;", "", "SELECT 2;", ""),
        *(f"SELECT '{catalog.VERSION}';", ""),
    ]
    assert set(catalog.extension_files()) == {
        "sqlvec.control",
        f"sqlvec--{catalog.VERSION}.sql",
        f"sqlvec--0.0.1--{catalog.VERSION}.sql",
        f"sqlvec--0.0.2--{catalog.VERSION}.sql",
    }
    with pytest.raises(VersionMismatch, match=r"no upgrade leads from sqlvec 9\.9\.9 to"):
        catalog.upgrade_bundle("9.9.9")


def test_script_is_one_transaction() -> None:
    lines = catalog.script().splitlines()
    assert (lines[0], lines[-1]) == ("BEGIN;", "COMMIT;")
    assert not {"BEGIN;", "COMMIT;"} & set(lines[1:-1])


def test_extension_needs_pgvector() -> None:
    assert "requires = 'vector'" in catalog.extension_files()["sqlvec.control"]


def test_pg_tle_script_quotes_the_bundle() -> None:
    text = catalog.pg_tle_script()
    assert text.count("$_pgtle_$") == 2
    assert catalog.bundle() in text


def test_the_sql_is_ascii() -> None:
    """A database of another encoding than UTF8 could not read anything else."""
    assert catalog.bundle().isascii()
