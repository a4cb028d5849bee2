"""One HTML page, without anything outside it, on which a person chooses a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from sqlvec.fit.judgements import Aligned, Candidates, Judgements
from sqlvec.fit.ranking import Quality
from sqlvec.fit.relevance import Fit, best_of_queries, reliability, threshold
from sqlvec.relevance import Floats

_WIDTH, _HEIGHT, _MARGIN = 460, 260, 42
_BLUE, _ORANGE, _GREY = "#1f6feb", "#d1572b", "#8a8f98"
_RECALLS = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Judged:
    """Candidates under a model.

    :param title: what stands above them, e.g. the name of the model and its leg.
    :param relevance: of each candidate (m,).
    :param label: 1 for relevant, 0 for not (m,).
    :param chosen: the relevance that candidates need.
    :param note: one sentence on where the figures come from.
    :param found: the candidates, for what is shown by query; None shows nothing of this.
    :param quality: of their ranking.
    :param min_best: what the best candidate of a query needs, if the model asks for it.
    """

    title: str
    relevance: Floats
    label: Floats
    chosen: float
    note: str = ""
    found: Candidates | Aligned | None = None
    quality: Quality | None = None
    min_best: float | None = None

    @classmethod
    def of_fit(
        cls,
        title: str,
        fit: Fit,
        recall: float,
        found: Candidates | Aligned | None = None,
        judgements: Judgements | None = None,
    ) -> Judged:
        """Return what a fit says of queries held out of it, cut for a recall."""
        note = "Every query was judged by a model that was fitted on other queries."
        quality = _quality(fit.relevance, found, judgements)
        return cls(
            title,
            fit.relevance,
            fit.label,
            fit.thresholds[recall],
            note,
            found,
            quality,
            fit.min_best,
        )

    @classmethod
    def of_model(
        cls,
        title: str,
        relevance: Floats,
        cuts: tuple[float, float | None],
        found: Candidates | Aligned,
        judgements: Judgements,
    ) -> Judged:
        """Return what a stored model says of candidates, cut by themselves and by their best."""
        chosen, min_best = cuts
        note = "The stored model on these queries; flattering where it was fitted on them."
        quality = _quality(relevance, found, judgements)
        return cls(title, relevance, found.label, chosen, note, found, quality, min_best)


def page(parts: Sequence[Judged]) -> str:
    """Return the page: quality side by side, then distributions, thresholds and reliability."""
    body = "\n".join((_comparison(parts), *(_section(part) for part in parts)))
    return _PAGE.format(title=escape(", ".join(part.title for part in parts)), body=body)


def _quality(
    relevance: Floats, found: Candidates | Aligned | None, judgements: Judgements | None
) -> Quality | None:
    if found is None or judgements is None:
        return None
    return Quality.of_candidates(relevance, found.query_keys, found.rows, judgements, found.asked)


def _comparison(parts: Sequence[Judged]) -> str:
    """Tabulate the parts side by side, each cut for what was chosen."""
    rows = []
    for part in parts:
        cells = ["", "", ""]
        if part.quality is not None:
            q = part.quality
            cells = [f"{q.ndcg:.3f}", f"{q.average_precision:.3f}", f"{q.found:.1%}"]
        cut = _cut(part, part.chosen)
        brier = np.mean((part.relevance - part.label) ** 2)
        rows.append([part.title, *cells, f"{brier:.4f}", *cut])
    titles = ("", "nDCG@10", "average precision", "relevant rows found", "Brier score", *_CUT)
    return (
        "<section><h2>Quality</h2><p>Means over the judged queries; a query for which a leg found"
        " nothing counts as 0. Of legs that are combined, each is shown alone.</p>"
        f"{_table(titles, rows)}</section>"
    )


_CUT = (
    "min_relevance",
    "relevant ones kept",
    "candidates removed",
    "precision of what is kept",
    "queries left with nothing",
)


def _cut(part: Judged, chosen: float) -> list[str]:
    positive = part.label >= 0.5
    kept = part.relevance >= chosen
    if part.min_best is not None and part.found is not None:
        _, query = np.unique(part.found.query_keys, return_inverse=True)
        kept &= best_of_queries(part.relevance, query)[query] >= part.min_best
    precision = f"{positive[kept].mean():.1%}" if kept.any() else ""
    empty = ""
    if part.found is not None:
        left = {key for key, is_kept in zip(part.found.query_keys, kept, strict=True) if is_kept}
        empty = f"{1 - len(left) / max(len(part.found.asked), 1):.1%}"
    recall = f"{kept[positive].mean():.1%}" if positive.any() else ""
    return [f"{chosen:.4f}", recall, f"{1 - kept.mean():.1%}", precision, empty]


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in titles)
    body = []
    for name, *cells in rows:
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f"<tr><th>{escape(name)}</th>{values}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _section(part: Judged) -> str:
    positive = part.label >= 0.5
    figures = [
        ("candidates", f"{len(part.label):,}"),
        ("relevant among them", f"{int(positive.sum()):,} ({positive.mean():.1%})"),
        ("Brier score", f"{np.mean((part.relevance - part.label) ** 2):.4f}"),
        ("Brier score of always saying the mean", f"{positive.mean() * (1 - positive.mean()):.4f}"),
    ]
    if part.min_best is not None:
        figures.append(("relevance that the best row of a query needs", f"{part.min_best:.4f}"))
    cells = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in figures)
    choices = [["in use", *_cut(part, part.chosen)]]
    if positive.any():
        choices += [
            [f"keeps {recall:.0%}", *_cut(part, threshold(part.relevance, part.label, recall))]
            for recall in _RECALLS
        ]
    charts = [_relevances(part), _precision_recall(part), _reliability(part)]
    if isinstance(part.found, Candidates):
        charts.insert(0, _scores(part.found, positive))
    return (
        f"<section><h2>{escape(part.title)}</h2><p>{escape(part.note)}</p><table>{cells}</table>"
        f"{_table(('', *_CUT), choices)}<div class='charts'>{''.join(charts)}</div></section>"
    )


def _scores(found: Candidates, positive: NDArray[np.bool_]) -> str:
    title = "Scores of relevant and other candidates: cosines, or shares of the maximum"
    x = found.examples.x
    return _distributions(title, x, positive, (float(x.min()), float(x.max() + 1e-9)), None)


def _relevances(part: Judged) -> str:
    title = "Relevance of relevant and other candidates"
    x, positive = _log_odds(part.relevance), part.label >= 0.5
    return _distributions(title, x, positive, _span(part.relevance), part.chosen)


def _distributions(
    title: str,
    x: Floats,
    positive: NDArray[np.bool_],
    span: tuple[float, float],
    chosen: float | None,
) -> str:
    """Draw where relevant and other candidates lie, each as a share of its own class."""
    edges = np.linspace(*span, 41)
    lines = []
    for some, colour in ((positive, _BLUE), (~positive, _ORANGE)):
        counts = np.histogram(x[some], edges)[0]
        share = counts / max(counts.sum(), 1)
        lines.append((np.repeat(edges, 2)[1:-1], np.repeat(share, 2), colour))
    top = max(float(line[1].max()) for line in lines)
    legend = [("relevant", _BLUE), ("other", _ORANGE)]
    return _chart(title, lines, span, (0, top or 1), legend, chosen)


def _precision_recall(part: Judged) -> str:
    order = np.argsort(-part.relevance, kind="stable")
    positive = (part.label >= 0.5)[order]
    hits = np.cumsum(positive)
    x = _log_odds(part.relevance[order])
    # As many points as the picture can show, wherever the candidates are.
    wanted = np.linspace(x[0], x[-1], 300)
    points = np.unique(np.minimum(np.searchsorted(-x, -wanted), len(x) - 1))
    return _chart(
        "Precision and recall against min_relevance",
        [
            (x[points], (hits / np.arange(1, len(hits) + 1))[points], _BLUE),
            (x[points], (hits / max(hits[-1], 1))[points], _ORANGE),
        ],
        _span(part.relevance),
        (0, 1),
        [("precision", _BLUE), ("recall", _ORANGE)],
        part.chosen,
    )


def _reliability(part: Judged) -> str:
    bins = reliability(part.relevance, part.label)
    predicted = np.array([b.predicted for b in bins])
    observed = np.array([b.observed for b in bins])
    ends = (0.0, float(max(predicted.max(), observed.max(), 1e-3)))
    return _chart(
        "Reliability: observed share of relevant ones against relevance",
        [(np.array(ends), np.array(ends), _GREY), (predicted, observed, _BLUE)],
        ends,
        ends,
        [("tenths of what is expected", _BLUE), ("perfect", _GREY)],
        None,
        dots=1,
    )


def _chart(
    title: str,
    lines: Sequence[tuple[NDArray[np.floating], NDArray[np.floating], str]],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    legend: Sequence[tuple[str, str]],
    chosen: float | None,
    dots: int | None = None,
) -> str:
    """Draw lines; the horizontal axis is in log-odds where a threshold is shown on it."""
    low, high = x_range

    def across(x: float) -> float:
        return _MARGIN + (x - low) / (high - low or 1) * (_WIDTH - 2 * _MARGIN)

    def up(y: float) -> float:
        span = y_range[1] - y_range[0] or 1
        return _HEIGHT - _MARGIN - (y - y_range[0]) / span * (_HEIGHT - 2 * _MARGIN)

    parts = []
    for number, (x, y, colour) in enumerate(lines):
        points = [(across(float(a)), up(float(b))) for a, b in zip(x, y, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f"<polyline points='{path}' stroke='{colour}'/>")
        if number == dots:
            parts += [
                f"<circle cx='{a:.1f}' cy='{b:.1f}' r='3' fill='{colour}'/>" for a, b in points
            ]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x_at, y_at = low + share * (high - low), y_range[0] + share * (y_range[1] - y_range[0])
        label = f"{x_at:.3g}" if chosen is None else f"{1 / (1 + np.exp(-x_at)):.2g}"
        parts.append(
            f"<text x='{across(x_at):.1f}' y='{_HEIGHT - 24}' class='middle'>{label}</text>"
        )
        parts.append(
            f"<text x='{_MARGIN - 6}' y='{up(y_at) + 4:.1f}' class='end'>{y_at:.3g}</text>"
        )
    if chosen is not None:
        at = across(float(_log_odds(np.array([chosen]))[0]))
        parts.append(
            f"<line x1='{at:.1f}' x2='{at:.1f}' y1='{_MARGIN}' y2='{_HEIGHT - _MARGIN}'"
            f" stroke='{_GREY}' stroke-dasharray='4'/>"
        )
    for number, (name, colour) in enumerate(legend):
        x_at = _MARGIN + 160 * number
        parts.append(
            f"<rect x='{x_at}' y='{_HEIGHT - 14}' width='10' height='10' fill='{colour}'/>"
        )
        parts.append(f"<text x='{x_at + 15}' y='{_HEIGHT - 5}'>{name}</text>")
    frame = (
        f"<rect x='{_MARGIN}' y='{_MARGIN}' width='{_WIDTH - 2 * _MARGIN}'"
        f" height='{_HEIGHT - 2 * _MARGIN}' class='frame'/>"
    )
    return (
        f"<svg viewBox='0 0 {_WIDTH} {_HEIGHT}' role='img' aria-label='{title}'>"
        f"<text x='{_MARGIN}' y='26' class='title'>{title}</text>{frame}{''.join(parts)}</svg>"
    )


def _log_odds(relevance: NDArray[np.floating]) -> Floats:
    clipped = np.clip(relevance, 1e-6, 1 - 1e-6)
    result: Floats = np.log(clipped / (1 - clipped))
    return result


def _span(relevance: Floats) -> tuple[float, float]:
    odds = _log_odds(relevance)
    return float(odds.min()), float(max(odds.max(), odds.min() + 1e-3))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Relevance: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #1c2128 }}
body {{ margin: 2rem auto; max-width: 1100px }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ text-align: left; padding: .2rem 1.5rem .2rem 0; font-weight: normal }}
td {{ font-variant-numeric: tabular-nums; font-weight: 600 }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1rem }}
svg {{ width: 100%; font-size: 11px }}
svg polyline {{ fill: none; stroke-width: 1.6 }}
svg .frame {{ fill: none; stroke: #d0d7de }}
svg .title {{ font-size: 13px; font-weight: 600 }}
svg .middle {{ text-anchor: middle }} svg .end {{ text-anchor: end }}
</style></head><body>
<h1>Relevance</h1>
<p>The dashed line is the min_relevance in use. Move it in thought: to its right stands what a
search returns, under it what it costs in recall. The tables say the same for some values.</p>
{body}
</body></html>
"""
