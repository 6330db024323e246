"""Finished runs as the rows of a CSV file, and the JSON file beside it that says how they came about.

A row is appended by one write and brought to the disk before the next run begins. A kill can leave at most the
beginning of a last line: it is cut off when the file is opened again, and its run is repeated. A last row that is whole
and lacks its line break, as some editors save it, gets one.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from kdlib import files, schemas
from kdlib.study.method_specs import SETTING_NAMES
from kdlib.study.plans import FINGERPRINT_LENGTH

if TYPE_CHECKING:
    import pandas as pd

LOCK_POSITION = 2**30  # on Windows the byte that is locked, far behind the last row
TIME_COLUMNS = ("seconds", "seconds_per_epoch")  # what may differ when a run is repeated
BUDGET_COLUMNS = ("data", "student", "teacher", "images", "epochs", "views", "optimizer")
_CONFIG_COLUMNS = ("study", *BUDGET_COLUMNS, "method", "spec", "seed", "excluded_class", *SETTING_NAMES, "tuned_on")
_PROCESS_COLUMNS = ("extra_parameters", *TIME_COLUMNS, "device", "threads", "error", "fingerprint")
RUN_COLUMNS = (
    *_CONFIG_COLUMNS,
    "validation_accuracy",
    "test_accuracy",
    "excluded_class_accuracy",
    "teacher_accuracy",
    "agreement",
    "calibration_error",
    *_PROCESS_COLUMNS,
)
TRIAL_COLUMNS = (*_CONFIG_COLUMNS, "validation_accuracy", *_PROCESS_COLUMNS)  # no column for anything of the test set


class RunsFile:
    """A CSV file of finished runs, open in one process at a time; `rows` are those in it, as texts."""

    def __init__(self, path: Path, columns: Sequence[str], log: Callable[[str], object] = print) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.rows: list[dict[str, str]] = []
        self._log = log
        self._file: BinaryIO | None = None

    @contextmanager
    def open(self) -> Iterator[RunsFile]:
        """Make or repair the file, read it, and keep other processes from writing to it inside the block.

        Raises ValueError if another study holds it, or it was written with other columns; OSError if its folder
        cannot be written.
        """
        files.ensure_writable(self.path.parent)
        with self.path.open("a+b", buffering=0) as file:
            _lock(file, self.path)
            self._mend_last_line(file)
            file.seek(0)
            self.rows = parse(file.read(), self.columns, self.path)
            self._file = file
            try:
                if file.tell() == 0:
                    self._write(self.columns)
                yield self
            finally:
                self._file = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a finished run; when this returns, it is on the disk. Raises OSError, the file unchanged, if full."""
        values = {name: to_text(row.get(name)) for name in self.columns}
        self._write(list(values.values()))
        self.rows.append(values)

    def _write(self, values: Sequence[str]) -> None:
        if self._file is None:
            raise RuntimeError("A RunsFile is written to inside `with runs_file.open():`.")
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(values)
        data = line.getvalue().encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) != len(data):
                raise OSError("only a part of the line could be written; the disk may be full")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise OSError(
                error.errno,
                f"Could not append to {self.path}: {error.strerror or error}. Its {len(self.rows)} finished runs are "
                "kept. Free some space and start the same command again",
            ) from error

    def _mend_last_line(self, file: BinaryIO) -> None:
        file.seek(0)
        content = file.read()
        whole, partial = _split_off_partial_line(content)
        if partial:
            file.truncate(len(whole))
            self._log(f"The last line of {self.path} was not complete: it is removed, and its run is repeated.")
        else:
            file.write(whole[len(content) :])


def _split_off_partial_line(content: bytes) -> tuple[bytes, bytes]:
    """The whole lines of a file, each with its line break, and the beginning of a further one, if there is one."""
    end = content.rfind(b"\n") + 1
    if _is_whole_row(content[end:], content[:end]):
        return content + b"\n", b""
    return content[:end], content[end:]


def _is_whole_row(line: bytes, before: bytes) -> bool:
    """Whether nothing is missing of a line without its line break, which only a fingerprint at its end can show."""
    try:
        header, values = (next(csv.reader([text.decode()], strict=True)) for text in (before.partition(b"\n")[0], line))
        schemas.check_row(dict(zip(header, values, strict=True)))
    except (csv.Error, ValueError, StopIteration):
        return False
    return header[-1:] == ["fingerprint"] and len(values[-1]) == FINGERPRINT_LENGTH


def parse(content: bytes, columns: Sequence[str] | None, path: Path) -> list[dict[str, str]]:
    """The rows in the whole lines of a file; ValueError for other columns than expected, or a damaged line."""
    whole, partial = _split_off_partial_line(content)
    if partial:
        warnings.warn(f"The last line of {path} is not complete, and is left out.", stacklevel=3)
    lines = csv.reader(io.StringIO(whole.decode("utf-8", "replace")), strict=True)
    try:
        return _parse(lines, columns, path)
    except csv.Error as error:  # a value of more than 131,072 characters, for instance
        raise ValueError(f"{path} is not a table ({error}). Restore it, or move it away.") from error


def _parse(lines: Iterator[list[str]], columns: Sequence[str] | None, path: Path) -> list[dict[str, str]]:
    header = next(lines, None)
    if header is None:
        return []
    try:
        schemas.check_header(header)
    except ValueError as error:
        raise ValueError(f"{path} is not a table of finished runs: {error}. Restore it, or move it away.") from error
    if columns is not None and header != list(columns):
        differ = sorted(set(header) ^ set(columns)) or ["their order"]
        raise ValueError(
            f"{path} was written with other columns ({', '.join(differ[:5])}), perhaps by another version of kdlib. "
            "Move it away, or choose another folder with --out."
        )
    rows = []
    for number, values in enumerate(lines, start=2):
        if len(values) != len(header):
            raise ValueError(
                f"Line {number} of {path} has {len(values)} values, expected {len(header)}. Remove that line: its run "
                "is then repeated."
            )
        row = dict(zip(header, values, strict=True))
        try:
            schemas.check_row(row)
        except ValueError as error:
            raise ValueError(
                f"Line {number} of {path} cannot be right: {error}. Remove that line: its run is then repeated."
            ) from error
        rows.append(row)
    return rows


def read_rows(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, str]]:
    """The finished runs in a file, as texts, without a line that is still being written; none if there is no file.

    Warns of such a line. Raises ValueError for other columns than these (default: any), or a damaged line.
    """
    return parse(path.read_bytes(), columns, path) if path.exists() else []


def read_frame(path: str | Path) -> pd.DataFrame:
    """The finished runs in a file, or in all files of one folder whose names match, as a table of numbers.

    path: a CSV file, or a pattern such as data/results/methods-*.csv. A line that is still being written is left out,
    with a warning. Raises FileNotFoundError when there is none.
    """
    import pandas as pd

    path = Path(path)
    found = files.visible(path.parent, path.name)
    if not found:
        raise FileNotFoundError(f"There is no file {path}. Run the study first: python -m kdlib.study --help")
    rows = [row for one in found for row in read_rows(one)]
    names = dict.fromkeys(name for row in rows for name in row) if rows else RUN_COLUMNS
    return pd.DataFrame({name: _parse_column(name, [row.get(name, "") for row in rows]) for name in names})


def _parse_column(name: str, texts: list[str]) -> list[Any]:
    """A column as numbers where all of it is; pandas reads floats to the last bit in some versions only."""
    types = () if name == "fingerprint" else (int, float)  # hexadecimal digits may look like a number
    for number_type in types:
        with suppress(ValueError):
            return [number_type(text) if text else math.nan for text in texts]
    return [text or None for text in texts]


def to_text(value: Any) -> str:
    """A value as it stands in a file: None as nothing, floats to the last bit, line ends as one space."""
    if value is None:
        return ""
    if isinstance(value, float):
        return repr(float(value))
    return re.sub(r"[\r\n]+", " ", str(value))  # a line is a row; other spaces may belong to the name of a folder


def check_encodable(**names: str) -> None:
    """Raise ValueError for a name, by its option, that no row can hold: one whose bytes are not UTF-8."""
    for option, name in names.items():
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"--{option} {name!r} is not written in UTF-8, and the file of results is. Rename the file or folder."
            ) from error


def holds(rows: Sequence[Mapping[str, str]], values: Mapping[str, Any]) -> bool:
    """Whether one of these rows of a file has all of these values, given by column."""
    texts = {name: to_text(value) for name, value in values.items()}
    return any(texts.items() <= row.items() for row in rows)


def _lock(file: BinaryIO, path: Path) -> None:
    """ValueError if another process has locked the file; the system lets go of a lock, also after kill -9."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(LOCK_POSITION)  # what is locked cannot be read either
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(
            f"Another study is writing to {path}. Wait until it ends, or choose another folder with --out."
        ) from error
    except OSError:  # some network folders know no locks
        return


# --- the JSON file


class SessionLog:
    """The JSON file beside a CSV file: for each time a command worked on it, what, where, when and how long."""

    def __init__(self, path: Path, command: str, num_rows: int = 0, device: torch.device | None = None) -> None:
        """path: the CSV file. num_rows: how many rows it has before this session. device: as for `machine_info`.

        Raises ValueError for a JSON file that cannot be read.
        """
        self.path = path.with_suffix(".json")
        self._first_row = num_rows + 1
        self._started = time.perf_counter()
        content = self._read()
        self.sessions: list[dict[str, Any]] = content.pop("sessions", [])
        for session, rows in zip(self.sessions, _sure_rows(self.sessions, num_rows), strict=True):
            session |= {} if rows is None else {"rows": list(rows)}
        if self.sessions and "rows" in self.sessions[-1]:  # killed after a row was written and before it was noted here
            self.sessions[-1]["rows"][1] = max(self.sessions[-1]["rows"][1], num_rows)
        self.facts = {name: value for name, value in content.items() if name not in ("runs", "hours")}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self.sessions.append(
            {"command": command, "started": now, "machine": machine_info(device), "versions": library_versions()}
        )

    def _read(self) -> dict[str, Any]:
        try:
            content = schemas.read_json(self.path.read_text("utf-8"))
            schemas.check("it", content, {})
            if "sessions" in content:
                schemas.check_sessions(content)
            return content
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise ValueError(f"{self.path} cannot be read ({error}). Restore it, or move it away.") from error

    def write(self, num_rows: int) -> None:
        """Bring the file up to date: the number of rows now, this session's hours and rows (from 1), and `facts`."""
        self.sessions[-1] |= {
            "rows": [self._first_row, num_rows],
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "hours": round((time.perf_counter() - self._started) / 3600, 4),
        }
        hours = round(sum(session.get("hours", 0.0) for session in self.sessions), 4)
        text = json.dumps({"runs": num_rows, "hours": hours, **self.facts, "sessions": self.sessions}, indent=1)
        files.write_text(self.path, text + "\n")


def read_sessions(path: Path) -> list[dict[str, Any]]:
    """What the JSON file beside a CSV file says of each session, none without one; ValueError if it is damaged."""
    path = path.with_suffix(".json")
    try:
        content = schemas.read_json(path.read_text("utf-8"))
        schemas.check_sessions(content)
        return content["sessions"]
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}). Restore it, or move it away.") from error


def session_of_each_row(path: Path, num_rows: int) -> list[dict[str, Any] | None]:
    """The session that wrote each of the rows of a CSV file, None where that is not known.

    Sessions of older versions noted no rows; where one machine made them all, the first of them stands for all that no
    other has noted.
    """
    sessions = read_sessions(path)
    without_rows = [session for session in sessions if "rows" not in session]
    same_machine = all(session.get("machine") == without_rows[0].get("machine") for session in without_rows)
    default = without_rows[0] if without_rows and same_machine else None
    found: list[dict[str, Any] | None] = [default] * num_rows
    for session, rows in zip(sessions, _sure_rows(sessions, num_rows), strict=True):
        if rows is not None:
            first, last = session["rows"]
            found[first - 1 : last] = [None] * len(found[first - 1 : last])
            first, last = rows
            found[first - 1 : last] = [session] * len(found[first - 1 : last])
    return found


def _sure_rows(sessions: Sequence[Mapping[str, Any]], num_rows: int) -> list[tuple[int, int] | None]:
    """The first and the last row that surely are of each session, None where it has noted none.

    Where k rows were removed from the file, nobody knows which, row i is one of those that were i to i + k.
    """
    noted = [session["rows"] for session in sessions if "rows" in session]
    removed = max(0, max((last for _, last in noted), default=0) - num_rows)
    found: list[tuple[int, int] | None] = []
    for session in sessions:
        first, last = session.get("rows", (0, 0))
        found.append((first, max(first - 1, last - removed)) if first else None)
    return found


def machine_info(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, cores, threads of torch, GPU and system of this machine; device: what runs on it, default any GPU."""
    on_gpu = torch.cuda.is_available() and (device is None or device.type == "cuda")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "system": f"{platform.system()} {platform.machine()}",
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in ("kdlib", "torch", "numpy", "torchmetrics"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # kdlib itself, from a clone that is only on the path
            versions[name] = "unknown"
    return versions


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
