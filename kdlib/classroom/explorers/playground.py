"""Lesson 05: a teacher, a student and a distilled student in a plane, while they learn."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from kdlib.classroom.explorers import playground_data as plane
from kdlib.classroom.explorers.base import WIDE, Explorer
from kdlib.classroom.explorers.playground_stage import SIZE, Stage
from kdlib.classroom.explorers.playground_trial import (
    EVERY,
    TEACHER_HIDDEN,
    TEACHER_POINTS,
    TEACHER_STEPS,
    Row,
    Settings,
    Trial,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

FRAME, REST = 1 / 25, 0.003  # seconds from one picture to the next, and at least this long for everything else
TEACHER_STRIDE = 2 * EVERY  # steps of the teacher between two pictures; of the students there are EVERY
TABLE = 8  # rows


class Playground(Explorer):
    """A large teacher and two small students decide about points of a plane; Run shows them learning.

    The teacher (two layers of 64 hidden units) learns first, from 2,000 points with the right labels. The two students
    (one layer of a few hidden units) start from the same weights, have the same few labelled points, some of the labels
    wrong, and see all of them at every step. One has nothing but these labels. The distilled one minimises alpha times
    their cross-entropy + (1 - alpha) times T^2 KL(teacher, student), which is `losses.kd`, on the same points and, if
    wanted, on unlabelled ones. So it knows, through the teacher, what the other has no way to know: that is what
    distillation is for, and why it gains next to nothing where labels are right and plentiful (noise=0, points=200: on
    two moons it is behind after 150 steps, and less than a percentage point ahead after 600).

    steps: after so many a run pauses by itself. The controls may be moved while it runs: other data, another size or
    another seed start the students anew; other points or noise are given to the students as they are; temperature and
    alpha change the loss. Percentages are of 2,000 points with the right labels that nobody learns from.
    `step(n)` does the same as Run without a notebook, `table()` is what the small plots show.
    """

    name = "Playground"
    alt = (
        "Three maps of the same plane side by side, coloured by the class that the teacher, the student on hard labels "
        "and the distilled student choose at each place, with the decision boundaries, the labelled points, and rings "
        "around points with a wrong label. Right: two small plots of accuracy and loss against the training step."
    )
    size = SIZE
    _lock: ClassVar[Any] = threading.RLock()  # JupyterLab moves controls in another thread than cells run in
    _runs: ClassVar[weakref.ref[Playground] | None] = None

    def __init__(self, steps: int = 600, **start: Any) -> None:
        if not (isinstance(steps, int) and steps >= EVERY):
            raise ValueError(f"steps must be a whole number from {EVERY} on, got {steps!r}.")
        self.steps, self.running, self.frames = steps, False, 0
        self.trial = Trial(Settings())
        self._due, self._until, self._turn = 0, steps, 0
        self._task: asyncio.Task[None] | None = None
        with self._lock:
            self._only_one()
            super().__init__(**start)
        self.view.children = (self._buttons, *self.view.children)

    # The explorer's part.

    def make(self, widgets: Any) -> dict[str, Any]:
        def button(description: str, icon: str, tooltip: str, pressed: Any) -> Any:
            made = widgets.Button(description=description, icon=icon, tooltip=tooltip, layout={"width": "7rem"})
            made.on_click(lambda _: pressed())
            return made

        self.run_button = button("Run", "play", "Train, step by step", self._toggle)
        self.reset_button = button("Reset", "refresh", "Both students from the start", self.reset)
        self._progress = widgets.Label()
        self._buttons = widgets.HBox([self.run_button, self.reset_button, self._progress])
        default = Settings()

        def slider(kind: str, name: str, low: float, high: float, step: float, text: str, **more: Any) -> Any:
            shape = {"min": low, "max": high, "step": step, "value": getattr(default, name), **more}
            return getattr(widgets, kind)(description=text, **shape, **WIDE)

        return {
            "data": widgets.Dropdown(options=list(plane.KINDS), value=default.data, description="Data set", **WIDE),
            "points": slider("IntSlider", "points", 10, plane.MOST, 10, "Labelled points"),
            "noise": slider("FloatSlider", "noise", 0, 0.4, 0.05, "Share of wrong labels"),
            "temperature": slider("FloatLogSlider", "temperature", 0, 4, 0.25, "Temperature T", base=2),
            "alpha": slider("FloatSlider", "alpha", 0, 1, 0.05, "alpha (hard labels)"),
            "unlabelled": slider("IntSlider", "unlabelled", 0, plane.MOST_UNLABELLED, 50, "Unlabelled points"),
            "hidden": slider("IntSlider", "hidden", 2, 32, 1, "Hidden units"),
            "seed": slider("IntSlider", "seed", 0, 19, 1, "Seed"),
        }

    def inputs(self) -> tuple[Settings]:
        return (Settings(**self.state),)

    def compute(self, settings: Settings) -> Trial:
        """The trial, with these settings from now on; `playground_trial.after` is the pure one."""
        self.trial.follow(settings)
        self._until = min(self._until, self.trial.step + self.steps)
        return self.trial

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        self._stage = Stage(figure)
        return self._stage.seldom, self._stage.often

    def update(self, found: Trial) -> None:
        if self._stage.show(found, self.steps):
            self.touched()
        self._progress.value = self._where()

    def lines(self, found: Trial) -> list[str]:
        now, settings = found.now(), found.settings
        wrong = int((found.sample.labels != found.sample.truth).sum())
        others = f" and on {settings.unlabelled} unlabelled ones" if settings.unlabelled else ""
        return [
            f"Step {now.step}. Right: teacher {now.teacher:.1%}, student on hard labels {now.alone:.1%}, distilled "
            f"student {now.distilled:.1%}. They answer as the teacher does: {now.agree_alone:.1%} and "
            f"{now.agree_distilled:.1%}.",
            f"Loss on the labels: {now.hard_alone:.3f} and {now.hard_distilled:.3f} nats. Soft loss of the distilled "
            f"student: {now.soft:.3f}.",
            f"The teacher (2 x {TEACHER_HIDDEN} hidden units) learns from {TEACHER_POINTS:,} right labels. Both "
            f"students ({settings.hidden} hidden units) have the same start and {settings.points} labelled "
            f"points, {wrong} of the labels wrong; the distilled one has the teacher's soft labels at T = "
            f"{settings.temperature:.3g} on these{others} too, hard labels with weight {settings.alpha:.2g}.",
        ]

    def __repr__(self) -> str:
        return f"{super().__repr__()}; step {self.trial.step}"

    def set(self, **values: Any) -> None:
        with self._lock:
            super().set(**values)

    def describe(self) -> str:
        with self._lock:
            return super().describe()

    def _changed(self, change: Any = None) -> None:
        with self._lock:
            super()._changed(change)

    def _work(self) -> None:
        due, self._due = self._due, 0
        trial = self.compute(*self.inputs())
        if due and not trial.teacher.ready:
            trial.teach(TEACHER_STRIDE)
        elif due:
            trial.advance(due)
        super()._work()

    # Run, Pause, Reset.

    def run(self) -> None:
        """Train and draw until `pause()` or so many steps later; needs an event loop, such as a notebook's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ValueError("Run needs a notebook. In a script or a plain terminal call step(100) instead.") from None
        with self._lock:
            self._only_one()
            Playground._runs = weakref.ref(self)
            self._until = self.trial.step + self.steps
            self._turn += 1
            self._task = loop.create_task(self._play(self._turn))  # the loop itself would not keep it
            self._show_running(True)

    def pause(self) -> None:
        """Stop after the step that is being done; `run()` goes on from there."""
        with self._lock:
            self._turn += 1
            self._show_running(False)

    def reset(self) -> None:
        """Pause, and both students from the start; the teacher keeps what it has learnt."""
        with self._lock:
            self.pause()
            self.trial.restart()
            self._changed()

    def step(self, steps: int = EVERY) -> None:
        """Train for so many steps at once, and draw; the teacher learns first if it has not yet."""
        if not (isinstance(steps, int) and steps > 0):
            raise ValueError(f"steps must be a whole number above 0, got {steps!r}.")
        with self._lock:
            self.trial.follow(*self.inputs())
            self.trial.advance(steps)
            self._changed()
        if self.error:
            raise ValueError(self.error)

    def close(self) -> None:
        """Pause, and take the explorer off the page."""
        self.pause()
        for widget in (*self.controls.values(), self._buttons, self.image, self.view):
            widget.close()

    def table(self) -> str:
        """The text equivalent of the small plots: up to eight moments of the training, percentages of test points."""
        with self._lock:
            rows, now = self.trial.rows, self.trial.now()
        every = max(1, -(-len(rows) // TABLE))
        kept = [row for row in rows[::every] if row.step < now.step]
        head = f"{'':>6}{'right (%)':^32}{'as the teacher (%)':^24}"
        names = f"{'step':>6}{'teacher':>10}{'hard labels':>12}{'distilled':>10}{'hard labels':>14}{'distilled':>10}"
        return "\n".join([head, names, *(_row(row) for row in (*kept, now))])

    def _toggle(self) -> None:
        try:
            self.pause() if self.running else self.run()
        except Exception as error:
            self._say(str(error))

    async def _play(self, turn: int) -> None:
        try:
            while self._is_on(turn):
                start = time.perf_counter()
                self._frame(turn)
                # The rest is for messages: of controls that are being moved, and of other cells.
                await asyncio.sleep(max(REST, start + FRAME - time.perf_counter()))
        finally:  # also when the kernel was interrupted
            if turn == self._turn:
                self.pause()

    def _frame(self, turn: int) -> None:
        """Some steps and a picture; afterwards a run may be over."""
        with self._lock:
            if not self._is_on(turn):
                return
            self._due = EVERY
            self._changed()
            self.frames += 1
            if self.error or self.trial.step >= self._until:
                self.pause()

    def _is_on(self, turn: int) -> bool:
        """Whether the run of that number goes on: nobody has paused it, nor taken the image off the page."""
        return self.running and turn == self._turn and self.image.comm is not None

    def _only_one(self) -> None:
        """Pause the playground that runs, such as the one of the same cell when it is run again."""
        other = Playground._runs and Playground._runs()
        if other is not None and other is not self:
            other.pause()

    def _show_running(self, running: bool) -> None:
        self.running = running
        self.run_button.description, self.run_button.icon = ("Pause", "pause") if running else ("Run", "play")
        self._progress.value = self._where()

    def _where(self) -> str:
        trial = self.trial
        if not trial.teacher.ready:
            learnt = trial.teacher.step
            return f"The teacher learns: step {learnt} of {TEACHER_STEPS}" if learnt else "Nobody has learnt anything"
        kind = "Running" if self.running else "Paused"
        return f"{kind} at step {trial.step}" if trial.step or self.running else "The teacher has learnt; press Run"


def _row(row: Row) -> str:
    shares = (row.teacher, row.alone, row.distilled, row.agree_alone, row.agree_distilled)
    widths = (10, 12, 10, 14, 10)
    texts = (f"{100 * share:>{width}.1f}" for share, width in zip(shares, widths, strict=True))
    return f"{row.step:>6}" + "".join(texts)
