"""Prove that an installed wheel is whole: it carries its SQL, and the SQL works on a server.

Run it with the interpreter of an environment that has the wheel and nothing of the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg

import sqlvec
from sqlvec import catalog
from sqlvec.embedded import Server


def main() -> None:
    """Install the SQL of the wheel into a new server, and search with it."""
    environment = Path(sys.prefix)
    package = Path(sqlvec.__file__).parent
    assert package.is_relative_to(environment), f"{package} is not the installed wheel"
    assert (package / "_sql" / "manifest.txt").is_file()
    assert (package / "py.typed").is_file()
    assert sqlvec.__version__ == catalog.VERSION

    with Server() as server:
        command = [str(environment / "bin" / "sqlvec"), "install", "--create-extension"]
        subprocess.run(command, check=True, env=os.environ | {"SQLVEC_DSN": server.dsn()})
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE doc (id int PRIMARY KEY, embedding vector(3))")
            connection.execute("CALL sqlvec.add_quantized('doc', 'embedding', 'binary')")
            connection.execute("INSERT INTO doc VALUES (1, '[1,2,3]'), (2, '[-1,-2,-3]')")
            hits = connection.execute("""
                SELECT (hit).id
                FROM sqlvec.vector_search(NULL::doc, 'embedding', '[1,2,3]', k => 1)
            """).fetchall()
    assert hits == [(1,)], hits
    print(f"the wheel of sqlvec {catalog.VERSION} works")


if __name__ == "__main__":
    main()
