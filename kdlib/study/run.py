"""A whole study: choose the settings, then run what is missing, one row at a time.

Started again after a kill, it goes on: finished runs are recognised by the digest of everything that was set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from kdlib import data as data_sets
from kdlib.study import choose, grid, readme
from kdlib.study.bench import Bench
from kdlib.study.clock import Clock, spoken
from kdlib.study.entries import TRIALS, Settings, entry
from kdlib.study.grid import Budget, Cell, Choice, Line
from kdlib.study.rows import COLUMNS, SHARED, TIMES, TRIAL_COLUMNS, Diary, Table, as_text, parse
from kdlib.study.workers import Crew


@dataclass(frozen=True)
class Request:
    """What a study is asked for; the command line has one option for each field.

    which: a name in `grid.LISTS`. out: folder of the results, default data/results. cache: scratch folder for the
    teachers' answers (some gigabytes for one seed, removed when it is done). choices: a file of trials to take the
    settings from, made for the same student, teacher and batch size with other images or epochs; with `retune` only
    the best of each family are taken from it, of any budget, and their settings are chosen anew. defaults: no
    trials, the starting values of each method. workers: how many runs at a time, each in a process of its own that
    has its share of torch's threads.
    Raises ValueError for seeds that serve twice, options that contradict each other, or less than one worker.
    """

    which: str = "full"
    budget: Budget = field(default_factory=Budget)
    seeds: Sequence[int] = (0, 1, 2, 3, 4)
    out: Path | None = None
    cache: Path = Path("runs/study")
    choices: Path | None = None
    retune: bool = False
    defaults: bool = False
    left_out: Sequence[int] = (3,)
    tuning_seeds: Sequence[int] = choose.TUNING_SEEDS
    workers: int = 1

    def __post_init__(self) -> None:
        grid.named(self.which)
        both = [*self.seeds, *self.tuning_seeds]
        if not self.seeds or not self.tuning_seeds or len(set(both)) != len(both):
            raise ValueError(
                f"Seeds of the study ({list(self.seeds)}) and of the trials ({list(self.tuning_seeds)}) must be there, "
                "and all be different: settings chosen on a seed must not be judged on it."
            )
        if self.retune and self.choices is None:
            raise ValueError("--retune takes the best of each family from --choices FILE: name that file.")
        if len(set(self.left_out)) != len(self.left_out):
            raise ValueError(f"--left-out names a class twice: {', '.join(map(str, self.left_out))}. Name each once.")
        if self.workers < 1:
            raise ValueError(f"--workers is a number of processes, at least 1; got {self.workers}.")
        if self.defaults and self.choices is not None:
            raise ValueError("--defaults and --choices contradict each other: name one.")

    @property
    def folder(self) -> Path:
        return self.out or data_sets.folder() / "results"

    @property
    def tunes(self) -> bool:
        """Whether trials of its own belong to it."""
        return not self.defaults and (self.choices is None or self.retune)


def run(
    request: Request, *, progress: bool = True, say: Callable[[str], None] = print, command: str = "kdlib.study.run"
) -> Path:
    """Run all that is missing and return the CSV file of the results.

    command: what the JSON file beside it calls this session. Raises ValueError when files on disk belong to another
    study, and what `data.load` and `models.load` raise.
    """
    bench = Bench(request.budget, request.cache)
    ours, trials = _files(request, bench)
    with ExitStack() as stack:
        table = stack.enter_context(Table(ours, COLUMNS, say).opened())
        bar = stack.enter_context(tqdm(disable=not progress, unit="run", bar_format=_BAR))
        crew = stack.enter_context(Crew(bench, request.workers).at_work())
        work = _Work(bench, Clock(bench, table.rows), bar, command, crew)
        _refuse_mixed(ours, table.rows, bench)
        given = _given(request)
        lines = _lines(request, given)
        if request.tunes:
            tried = stack.enter_context(Table(trials, TRIAL_COLUMNS, say).opened())
            _refuse_mixed(trials, tried.rows, bench)
            _refuse_other_trials(request, bench, lines, table.rows, tried.rows)
            work.clock = Clock(bench, [*tried.rows, *table.rows])
            work.foresee(_left(request, lines, table.rows) + _trials_left(request, lines, tried.rows))
            given = _chosen(work, tried, _tuned(request, lines), request.tuning_seeds)
            lines = lines if request.retune else _lines(request, given)
        _refuse_unchosen(request, lines, given)
        cells = grid.cells(request.which, lines, request.seeds, given, request.left_out)
        _refuse_unequal(ours, table.rows, {cell.origin for cell in cells})
        _refuse_changed(table, cells, bench)
        work.foresee(_left(request, lines, table.rows))
        work.do(cells, table, test=True)
    readme.write_readme(request.folder)
    return ours


def plan(request: Request) -> str:
    """How many runs there are and how many are left, and about how long these will take; nothing is written.

    Raises ValueError where `run` would refuse to begin.
    """
    bench = Bench(request.budget, request.cache)
    ours, trials = _files(request, bench)
    rows, tried = _rows(ours, COLUMNS), _rows(trials, TRIAL_COLUMNS) if request.tunes else []
    _refuse_mixed(ours, rows, bench)
    _refuse_mixed(trials, tried, bench)
    lines, clock = _lines(request, _given(request)), Clock(bench, [*tried, *rows])
    if request.tunes:
        _refuse_other_trials(request, bench, lines, rows, tried)
    total = len(grid.cells(request.which, lines, request.seeds, {}, request.left_out))
    counts = [("runs of the study", ours, total, _left(request, lines, rows))]
    if request.tunes:
        total = len(_tuned(request, lines)) * TRIALS * len(request.tuning_seeds)
        counts.insert(0, ("trials on the validation split", trials, total, _trials_left(request, lines, tried)))
    text = [
        f"{total} {what}, {total - left.total()} of them finished, {left.total()} left  ({path})"
        for what, path, total, left in counts
    ]
    ahead = sum((left for *_, left in counts), Counter())
    if ahead:
        time_left = spoken(clock.total(ahead) / request.workers)
        text.append(f"About {time_left} to go, {clock.basis(ahead)}; plus the teachers' answers.")
    return "\n".join(text)


def again(
    path: Path, number: int, *, cache: Path = Path("runs/study"), device: str = "auto", precision: str = "auto"
) -> dict[str, tuple[str, str]]:
    """Repeat the run in row `number` (1 is the first) and say in which columns it differs, old and new, times apart.

    It runs with as many threads as the row did, so on the machine that made the row nothing differs. Raises ValueError
    for a row that is not there, FileNotFoundError for a missing file.
    """
    if any("test_accuracy" not in row for row in _rows(path, None, missing_ok=False)):
        raise ValueError(f"{path} holds trials; what can be repeated are runs, in the files of the other kinds.")
    rows = _rows(path, COLUMNS)
    if not 1 <= number <= len(rows):
        raise ValueError(f"{path} has rows 1 to {len(rows)}; there is no row {number}.")
    old = rows[number - 1]
    texts = {name: old[name] for name in ("data", "student", "teacher")}
    counts = {name: int(old[name]) for name in ("images", "epochs", "views")}
    bench = Bench(Budget(**texts, **counts, device=device, precision=precision), cache)
    cell = _cell(old)
    with bench.seat([cell], path.with_suffix(".again")) as seat:
        seat.teacher(entry(cell.entry).teacher)  # with all threads, as in the study: only students share them out
        with _threads(int(old["threads"])):
            new = seat.run(cell, test=True)
    pairs = {name: (old[name], as_text(new.get(name))) for name in COLUMNS if name not in TIMES}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch inside the block: with another number sums are rounded differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} runs{postfix}"  # tqdm's own estimate knows no methods


class _Work:
    """Runs cells into tables under one progress bar."""

    def __init__(self, bench: Bench, clock: Clock, bar: Any, command: str, crew: Crew) -> None:
        self.bench, self.clock, self.bar, self.command, self.crew = bench, clock, bar, command, crew
        self.ahead: Counter[str] = Counter()
        self.diaries: dict[Path, Diary] = {}

    def foresee(self, ahead: Counter[str]) -> None:
        """Set what is still to be run: how many runs of each entry."""
        self.ahead = ahead
        self.bar.total = self.bar.n + ahead.total()
        self._show()

    def _show(self) -> None:
        left = self.clock.total(self.ahead) / self.crew.count if not self.bar.disable else 0.0
        self.bar.set_postfix_str(f"about {spoken(left)} left" if left else "")

    def do(self, cells: Iterable[Cell], table: Table, *, test: bool) -> None:
        """Run those cells that have no row yet."""
        done = {row["digest"] for row in table.rows}
        groups = [list(group) for _, group in groupby(cells, key=lambda cell: (cell.seed, cell.left_out))]
        digests = {cell: cell.digest(self.bench.budget, self.bench.identity) for group in groups for cell in group}
        if all(digest in done for digest in digests.values()):
            return
        if table.path not in self.diaries:
            self.diaries[table.path] = Diary(table.path, self.command, len(table.rows))
            self.diaries[table.path].write(len(table.rows))  # the session is known before its first row is there
        for group in groups:
            missing = [cell for cell in group if digests[cell] not in done]
            if not missing:
                continue
            with self.bench.seat(group, table.path) as seat:
                self.bar.set_description(f"seed {group[0].seed}: ", refresh=True)
                for cell, row in self.crew.rows(seat, missing, test=test):
                    table.append(row)
                    self.diaries[table.path].write(len(table.rows))
                    self._count(cell, row)

    def _count(self, cell: Cell, row: Mapping[str, Any]) -> None:
        if "seconds_per_epoch" in row:
            self.clock.note(cell.entry, row["seconds"])
        self.ahead[cell.entry] -= 1
        self.bar.update()
        self._show()


def _refuse_mixed(path: Path, rows: Iterable[Mapping[str, str]], bench: Bench) -> None:
    """Raise ValueError, before hours of runs, for rows of another budget, precision, teacher or other data."""
    wanted = {name: as_text(getattr(bench.budget, name)) for name in SHARED} | {"place": str(bench.place)}
    for row in rows:
        differ = [f"{name} {row[name]} (now {value})" for name, value in wanted.items() if row[name] != value]
        if differ:
            raise ValueError(
                f"The runs in {path} were made with {', '.join(differ)}; runs in one file share one budget. "
                "Give the same options, or choose another folder with --out."
            )
        if row["digest"] != _cell(row).digest(bench.budget, bench.identity):
            raise ValueError(
                f"{path} holds a run of {row['method']}, seed {row['seed']}, made with another teacher or other data "
                "of the same name. Move the file away, or choose another folder with --out."
            )


def _cell(row: Mapping[str, str]) -> Cell:
    """The cell that a row is the run of."""
    left_out = int(row["left_out"]) if row["left_out"] else None
    own = (row["study"], row["method"], row["entry"], Settings.read(row), int(row["seed"]))
    return Cell(*own, left_out, row["chosen_on"])


def _refuse_unequal(path: Path, rows: Iterable[Mapping[str, str]], origins: Iterable[str]) -> None:
    origins = sorted({row["chosen_on"] for row in rows}.union(origins))
    if len(origins) > 1:
        raise ValueError(
            f"{path} would hold settings chosen on {' and on '.join(origins)}: methods are compared only where "
            "all were tuned alike. Give the options of the first command, or choose another folder with --out."
        )


def _refuse_other_trials(
    request: Request,
    bench: Bench,
    lines: Iterable[Line],
    rows: Iterable[Mapping[str, str]],
    tried: Iterable[Mapping[str, str]],
) -> None:
    """Raise ValueError, before hours of trials, for tuning seeds that the finished runs or trials do not go with."""
    ours, trials = _files(request, bench)
    _refuse_unequal(ours, rows, {choose.origin(asdict(bench.budget), len(request.tuning_seeds))})
    names = _tuned(request, lines)
    others = sorted({int(row["seed"]) for row in tried if row["method"] in names} - set(request.tuning_seeds))
    if others:
        raise ValueError(
            f"{trials} holds trials with the tuning seeds {others}, which are not among {list(request.tuning_seeds)}. "
            "Give the options of the first command, or choose another folder with --out."
        )


def _refuse_changed(table: Table, cells: Iterable[Cell], bench: Bench) -> None:
    there = {(row["method"], row["seed"], row["left_out"]): row for row in table.rows}
    for cell in cells:
        row = there.get(cell.key)
        if row is not None and row["digest"] != cell.digest(bench.budget, bench.identity):
            raise ValueError(
                f"{table.path} holds a run of {cell.method}, seed {cell.seed}, made with {Settings.read(row)}; now "
                f"{cell.settings}. Move the file away, or choose another folder with --out: one study has one setting "
                "a method."
            )


def _files(request: Request, bench: Bench) -> tuple[Path, Path]:
    kind = grid.named(request.which).kind
    return bench.budget.file(kind, request.folder), bench.budget.file("choose", request.folder)


def _rows(path: Path, columns: Sequence[str] | None, missing_ok: bool = True) -> list[dict[str, str]]:
    if not path.exists() and not missing_ok:
        raise FileNotFoundError(f"There is no file {path}. Check the path.")
    return parse(path.read_bytes(), columns, path) if path.exists() else []


def _given(request: Request) -> dict[str, Choice]:
    """The choices in the file that was named, if one was."""
    if request.choices is None:
        return {}
    rows = _rows(request.choices, TRIAL_COLUMNS, missing_ok=False)
    if not request.retune:
        _refuse_foreign(request, rows)
    tried = {row["method"] for row in rows}
    return choose.choices(rows, [name for name in grid.named(request.which).tuned if name in tried])


def _refuse_foreign(request: Request, rows: Iterable[Mapping[str, str]]) -> None:
    """Raise ValueError for settings chosen for another student, teacher or batch size: these do not carry over."""
    ours = request.budget
    for row in rows:
        theirs = replace(ours, student=row["student"], teacher=row["teacher"], images=int(row["images"]))
        if _pair(theirs) != _pair(ours):
            raise ValueError(
                f"{request.choices} holds settings of {_pair(theirs)}; this study has {_pair(ours)}, for which other "
                "learning rates and weights are best, and not equally so for all methods. Choose anew, with --retune."
            )


def _pair(budget: Budget) -> str:
    return f"{budget.student}, taught by {budget.teacher}, in batches of {budget.batch_size}"


def _lines(request: Request, choices: Mapping[str, Choice]) -> list[Line]:
    return grid.named(request.which).lines(choices)


def _tuned(request: Request, lines: Iterable[Line]) -> list[str]:
    """The entries whose settings are chosen by trials of this study."""
    return (
        list(dict.fromkeys(line.entry for line in lines)) if request.retune else list(grid.named(request.which).tuned)
    )


def _chosen(work: _Work, tried: Table, names: Sequence[str], seeds: Sequence[int]) -> dict[str, Choice]:
    work.do(choose.first_trials(names, seeds), tried, test=False)
    work.do(choose.further_trials(names, seeds, tried.rows), tried, test=False)
    found = choose.choices(tried.rows, names, seeds)
    if tried.path in work.diaries:
        diary = work.diaries[tried.path]
        said = {name: {"settings": str(one.settings), "validation_accuracy": one.score} for name, one in found.items()}
        diary.facts["chosen"] = {**diary.facts.get("chosen", {}), **said}
        diary.write(len(tried.rows))
    return found


def _refuse_unchosen(request: Request, lines: Iterable[Line], choices: Mapping[str, Choice]) -> None:
    unknown = [] if request.defaults else sorted({line.entry for line in lines} - choices.keys())
    if unknown:
        raise ValueError(
            f"{request.choices} holds no trials of {', '.join(unknown)}, which this list needs. Choose their settings "
            "first (the lists full and controls do), or give --retune or --defaults."
        )


def _left(request: Request, lines: Iterable[Line], rows: Iterable[Mapping[str, str]]) -> Counter[str]:
    """How many runs of each entry are still to come."""
    there = {(row["method"], row["seed"], row["left_out"]) for row in rows}
    cells = grid.cells(request.which, lines, request.seeds, {}, request.left_out)
    return Counter(cell.entry for cell in cells if cell.key not in there)


def _trials_left(request: Request, lines: Iterable[Line], tried: Iterable[Mapping[str, str]]) -> Counter[str]:
    made, wanted = Counter(row["method"] for row in tried), TRIALS * len(request.tuning_seeds)
    return Counter({name: wanted - made[name] for name in _tuned(request, lines) if made[name] < wanted})


__all__ = ["Request", "again", "plan", "run"]
