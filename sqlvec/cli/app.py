"""The commands, put together."""

from __future__ import annotations

import typer

from sqlvec.cli import backfill, bm25, demo, export, indexes, installation, neighbours, relevance

app = typer.Typer(
    name="sqlvec",
    help="Quantized vectors and BM25 full-text search for Postgres with pgvector.",
    epilog="Exit status: 0 done, 1 failed or problems found, 2 wrong call.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(installation.install)
app.command()(installation.upgrade)
app.command()(installation.uninstall)
app.command()(installation.check)
app.command()(installation.version)
app.command()(export.script)
app.command()(export.extension_files)
app.command()(backfill.backfill)
app.add_typer(indexes.app, name="index")
app.add_typer(bm25.app, name="bm25")
app.add_typer(neighbours.app, name="neighbours")
app.add_typer(relevance.app, name="relevance")
app.command()(demo.demo)
