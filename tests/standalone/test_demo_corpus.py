"""The corpus of the demo: what is taken from source files, and what is left out."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sqlvec.demo.corpus import Entry, read_library


def names(folder: Path) -> list[str]:
    return [entry.name for entry in read_library(folder)]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")


def test_takes_modules_classes_and_functions(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "textwrap.py": '''
"""Text wrapping and filling."""

raise SystemExit("this must never run")

class Wrapper:
    """Object for wrapping and filling text.

    More on its own line.
    """

    def fill(self, text: str, *, width=70) -> str:
        """Reformat the text to fit the lines."""

async def wait(*things):
    """Wait for all of these things, whatever they are."""
'''
        },
    )
    assert read_library(tmp_path) == [
        Entry("textwrap", "module", "", "Text wrapping and filling."),
        Entry(
            "textwrap.Wrapper",
            "class",
            "",
            "Object for wrapping and filling text.\n\nMore on its own line.",
        ),
        Entry(
            "textwrap.Wrapper.fill",
            "function",
            "(self, text: str, *, width=70)",
            "Reformat the text to fit the lines.",
        ),
        Entry(
            "textwrap.wait",
            "function",
            "(*things)",
            "Wait for all of these things, whatever they are.",
        ),
    ]


def test_leaves_out_what_is_not_for_users(tmp_path: Path) -> None:
    documented = '"""Documentation that is long enough."""\n'
    write(
        tmp_path,
        {
            "json/__init__.py": documented,
            "json/decoder.py": f"{documented}def _private():\n    {documented}",
            "json/_scanner.py": documented,
            "json/tests/test_all.py": documented,
            "test/test_json.py": documented,
            "site-packages/json.py": documented,
            "not_of_the_library.py": documented,
            "csv.py": '"""Short."""\n',
            "glob.py": "def broken(:\n",
            "_pydecimal.py": documented,
        },
    )
    assert names(tmp_path) == ["decimal", "json", "json.decoder"]


def test_keeps_whole_paragraphs_within_the_limit(tmp_path: Path) -> None:
    paragraphs = ["first " * 50, "second " * 30, "third " * 50]
    write(tmp_path, {"csv.py": f'"""{"  ".join([])}{(chr(10) * 2).join(paragraphs)}"""\n'})
    (entry,) = read_library(tmp_path)
    assert "second" in entry.body
    assert "third" not in entry.body

    write(tmp_path, {"csv.py": f'"""{"word " * 500}"""\n'})
    (entry,) = read_library(tmp_path)
    assert len(entry.body) == 600


def test_reads_this_interpreter(recwarn: pytest.WarningsRecorder) -> None:
    loaded = set(sys.modules)
    entries = read_library()
    assert set(sys.modules) == loaded
    assert len(entries) > 3000
    assert len({entry.name for entry in entries}) == len(entries)
    assert {"textwrap.wrap", "shutil.rmtree", "datetime.datetime.strptime"} <= {
        entry.name for entry in entries
    }
    assert all(len(entry.body) <= 600 for entry in entries)
    assert not recwarn.list
