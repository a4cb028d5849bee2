"""Metrics: for each, its operator, its comparator in SQLAlchemy and its operator classes."""

from __future__ import annotations

from dataclasses import dataclass

from sqlvec.errors import DeclarationError


@dataclass(frozen=True, slots=True)
class Metric:
    """What pgvector calls one metric in each of its places."""

    name: str
    """Name in sqlvec, e.g. ``cosine``."""

    operator: str
    """Operator whose ascending order is nearest first."""

    comparator: str
    """Method of pgvector's SQLAlchemy types that renders the operator."""

    short: str
    """Name within operator classes, e.g. ``ip``."""

    column_types: tuple[str, ...]
    """Types that have the metric."""

    def opclass(self, column_type: str) -> str:
        """Return the operator class that indexes a column type, e.g. ``halfvec_cosine_ops``.

        :param column_type: ``vector``, ``halfvec``, ``sparsevec`` or ``bit``.
        :raises DeclarationError: the type does not have this metric.
        """
        if column_type not in self.column_types:
            known = ", ".join(m.name for m in METRICS.values() if column_type in m.column_types)
            raise DeclarationError(
                f"type {column_type} has no metric {self.name!r}"
                + (f"; its metrics are: {known}" if known else "")
            )
        return f"{column_type}_{self.short}_ops"


_REAL = ("vector", "halfvec", "sparsevec")

METRICS = {
    metric.name: metric
    for metric in (
        Metric("l2", "<->", "l2_distance", "l2", _REAL),
        Metric("inner_product", "<#>", "max_inner_product", "ip", _REAL),
        Metric("cosine", "<=>", "cosine_distance", "cosine", _REAL),
        Metric("l1", "<+>", "l1_distance", "l1", _REAL),
        Metric("hamming", "<~>", "hamming_distance", "hamming", ("bit",)),
        Metric("jaccard", "<%>", "jaccard_distance", "jaccard", ("bit",)),
    )
}
"""Every metric by its name."""


def metric(name: str) -> Metric:
    """Return the metric of that name.

    :raises DeclarationError: there is none; the message lists the ones there are.
    """
    try:
        return METRICS[name]
    except KeyError:
        raise DeclarationError(
            f"unknown metric {name!r}; the metrics are: {', '.join(METRICS)}"
        ) from None
