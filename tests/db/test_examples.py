"""The example programs run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_quantized_search(tmp_database: Callable[..., str]) -> None:
    command = [sys.executable, str(EXAMPLES / "quantized_search.py"), tmp_database()]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert "tomatoes need water" in first
    assert "simmer tomatoes" in first
    assert "apple pie" in second
    assert "prune" not in second
