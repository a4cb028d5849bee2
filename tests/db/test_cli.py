"""The command line: exit status, output and errors."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import psycopg
import pytest

from sqlvec import catalog, cli

CreateDatabase = Callable[..., str]
Completed = subprocess.CompletedProcess[str]


def sqlvec(*arguments: str, dsn: str | None = None) -> Completed:
    """Do in this process what the command does in its own, which starts in a second."""
    environment = {} if dsn is None else {"SQLVEC_DSN": dsn}
    status: object = 0
    with (
        patch.dict(os.environ, environment),
        patch.object(sys, "argv", ["sqlvec", *arguments]),
        redirect_stdout(io.StringIO()) as output,
        redirect_stderr(io.StringIO()) as errors,
    ):
        if dsn is None:
            os.environ.pop("SQLVEC_DSN", None)
        try:
            cli.main()
        except SystemExit as end:
            status = end.code
    # As the interpreter ends: a message goes to standard error.
    if isinstance(status, str):
        return Completed(arguments, 1, output.getvalue(), f"{errors.getvalue()}{status}\n")
    assert status is None or isinstance(status, int)
    return Completed(arguments, status or 0, output.getvalue(), errors.getvalue())


def process(*arguments: str) -> Completed:
    command = [sys.executable, "-c", "from sqlvec.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_life_of_an_installation(tmp_database: CreateDatabase) -> None:
    dsn = tmp_database(None)

    refused = sqlvec("install", "--dsn", dsn)
    assert refused.returncode == 1
    assert refused.stderr.startswith('sqlvec: sqlvec needs the extension "vector"')
    assert "Traceback" not in refused.stderr

    assert sqlvec("install", "--dsn", dsn, "--create-extension").returncode == 0
    assert sqlvec("install", dsn=dsn).stdout == f"sqlvec {catalog.VERSION} is installed\n"
    assert sqlvec("upgrade", dsn=dsn).stdout == f"sqlvec {catalog.VERSION} is installed\n"
    assert sqlvec("version", dsn=dsn).stdout.splitlines() == [
        f"package: {catalog.VERSION}",
        f"database: {catalog.VERSION}",
    ]
    checked = sqlvec("check", dsn=dsn)
    assert checked.returncode == 0
    assert checked.stdout.endswith(f"sqlvec {catalog.VERSION} is in order\n")
    assert sqlvec("uninstall", dsn=dsn).stdout == "sqlvec is removed\n"

    gone = sqlvec("check", dsn=dsn)
    assert gone.returncode == 1
    assert "sqlvec is not installed in database" in gone.stderr
    assert sqlvec("version", dsn=dsn).stdout.endswith("database: not installed\n")


def test_takes_the_url_of_sqlalchemy(dsn: str) -> None:
    url = dsn.replace("postgresql://", "postgresql+psycopg://")
    assert "database: " in process("version", "--dsn", url).stdout


def test_without_a_database() -> None:
    missing = sqlvec("install")
    assert missing.returncode == 2
    assert "--dsn" in missing.stderr
    assert sqlvec("version").stdout == f"package: {catalog.VERSION}\n"


def test_database_out_of_reach() -> None:
    result = process("install", "--dsn", "postgresql://127.0.0.1:1/nowhere")
    assert result.returncode == 1
    assert result.stderr.startswith("sqlvec: connection failed")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "statement"),
    [
        (["backfill", "doc"], "CALL sqlvec.backfill"),
        (["index", "build", "doc", "embedding"], "CREATE INDEX CONCURRENTLY"),
    ],
)
def test_interrupted(tmp_database: CreateDatabase, arguments: list[str], statement: str) -> None:
    dsn = tmp_database()
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from sqlvec.cli import main; main()"
    )
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        f" AND query ^@ '{statement}' AND state = 'active' AND wait_event_type = 'Lock'"
    )
    with psycopg.connect(dsn) as holder, psycopg.connect(dsn, autocommit=True) as other:
        other.execute("CREATE TABLE doc (id int, embedding vector(3))")
        other.execute("INSERT INTO doc VALUES (1, '[1,2,3]')")
        other.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary')")
        # A backfill waits for the row, an index for the transaction.
        holder.execute("UPDATE doc SET id = 2")
        command = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--dsn", dsn],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

        def wait_until(busy: bool) -> None:
            end = time.monotonic() + 60
            while other.execute(running).fetchone() != (int(busy),):
                assert command.poll() is None or not busy, command.communicate()
                assert time.monotonic() < end
                time.sleep(0.05)

        with command:
            wait_until(True)
            command.send_signal(signal.SIGINT)
            wait_until(False)
            holder.rollback()
            _, errors = command.communicate(timeout=60)
    assert command.returncode == 130
    assert errors == "interrupted; run it again to go on\n"


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for arguments in (
        ["extension-files", "--dest", str(file / "extension")],
        ["demo", "--keep", str(file / "data"), "a question"],
    ):
        refused = sqlvec(*arguments)
        assert refused.returncode == 1
        assert refused.stderr.startswith("sqlvec: [Errno ")
        assert str(file) in refused.stderr


def test_script_and_extension_files(tmp_path: Path) -> None:
    assert sqlvec("script").stdout == catalog.script()
    unknown = sqlvec("script", "--from", "0.0.1")
    assert unknown.stderr.startswith("sqlvec: no upgrade leads from sqlvec 0.0.1")
    assert sqlvec("extension-files", "--pg-tle").stdout == catalog.pg_tle_script()
    assert sqlvec("extension-files").returncode == 2
    written = sqlvec("extension-files", "--dest", str(tmp_path / "extension"))
    assert len(written.stdout.splitlines()) == len(catalog.extension_files())
    for name, content in catalog.extension_files().items():
        assert (tmp_path / "extension" / name).read_text() == content


@pytest.mark.parametrize("module", ["typer", "rich", "psycopg"])
def test_missing_extra_is_one_clear_sentence(module: str) -> None:
    program = f"import sys; sys.modules[{module!r}] = None; from sqlvec.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert "pip install" in result.stderr
    assert "Traceback" not in result.stderr
