"""What a search runs on: the table behind a model, an alias or a Core table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Table, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.orm.util import AliasedInsp
from sqlalchemy.sql import coercions, roles
from sqlalchemy.sql.elements import ColumnElement, KeyedColumnElement
from sqlalchemy.sql.expression import Alias, FromClause

from sqlvec.errors import DeclarationError
from sqlvec.schema import derived_columns
from sqlvec.types import type_name


@dataclass(frozen=True)
class Target:
    """One searched table."""

    entity: Any
    """What the caller named."""

    selectable: FromClause
    """The table or alias that the caller's expressions speak of."""

    table: Table
    mapper: Mapper[Any] | None

    @classmethod
    def of(cls, entity: Any) -> Target:
        """Find the table behind a model, an alias of one, a Core table or an alias of one.

        :raises DeclarationError: there is not exactly one table behind it.
        """
        inspected = inspect(entity, raiseerr=False)
        mapper = inspected.mapper if isinstance(inspected, Mapper | AliasedInsp) else None
        selectable = inspected if mapper is None else inspected.selectable
        table = selectable.element if isinstance(selectable, Alias) else selectable
        if not isinstance(table, Table):
            raise DeclarationError(
                f"{entity!r} does not stand for one table: a search takes a model of one table, "
                "a Table, or an alias of either"
            )
        return cls(entity, selectable, table, mapper)

    @property
    def selected(self) -> tuple[Any, ...]:
        """What ``select()`` is given: the entity, or the columns of a Core table."""
        return (self.entity,) if self.mapper is not None else tuple(self.selectable.c)

    @cached_property
    def row(self) -> FromClause:
        """The table under its bare name, as search functions see it."""
        return self.table.alias(self.table.name)

    @property
    def key(self) -> list[KeyedColumnElement[Any]]:
        """Columns of the primary key, of the selectable.

        :raises DeclarationError: there are none.
        """
        mapped = self.table.primary_key if self.mapper is None else self.mapper.primary_key
        if not mapped:
            raise DeclarationError(f"table {self.table.fullname!r} has no primary key to join by")
        return [self._of_selectable(column) for column in mapped]

    @property
    def subclass_criteria(self) -> list[ColumnElement[bool]]:
        """What tells the rows of a subclass apart in single-table inheritance."""
        if self.mapper is None or not self.mapper.single or self.mapper.polymorphic_on is None:
            return []
        discriminator = self._of_selectable(self.mapper.polymorphic_on)
        classes = self.mapper.self_and_descendants
        return [discriminator.in_([mapper.polymorphic_identity for mapper in classes])]

    def column(self, column: Any, types: tuple[str, ...]) -> Column[Any]:
        """Return the column to search, given as attribute, column or name; None finds it.

        :param types: names of the types that the search can compare.
        :raises DeclarationError: it is not there, of another type, or not the only one.
        """
        if column is None:
            return self._only_column(types)
        found = self.any_column(column)
        if type_name(found.type) not in types:
            raise DeclarationError(
                f"column {found.name!r} of table {self.table.fullname!r} is of type "
                f"{found.type!r}, not {' or '.join(types)}"
            )
        return found

    def any_column(self, column: Any) -> Column[Any]:
        """Return a column given as attribute, column or name.

        :raises DeclarationError: it is not there.
        """
        name = column if isinstance(column, str) else self._own_name(column)
        found = [c for c in self.table.columns if name in (c.key, c.name)]
        if not found:
            known = ", ".join(repr(c.name) for c in self.table.columns)
            raise DeclarationError(
                f"table {self.table.fullname!r} has no column {name!r}; its columns are: {known}"
            )
        return found[0]

    def _of_selectable(self, column: Any) -> KeyedColumnElement[Any]:
        """Return the column of the selectable that is this column of the table."""
        own = self.selectable.corresponding_column(column)
        if own is None:
            raise DeclarationError(f"{column} is not a column of table {self.table.fullname!r}")
        return own

    def _own_name(self, column: Any) -> str:
        expression: Any = coercions.expect(roles.ExpressionElementRole, column)
        own: dict[Any, str] = {c: c.name for c in (*self.selectable.c, *self.table.c)}
        if expression not in own:
            raise DeclarationError(f"{column} is not a column of table {self.table.fullname!r}")
        return own[expression]

    def _only_column(self, types: tuple[str, ...]) -> Column[Any]:
        derived = derived_columns(self.table)
        found = [
            c for c in self.table.columns if type_name(c.type) in types and c.name not in derived
        ]
        if len(found) != 1:
            names = ", ".join(repr(c.name) for c in found) or "none"
            raise DeclarationError(
                f"name the column to search: table {self.table.fullname!r} has, of type "
                f"{' or '.join(types)}: {names}"
            )
        return found[0]
