"""Filters of frameworks as the ``filter`` of the searches."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlvec.errors import DeclarationError

_AROUND_SEVERAL = ("$and", "$or")


@dataclass(frozen=True)
class Conditions:
    """Turns filters over metadata into filters over the columns that hold them.

    Metadata with a column of its own have all operators of the searches. Of what a jsonb column
    holds, containment can be asked: equality, ``$ne``, ``$in`` and ``$contains``.
    """

    table: str
    columns: Collection[str]
    json_column: str | None

    def of(self, filter: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return a filter over metadata as filter over columns.

        :raises DeclarationError: it names unknown metadata, or asks what cannot be asked of them.
        """
        if filter is None:
            return None
        if not isinstance(filter, Mapping):
            raise DeclarationError(
                f'filter: a dict is needed, e.g. {{"year": {{"$gte": 2020}}}}, not {filter!r}'
            )
        return _all([self._condition(name, value) for name, value in filter.items()])

    def _condition(self, name: str, value: Any) -> dict[str, Any]:
        if name in _AROUND_SEVERAL:
            if not isinstance(value, list | tuple):
                raise DeclarationError(f"filter: {name} needs a list of conditions, not {value!r}")
            return {name: [self.of(each) for each in value]}
        if name == "$not":
            return {name: self.of(value)}
        if name in self.columns:
            return {name: _json(value)}
        if self.json_column is None or name.startswith("$"):
            known = ", ".join(map(repr, self.columns)) or "none"
            raise DeclarationError(
                f"filter: table {self.table!r} has no metadata {name!r}; there are: {known}"
            )
        operators = value if isinstance(value, Mapping) else {"$eq": value}
        return _all([self._contained(name, op, _json(each)) for op, each in operators.items()])

    def _contained(self, name: str, operator: str, value: Any) -> dict[str, Any]:
        match operator, value:
            case "$eq", str() | int() | float():
                return self._contains(name, value)
            case "$ne", str() | int() | float():
                return {"$not": self._contains(name, value)}
            case "$in", []:
                return {"$not": {}}
            case "$in", list():
                return {"$or": [self._contained(name, "$eq", each) for each in value]}
            case "$contains", _:
                return self._contains(name, value if isinstance(value, list) else [value])
        raise DeclarationError(
            f"filter: {operator} with {value!r} cannot be asked of {name!r}, which jsonb column "
            f"{self.json_column!r} holds; it could of a column of its own"
        )

    def _contains(self, name: str, value: Any) -> dict[str, Any]:
        return {str(self.json_column): {"$contains": {name: value}}}


def _all(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    if len(conditions) == 1:
        return conditions[0]
    # One dict could not hold two conditions on the same column.
    return {"$and": conditions} if conditions else {}


def _json(value: Any) -> Any:
    """Return a value of a condition as JSON knows it."""
    match value:
        case Mapping():
            return {name: _json(each) for name, each in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_json(each) for each in value]
        case datetime() | date() | time():
            return value.isoformat()
        case UUID() | Decimal():
            return str(value)
    return value
