"""Commands for relevance models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Shown
from sqlalchemy import Connection, text

from sqlvec import relevance
from sqlvec.cli.database import Dsn, engine
from sqlvec.errors import DeclarationError
from sqlvec.relevance import Floats
from sqlvec.terminal import print_whole

if TYPE_CHECKING:
    from sqlvec.fit.judgements import Judgements, Source
    from sqlvec.fit.relevance import Fit

app = typer.Typer(
    help="Fit what turns scores into probabilities of being relevant.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="Of the model.")]
Queries = Annotated[str, typer.Option(help="Table with the queries, as in SQL.")]
QueryKey = Annotated[str, typer.Option(help="Its column that judgements name queries by.")]
QueryColumn = Annotated[str, typer.Option(help="Its column with the vector, text or tokens.")]
VectorColumn = Annotated[str, typer.Option(help="Column of the queries for the vector leg.")]
TextColumn = Annotated[str, typer.Option(help="Column of the queries for the text leg.")]
TokensColumn = Annotated[str, typer.Option(help="Column of the queries for the multi-vector leg.")]
Key = Annotated[str, typer.Option(help="Column that judgements name rows by.")]
File = Annotated[
    Path | None,
    typer.Option(
        "--judgements",
        exists=True,
        dir_okay=False,
        help="File: query-id, corpus-id, score by tabs, or a JSON object a line.",
    ),
]
JudgementTable = Annotated[
    str | None,
    typer.Option(
        "--judgements-table", help="Table instead, with columns query_id, document_id, grade."
    ),
]
Candidates = Annotated[int, typer.Option(min=10, help="Rows to find for each query.")]
Recall = Annotated[float, typer.Option(min=0.01, max=1, help="Share of relevant rows to keep.")]
Answered = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=1,
        help="Share of the queries with an answer that are to be answered, such as 0.98; where even"
        " the best row looks worse a search answers nothing. Left out: all.",
    ),
]
Html = Annotated[Path | None, typer.Option(dir_okay=False, help="Write a page to choose by.")]


@app.command()
def fit(
    name: Name,
    table: Annotated[str, typer.Argument(help="As in SQL: doc, shop.doc, '\"Doc\"'.")],
    column: Annotated[str, typer.Argument(help="Its vector, BM25 or multi-vector column.")],
    *,
    dsn: Dsn,
    queries: Queries,
    query_column: QueryColumn,
    leg: Annotated[str, typer.Option(help="vector, text or tokens.")] = "vector",
    key: Key = "id",
    query_key: QueryKey = "id",
    judgements: File = None,
    judgements_table: JudgementTable = None,
    family: Annotated[
        str,
        typer.Option(
            help="raw, linear, sqrt, quadratic or power; auto fits all and takes the one that"
            " removes most at the wanted recall (without judgements: linear)."
        ),
    ] = "auto",
    candidates: Candidates = 100,
    recall: Recall = 0.95,
    answered: Answered = None,
    seed: Annotated[int, typer.Option(help="Of the folds and the sample of rows.")] = 0,
    report: Html = None,
) -> None:
    """Fit a model to judged queries, or to the background when there are no judgements."""
    from sqlvec.fit.judgements import Source, collect
    from sqlvec.fit.relevance import RECALLS, fit_best, fit_leg
    from sqlvec.fit.relevance_report import Judged, page

    source = Source(leg, table, column, key, queries, query_key, query_column)
    with engine(dsn).begin() as connection:
        _require_free(connection, name)
        given = _judgements(connection, judgements, judgements_table)
        if given is None and answered is not None:
            raise DeclarationError(
                "--answered needs judgements to say which queries have an answer"
            )
        found = collect(connection, source, given, candidates=candidates, seed=seed)
        options: dict[str, Any] = {
            "background": found.background,
            "unanswerable": found.unanswerable,
            "recalls": sorted({*RECALLS, recall}),
            "answered": answered,
            "seed": seed,
        }
        if family != "auto":
            fitted = fit_leg(leg, found.examples, family, **options)
        elif given is None:
            fitted = fit_leg(leg, found.examples, **options)
        else:
            fitted = fit_best(leg, found.examples, recall=recall, **options)
        assert isinstance(fitted.model, relevance.LegModel)
        _require_reach(fitted, recall)
        relevance.save(
            connection,
            name,
            fitted.model,
            table=table,
            column=column,
            thresholds=fitted.thresholds if given is not None else None,
            min_best=fitted.min_best,
            queries=fitted.queries,
            examples=fitted.examples,
            positives=fitted.positives if given is not None else None,
            brier=fitted.brier if given is not None else None,
        )
    typer.echo(
        f"{name}: family {fitted.model.family},"
        f" fitted to {fitted.examples:,} candidates of {fitted.queries:,} queries"
    )
    if given is None:
        typer.echo("without judgements: relevance is the chance of not being background")
    else:
        typer.echo(_held_out(fitted, recall))
        typer.echo(f"{found.found:.0%} of the relevant rows are among the candidates")
    if report is not None:
        title = f"{name}, leg {leg}, family {fitted.model.family}"
        judged = Judged.of_fit(title, fitted, recall, found, given)
        report.write_text(page([judged]), encoding="utf-8")


@app.command()
def fuse(
    name: Name,
    *,
    dsn: Dsn,
    queries: Queries,
    vector: Annotated[str | None, typer.Option(help="Model of the vector leg.")] = None,
    vector_column: VectorColumn = "embedding",
    text_: Annotated[str | None, typer.Option("--text", help="Model of the text leg.")] = None,
    text_column: TextColumn = "text",
    tokens: Annotated[str | None, typer.Option(help="Model of the multi-vector leg.")] = None,
    tokens_column: TokensColumn = "tokens",
    key: Key = "id",
    query_key: QueryKey = "id",
    judgements: File = None,
    judgements_table: JudgementTable = None,
    candidates: Candidates = 100,
    recall: Recall = 0.95,
    answered: Answered = None,
    seed: Annotated[int, typer.Option(help="Of the folds and the sample of rows.")] = 0,
    report: Html = None,
) -> None:
    """Fit the combination of models of several legs, on the judgements that these were fitted to.

    Models of the same families are fitted to other queries again and again meanwhile: in the
    stored ones, which know all these queries, the combination would trust too much.
    """
    from sqlvec.fit.judgements import align, collect, complete
    from sqlvec.fit.relevance import RECALLS, fit_fused, fit_leg
    from sqlvec.fit.relevance_report import Judged, page

    legs = {"vector": (vector, vector_column), "text": (text_, text_column)}
    legs["tokens"] = (tokens, tokens_column)
    given = {leg: (model, column) for leg, (model, column) in legs.items() if model is not None}
    if len(given) < 2:
        raise DeclarationError("a combination takes models of two legs or more")
    recalls = sorted({*RECALLS, recall})
    with engine(dsn).begin() as connection:
        _require_free(connection, name)
        judged = _required(_judgements(connection, judgements, judgements_table))
        sources = {}
        for leg, (model, column) in given.items():
            sources[leg] = _source(connection, model, key, queries, query_key, column)
            if sources[leg][0].leg != leg:
                raise DeclarationError(f"relevance model {model!r} is of leg {sources[leg][0].leg}")
        found = {
            leg: collect(connection, source, judged, candidates=candidates, seed=seed)
            for leg, (source, _) in sources.items()
        }
        pairs = [pair for some in found.values() for pair in some.pairs]
        judged_legs = {}
        parts = []
        for leg, (source, family) in sources.items():
            some = found[leg]
            others = complete(connection, source, some, pairs, judged)
            fitted = fit_leg(
                leg,
                some.examples,
                family,
                background=some.background,
                unanswerable=some.unanswerable,
                others=others.examples,
                recalls=recalls,
                seed=seed,
            )
            assert fitted.others is not None
            judged_legs[leg] = [(some, fitted.relevance), (others, fitted.others)]
            title = f"{given[leg][0]}, leg {leg}, family {family}"
            parts.append(Judged.of_fit(title, fitted, recall, some, judged))
        aligned = align(judged_legs)
        fused = fit_fused(
            aligned.relevance,
            aligned.query,
            aligned.label,
            models={leg: model for leg, (model, _) in given.items()},
            recalls=recalls,
            answered=answered,
            seed=seed,
        )
        _require_reach(fused, recall)
        relevance.save(
            connection,
            name,
            fused.model,
            thresholds=fused.thresholds,
            min_best=fused.min_best,
            queries=fused.queries,
            examples=fused.examples,
            positives=fused.positives,
            brier=fused.brier,
        )
    typer.echo(f"{name}: fitted to {fused.examples:,} candidates of {fused.queries:,} queries")
    typer.echo(_held_out(fused, recall))
    if report is not None:
        parts.insert(0, Judged.of_fit(f"{name}, fused", fused, recall, aligned, judged))
        report.write_text(page(parts), encoding="utf-8")


@app.command("list")
def list_models(*, dsn: Dsn) -> None:
    """List the models of a database."""
    statement = """
        SELECT m.name, m.leg, m.family, sqlvec._qualified(c.relation),
               coalesce(c.column_name::text, pg_catalog.array_to_string(m.models, ', '), '(gone)'),
               m.queries, m.positives, m.brier
        FROM sqlvec.relevance_model AS m, sqlvec._relevance_column(m) AS c
        ORDER BY m.name
    """
    with engine(dsn).connect() as connection:
        rows = connection.execute(text(statement)).all()
    if not rows:
        typer.echo("no relevance models")
        return
    shown = Shown(box=None, pad_edge=False, header_style="dim")
    for title in (
        "name",
        "leg",
        "family",
        "table",
        "column or models",
        "queries",
        "relevant",
        "Brier",
    ):
        shown.add_column(title, no_wrap=True)
    for row in rows:
        cells = [escape(name or "") for name in row[:5]]
        cells += ["" if count is None else f"{count:,}" for count in row[5:7]]
        shown.add_row(*cells, "" if row[7] is None else f"{row[7]:.4f}")
    print_whole(Console(), shown)


@app.command()
def drop(name: Name, *, dsn: Dsn) -> None:
    """Remove a model."""
    with engine(dsn).begin() as connection:
        connection.execute(text("CALL sqlvec.drop_relevance_model(:name)"), {"name": name})


@app.command()
def report(
    name: Name,
    html: Annotated[Path, typer.Argument(dir_okay=False, help="File to write.")],
    *,
    dsn: Dsn,
    queries: Queries,
    query_column: Annotated[
        str | None, typer.Option(help="Its column with the query; of a model of one leg.")
    ] = None,
    vector_column: VectorColumn = "embedding",
    text_column: TextColumn = "text",
    tokens_column: TokensColumn = "tokens",
    key: Key = "id",
    query_key: QueryKey = "id",
    judgements: File = None,
    judgements_table: JudgementTable = None,
    candidates: Candidates = 100,
    recall: Recall = 0.95,
) -> None:
    """Write a page about a stored model on judged queries, best those that it has not seen.

    Of a fused model, it shows the models of the legs as well.
    """
    from sqlvec.fit.judgements import judge
    from sqlvec.fit.relevance_report import Judged, page

    columns = {"vector": vector_column, "text": text_column, "tokens": tokens_column}
    parts = []
    with engine(dsn).connect() as connection:
        model = relevance.load(connection, name)
        judged = _required(_judgements(connection, judgements, judgements_table))
        fused = model if isinstance(model, relevance.FusedModel) else None
        if fused is not None and query_column is not None:
            raise DeclarationError(
                f"relevance model {name!r} combines legs; name the columns of their queries by"
                " --vector-column, --text-column and --tokens-column"
            )
        names = [name] if fused is None else [leg for leg in fused.models if leg is not None]
        legs = []
        for leg_name in names:
            leg_model = relevance.load(connection, leg_name)
            assert isinstance(leg_model, relevance.LegModel)
            column = query_column or columns[leg_model.leg]
            source, _ = _source(connection, leg_name, key, queries, query_key, column)
            legs.append((leg_model, source))
        by_leg, aligned = judge(connection, legs, judged, candidates=candidates)
        for leg_name, (leg_model, _), (some, own) in zip(names, legs, by_leg, strict=True):
            title = f"{leg_name}, leg {leg_model.leg}, family {leg_model.family}"
            cuts = _cuts(connection, leg_name, recall, own, some.label)
            parts.append(Judged.of_model(title, own, cuts, some, judged))
        if fused is not None:
            own = fused.relevance(**aligned.relevance)
            cuts = _cuts(connection, name, recall, own, aligned.label)
            parts.insert(0, Judged.of_model(f"{name}, fused", own, cuts, aligned, judged))
    html.write_text(page(parts), encoding="utf-8")


def _cuts(
    connection: Connection, name: str, recall: float, found: Floats, label: Floats
) -> tuple[float, float | None]:
    """Return the stored threshold of a model for a recall, or else that of some candidates.

    And what the best row has to reach.
    """
    from sqlvec.fit.relevance import threshold

    statement = """
        SELECT m.thresholds[pg_catalog.array_position(m.recalls, CAST(:recall AS float8))],
               m.min_best
        FROM sqlvec.relevance_model AS m
        WHERE m.name = :name
    """
    parameters = {"name": name, "recall": recall}
    stored, min_best = connection.execute(text(statement), parameters).one()
    return threshold(found, label, recall) if stored is None else stored, min_best


def _judgements(connection: Connection, file: Path | None, table: str | None) -> Judgements | None:
    from sqlvec.fit.judgements import load_judgements, read_judgements

    if file is not None and table is not None:
        raise DeclarationError("judgements come from a file or from a table, not from both")
    if table is not None:
        return load_judgements(connection, table)
    return None if file is None else read_judgements(file)


def _require_free(connection: Connection, name: str) -> None:
    """Fail before the work, not after it."""
    statement = "SELECT EXISTS (SELECT FROM sqlvec.relevance_model WHERE name = :name)"
    if connection.scalar(text(statement), {"name": name}):
        raise DeclarationError(
            f"relevance model {name!r} already exists: sqlvec relevance drop, or another name"
        )


def _required(judgements: Judgements | None) -> Judgements:
    if judgements is None:
        raise DeclarationError("this needs --judgements or --judgements-table")
    return judgements


def _source(
    connection: Connection, model: str, key: str, queries: str, query_key: str, query_column: str
) -> tuple[Source, str]:
    """Return where the candidates of a stored model come from, and its family."""
    from sqlvec.fit.judgements import Source

    statement = """
        SELECT m.leg, m.family, sqlvec._qualified(c.relation), c.column_name
        FROM sqlvec.relevance_model AS m, sqlvec._relevance_column(m) AS c
        WHERE m.name = :name AND m.leg <> 'fused'
    """
    row = connection.execute(text(statement), {"name": model}).one_or_none()
    if row is None:
        raise DeclarationError(f"there is no relevance model {model!r} of one leg in the catalog")
    leg, family, table, column = row
    if table is None:
        raise DeclarationError(f"the column that relevance model {model!r} was fitted for is gone")
    return Source(leg, table, column, key, queries, query_key, query_column), family


def _require_reach(fitted: Fit, recall: float) -> None:
    """Fail where the queries that are answered hold too few of the relevant rows."""
    if fitted.min_best is not None and recall not in fitted.thresholds:
        raise DeclarationError(
            f"the queries to be answered hold less than {recall:.0%} of the relevant candidates;"
            " ask for a lower --recall or a higher --answered"
        )


def _held_out(fitted: Fit, recall: float) -> str:
    best = (
        ""
        if fitted.min_best is None
        else (f"a search answers nothing where the best row is below {fitted.min_best:.4f}\n")
    )
    return best + (
        f"min_relevance for a recall of {recall:.0%}: {fitted.thresholds[recall]:.4f}\n"
        f"on queries held out of fit and threshold it keeps {fitted.recall(recall):.0%} of the"
        f" relevant candidates and removes {fitted.removed(recall):.0%} of all;"
        f" Brier score {fitted.brier:.4f}"
    )
