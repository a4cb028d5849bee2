"""Where the real collections are: a folder each."""

from __future__ import annotations

import os
from pathlib import Path


def folders(holding: str) -> list[Path]:
    """Return the folders of the collections that have a file, by name; there may be none.

    They are looked for in the folder that ``SQLVEC_DATA`` names, else in ``../shared/data`` beside
    the repository.
    """
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("SQLVEC_DATA", default))
    return sorted(path.parent for path in root.glob(f"*/{holding}"))


def some_folders(holding: str) -> list[Path]:
    """Return the same, or end the program where there are none."""
    found = folders(holding)
    if not found:
        raise SystemExit(f"no collection with {holding}; SQLVEC_DATA names the folder of them")
    return found


def apart(found: list[Path]) -> list[Path]:
    """Leave out collections that are a part of another."""
    return [folder for folder in found if not folder.name.startswith("scifact-")]
