"""Where optuna keeps the trials of a search: in memory, in a folder, or in a database that several machines share."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlib import files
from kdlib.errors import check_path

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

FILE = "search.sqlite"  # in the folder of a search
DAMAGED = "Restore its file of trials from a copy, or choose another folder."
Storage = str | Path | None


def load_optuna() -> Any:
    """optuna, quiet; ImportError, with the extra's name, where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ImportError('A search needs the package optuna. Run: pip install "kdlib[search]".') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would say a line for every trial
    return optuna


@contextmanager
def open_storage(storage: Storage) -> Iterator[tuple[BaseStorage, bool]]:
    """The storage that a text names, and whether other machines may work on it at the same time.

    storage: None for memory, a folder, "sqlite:///PATH", "journal:PATH" (a file on a disk that the machines share) or
    the URL of a database, "postgresql://..." or "mysql://...". A folder or SQLite file is held by one search at a time.
    The machines that share a journal should all run Windows, or none: its lock is another one there.
    Raises OSError for one that is in use, cannot be written, also later, or cannot be reached, ImportError where a
    database needs another package, ValueError for a file that is no storage of optuna's.
    """
    optuna = load_optuna()
    if storage is None:
        yield optuna.storages.InMemoryStorage(), False
        return
    check_path(storage=storage)
    text = str(storage)
    if text.startswith("journal:"):
        # From the root: optuna's lock is a link to the journal, and a relative one would be read from its own folder.
        yield _journal(optuna, Path(text.removeprefix("journal:")).expanduser().absolute()), True
    elif (path := database_file(text)) is not None:
        busy = f"{path.parent} is in use by another search that has not ended. Wait for it, or choose another folder."
        files.ensure_writable(path.parent)
        with files.lock(path.with_name(f".{path.name}.lock"), busy):
            url = _sqlite_url(path)
            logs_ahead = _log_ahead(path)
            database = _database(optuna, url, text)
            if logs_ahead:
                _flush_at_checkpoints(database)
            try:
                from kdlib.search.write_through import WriteThrough

                with _explain_failed_writes(optuna, text):
                    yield WriteThrough(database), False
            finally:
                database.engine.dispose()
    else:
        database = _database(optuna, text, text)
        with _explain_failed_writes(optuna, text):
            yield database, True


def database_file(storage: str | Path) -> Path | None:
    """The SQLite file that a folder or "sqlite:///PATH" names, from the root; None for another storage."""
    text = str(storage)
    if text.startswith("sqlite:///"):
        return Path(text.removeprefix("sqlite:///")).expanduser().absolute()
    return None if "://" in text or text.startswith("journal:") else (Path(text).expanduser() / FILE).absolute()


def _sqlite_url(path: Path) -> str:
    """A URL for optuna, which fills in braces."""
    from sqlalchemy.engine import URL, make_url

    url = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    if make_url(url).database != str(path):  # SQLAlchemy before 2.1 takes a question mark for the end
        raise ValueError(f"{path.parent} cannot be written as an address of SQLite. Give a folder with a plainer name.")
    return url.replace("{", "{{").replace("}", "}}")


def _journal(optuna: Any, path: Path) -> BaseStorage:
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock, JournalFileSymlinkLock

    class Backend(JournalFileBackend):
        """A journal whose last line is whole: what follows half a line could not be read any more."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            try:
                super().append_logs(logs)
            except OSError as error:
                _cut_off_partial_line(path, lock)
                raise OSError(
                    f"The trials could not be written to {path} ({error.strerror or error}). Those before are kept. "
                    "See to that, by freeing some space for instance: the same command goes on with them."
                ) from error

    files.ensure_writable(path.parent)
    # optuna's default lock is a symbolic link, which on Windows takes a privilege.
    lock = (JournalFileOpenLock if sys.platform == "win32" else JournalFileSymlinkLock)(str(path))
    if path.exists():
        _cut_off_partial_line(path, lock)  # of a process that was killed while it wrote
    try:
        return optuna.storages.JournalStorage(Backend(str(path), lock))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no journal of a search ({error}). Choose another file.") from error


def _cut_off_partial_line(path: Path, lock: Any) -> None:
    lock.acquire()
    try:
        with path.open("rb+") as file:
            whole = file.read().rfind(b"\n") + 1
            file.truncate(whole)
    finally:
        lock.release()


def _database(optuna: Any, url: str, shown: str) -> Any:
    from sqlalchemy import exc

    quiet = logging.getLogger("alembic")
    quiet.setLevel(logging.WARNING)
    try:
        database = optuna.storages.RDBStorage(url)
    except ImportError as error:
        raise ImportError(
            f"The database {_without_password(shown)} needs a driver that is not installed "
            f"({error.__cause__ or error}). Install it, psycopg2 or pymysql for instance."
        ) from error
    except exc.ArgumentError as error:
        raise ValueError(
            f"{_without_password(shown)} is no storage: give a folder, sqlite:///PATH, journal:PATH or the URL of a "
            "database."
        ) from error
    except exc.DatabaseError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        if "not a database" in reason:
            raise ValueError(f"{shown} is not a SQLite file ({reason}). Choose another one.") from error
        if "malformed" in reason:
            raise OSError(f"{_without_password(shown)} is damaged ({reason}). {DAMAGED}") from error
        if "disk is full" in reason:
            raise OSError(
                f"The storage {_without_password(shown)} cannot be written ({reason}). Free some space, or choose "
                "another folder."
            ) from error
        advice = "Check its address, or leave it out: a file in the run's folder will do for one machine."
        if url.startswith("sqlite"):  # on a network mount without locks "database is locked" is all that it says
            advice = "Choose a folder on a local disk."
        raise OSError(
            f"The storage {_without_password(shown)} cannot be reached or used ({reason}). {advice}"
        ) from error
    except (exc.SQLAlchemyError, RuntimeError) as error:
        raise OSError(f"The storage {_without_password(shown)} cannot be used ({error}).") from error
    return database


def _log_ahead(path: Path) -> bool:
    """Let SQLite write a log ahead of this file, and say whether it can; if not, the file keeps its usual journal.

    The log takes memory that processes share by a file, which Windows' disks in WSL, exFAT and most network mounts do
    not have. Where SQLite does not know that, it finds it out only when it uses the log, after it has noted in the file
    that there is one.
    """
    import sqlite3

    try:
        with closing(sqlite3.connect(path)) as connection:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):  # as on network mounts of a Mac
                return False
            connection.execute("BEGIN IMMEDIATE")
        return True
    except sqlite3.DatabaseError:
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # then SQLite reads a log without shared memory
            connection.execute("PRAGMA journal_mode=DELETE")
        return False


def _flush_at_checkpoints(database: Any) -> None:
    """Let no commit wait for the disk, of which a trial makes some ten.

    With a log ahead of the file what was committed outlives a kill in any case, and a loss of power costs the last of
    it, never the file. With the usual journal it could cost the file.
    """
    from sqlalchemy import event

    def flush_at_checkpoints(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    event.listen(database.engine, "connect", flush_at_checkpoints)
    database.engine.dispose()


@contextmanager
def _explain_failed_writes(optuna: Any, shown: str) -> Iterator[None]:
    """OSError, with the database's own reason, for trials that could not be written."""
    try:
        yield
    except optuna.exceptions.StorageInternalError as error:
        cause = getattr(error.__cause__, "orig", None) or error.__cause__ or error  # SQLAlchemy's adds the statement
        reason = " ".join(str(cause).split())
        if "malformed" in reason or "not a database" in reason:
            raise OSError(f"{_without_password(shown)} is damaged ({reason}). {DAMAGED}") from error
        raise OSError(
            f"The trials could not be written to {_without_password(shown)} ({reason}). Those before are kept. See to "
            "that, by freeing some space for instance: the same command, without --overwrite, goes on with them."
        ) from error


def _without_password(url: str) -> str:
    """A URL as it may be shown."""
    head, separator, tail = url.rpartition("@")
    scheme = head.partition("://")[0]
    return f"{scheme}://...@{tail}" if separator else url
