"""A PostgreSQL server of a test's own, where its programs are installed."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, text


def programs() -> Path | None:
    """The folder of initdb and postgres; None where there is none."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def server(*, durable: bool = False) -> Iterator[str]:
    """Starts a server on a socket in a temporary folder, and gives the URL of an empty database.

    Args:
        durable: Whether it writes through to the disk, as for measurements; tests go without.
    """
    folder = programs()
    assert folder is not None
    home = Path(tempfile.mkdtemp(prefix="limner-pg-"))
    # PostgreSQL does not run as root.
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(home, "postgres")
    data = home / "data"
    quiet = {"stdout": subprocess.DEVNULL, "cwd": home, **user}
    initdb = [folder / "initdb", "-D", data, "-U", "limner", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*initdb, "--no-instructions", "--locale=C"], check=True, **quiet)
    settings = {"listen_addresses": "", "unix_socket_directories": str(home), "max_connections": "60"}
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}
    options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())
    start = [folder / "pg_ctl", "-D", data, "-w", "-l", home / "log", "-o", options, "start"]
    try:
        subprocess.run(start, check=True, **quiet)
        try:
            yield f"postgresql+psycopg://limner@/postgres?host={home}"
        finally:
            subprocess.run([folder / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=False, **quiet)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def execute(url: str, *statements: str) -> None:
    """Runs statements outside of a transaction."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()
