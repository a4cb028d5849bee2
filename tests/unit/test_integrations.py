"""Filters of frameworks, and modules without their library."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest

from sqlvec.errors import DeclarationError, MissingRequirement
from sqlvec.integrations.conditions import Conditions


@pytest.mark.parametrize(
    ("module", "library", "extra"),
    [
        ("langchain", "langchain_core", "langchain"),
        ("llama_index", "llama_index", "llama-index"),
    ],
)
def test_without_its_library_a_module_names_the_extra(monkeypatch, module, library, extra):
    for name in list(sys.modules):
        if name.split(".")[0] == library:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, f"sqlvec.integrations.{module}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingRequirement, match=rf"pip install 'sqlvec\[{extra}\]'"):
        importlib.import_module(f"sqlvec.integrations.{module}")


def contains(value: Any) -> dict[str, Any]:
    return {"meta": {"$contains": value}}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, None),
        ({}, {}),
        ({"year": {"$gte": 2020}}, {"year": {"$gte": 2020}}),
        ({"a": 1}, contains({"a": 1})),
        ({"a": 1, "b": 2}, {"$and": [contains({"a": 1}), contains({"b": 2})]}),
        ({"a": {"$ne": 1}}, {"$not": contains({"a": 1})}),
        ({"a": {"$in": [1, 2]}}, {"$or": [contains({"a": 1}), contains({"a": 2})]}),
        ({"a": {"$in": ()}}, {"$not": {}}),
        ({"$not": {"meta": 1}}, {"$not": contains({"meta": 1})}),
        ({"$or": [{"year": 1}, {}]}, {"$or": [{"year": 1}, {}]}),
    ],
)
def test_filters_over_columns(asked, expected):
    assert Conditions("doc", ["year"], "meta").of(asked) == expected


@pytest.mark.parametrize("asked", [{"$year": 1}, {"meta": 1}, {"x": 1}, {"$or": [{"id": 1}]}])
def test_unknown_metadata_are_refused(asked):
    with pytest.raises(DeclarationError, match="there are: 'year'"):
        Conditions("doc", ["year"], None).of(asked)
