"""Lesson 05: a teacher, a student on hard labels and a distilled student classify a plane, while they are trained."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from course.explorers.base import CONTROL_STYLE, Explorer
from course.explorers.playground_figure import SIZE, PlaygroundFigure
from course.explorers.playground_training import (
    DISTRIBUTIONS,
    LOG_EVERY,
    MAX_LABELLED,
    MAX_UNLABELLED,
    TEACHER_HIDDEN,
    TEACHER_POINTS,
    TEACHER_STEPS,
    LogRow,
    Settings,
    Training,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

FRAME_SECONDS, MIN_PAUSE = 1 / 25, 0.003  # from one frame to the next, and at least this long for everything else
TEACHER_STEPS_PER_FRAME = 2 * LOG_EVERY  # the students do LOG_EVERY steps per frame
TABLE_ROWS = 8


class Playground(Explorer):
    """A large teacher and two small students classify points of a plane; Run trains them step by step.

    The teacher (two layers of 64 hidden units) is trained first, on 2,000 points with correct labels. The two students
    (one layer of a few hidden units) start from the same weights, have the same few labelled points, some of the labels
    wrong, and see all of them at every step. The baseline has nothing but these labels. The distilled student minimises
    alpha times their cross-entropy + (1 - alpha) times T^2 KL(teacher, student), which is `losses.kd`, on the same
    points and, if wanted, on unlabelled ones. So it learns, through the teacher, what the other cannot know: this is
    what distillation is for, and why it gains next to nothing where labels are correct and plentiful (noise=0,
    points=200: on two moons it is behind after 150 steps, and less than a percentage point ahead after 600). With
    argmax, the teacher gives its best class alone: what is then left of the gain comes from corrected labels, the rest
    from soft ones.

    steps: of one run, which then pauses. The controls may be moved during a run: another data set, size or seed resets
    the students; other points or noise replace their sample; temperature, alpha and argmax change the loss. Accuracies
    are measured on 2,000 test points with correct labels. `step(n)` does the same as Run without a notebook, `table()`
    is the text equivalent of the small plots. Raises ValueError for fewer than five steps.
    """

    name = "Playground"
    alt = (
        "Three maps of the same plane side by side, coloured by the class that the teacher, the student on hard labels "
        "and the distilled student predict at each point, with the decision boundaries, the labelled points, and rings "
        "around points with a wrong label. Right: two small plots of accuracy and loss against the training step."
    )
    size = SIZE
    _running_playground: ClassVar[weakref.ref[Playground] | None] = None

    def __init__(self, steps: int = 600, **initial: Any) -> None:
        if not (isinstance(steps, int) and steps >= LOG_EVERY):
            raise ValueError(f"steps must be a whole number from {LOG_EVERY} on, got {steps!r}.")
        self.steps, self.running, self.frames = steps, False, 0
        self.training = Training(Settings())
        self._steps_due, self._last_step, self._run_number = 0, steps, 0
        self._task: asyncio.Task[None] | None = None
        with self._lock:
            self._pause_others()
            super().__init__(**initial)
        self.view.children = (self._buttons, *self.view.children)

    # What every explorer implements.

    def make_controls(self, widgets: Any) -> dict[str, Any]:
        def button(description: str, icon: str, tooltip: str, callback: Callable[[], None]) -> Any:
            made = widgets.Button(description=description, icon=icon, tooltip=tooltip, layout={"width": "7rem"})
            made.on_click(lambda _: callback())
            return made

        self.run_button = button("Run", "play", "Train, step by step", self._toggle)
        self.reset_button = button("Reset", "refresh", "Both students from their initial weights", self.reset)
        self._progress = widgets.Label()
        row = {"flex_flow": "row wrap"}
        self._buttons = widgets.HBox([self.run_button, self.reset_button, self._progress], layout=row)
        default = Settings()

        def slider(kind: str, name: str, low: float, high: float, step: float, text: str, **options: Any) -> Any:
            values = {"min": low, "max": high, "step": step, "value": getattr(default, name)}
            return getattr(widgets, kind)(description=text, **values, **options, **CONTROL_STYLE)

        return {
            "data": widgets.Dropdown(
                options=list(DISTRIBUTIONS), value=default.data, description="Data set", **CONTROL_STYLE
            ),
            "points": slider("IntSlider", "points", 10, MAX_LABELLED, 10, "Labelled points"),
            "noise": slider("FloatSlider", "noise", 0, 0.4, 0.05, "Share of wrong labels"),
            "temperature": slider("FloatLogSlider", "temperature", 0, 4, 0.25, "Temperature T", base=2),
            "alpha": slider("FloatSlider", "alpha", 0, 1, 0.05, "alpha (hard labels)"),
            "unlabelled": slider("IntSlider", "unlabelled", 0, MAX_UNLABELLED, 50, "Unlabelled points"),
            "hidden": slider("IntSlider", "hidden", 2, 32, 1, "Hidden units"),
            "seed": slider("IntSlider", "seed", 0, 19, 1, "Seed"),
            "argmax": widgets.Checkbox(
                value=default.argmax,
                description="Teacher's argmax as labels",
                indent=False,
                layout=CONTROL_STYLE["layout"],
            ),
        }

    def inputs(self) -> tuple[Settings]:
        return (Settings(**self.state),)

    def compute(self, settings: Settings) -> Training:
        """The training, with these settings from now on; `playground_training.run_playground` is the pure function."""
        self.training.update_settings(settings)
        self._last_step = min(self._last_step, self.training.step + self.steps)
        return self.training

    def build(self, figure: Figure) -> tuple[Iterable[Artist], Iterable[Artist]]:
        self._drawing = PlaygroundFigure(figure)
        return self._drawing.cached_artists, self._drawing.live_artists

    def update(self, result: Training) -> None:
        self._drawing.update(result, self.steps, self.invalidate_cache)
        self._progress.value = self._progress_text()

    def describe_lines(self, result: Training) -> list[str]:
        row, settings = result.evaluate(), result.settings
        wrong = int((result.sample.labels != result.sample.true_labels).sum())
        taught = f"the teacher's soft labels at T = {settings.temperature:.3g}"
        taught = "the teacher's best class as a label" if settings.argmax else taught
        unlabelled = f" and on {settings.unlabelled} unlabelled ones" if settings.unlabelled else ""
        return [
            f"Step {row.step}. Right: teacher {row.teacher_accuracy:.1%}, student on hard labels "
            f"{row.baseline_accuracy:.1%}, distilled student {row.distilled_accuracy:.1%}. They answer as the teacher "
            f"does: {row.baseline_agreement:.1%} and {row.distilled_agreement:.1%}.",
            f"Loss on the labels: {row.baseline_hard_loss:.3f} and {row.distilled_hard_loss:.3f} nats. Soft loss of "
            f"the distilled student: {row.soft_loss:.3f}.",
            f"The teacher (2 x {TEACHER_HIDDEN} hidden units) learns from {TEACHER_POINTS:,} right labels. Both "
            f"students ({settings.hidden} hidden units) have the same start and {settings.points} labelled "
            f"points, {wrong} of the labels wrong; the distilled one has {taught} on these{unlabelled} too, hard "
            f"labels with weight {settings.alpha:.2g}.",
        ]

    def __repr__(self) -> str:
        return f"{super().__repr__()}; step {self.training.step}"

    def _refresh(self) -> None:
        steps, self._steps_due = self._steps_due, 0
        training = self.compute(*self.inputs())
        if steps and not training.teacher.is_trained:
            training.train_teacher(TEACHER_STEPS_PER_FRAME)
        elif steps:
            training.train(steps)
        super()._refresh()

    # Run, Pause, Reset.

    def run(self) -> None:
        """Train and draw until `pause()` or the end of the run; needs an event loop, such as a notebook's."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise ValueError("Run needs a notebook. In a script or a plain terminal call step(100) instead.") from None
        with self._lock:
            self._pause_others()
            Playground._running_playground = weakref.ref(self)
            self._last_step = self.training.step + self.steps
            self._run_number += 1
            self._task = loop.create_task(self._animate(self._run_number))  # the loop alone would not keep it
            self._set_running(True)

    def pause(self) -> None:
        """Stop after the present step; `run()` continues from there."""
        with self._lock:
            self._run_number += 1
            self._set_running(False)

    def reset(self) -> None:
        """Pause, and reset both students to their initial weights; the teacher stays trained."""
        with self._lock:
            self.pause()
            self.training.reset()
            self._on_change()

    def step(self, steps: int = LOG_EVERY) -> None:
        """Train for a number of steps and draw; the teacher is trained first. Raises ValueError for fewer than one."""
        if not (isinstance(steps, int) and steps > 0):
            raise ValueError(f"steps must be a whole number above 0, got {steps!r}.")
        with self._lock:
            self.training.update_settings(*self.inputs())
            self.training.train(steps)
            self._on_change()
        if self.error:
            raise ValueError(self.error)

    def close(self) -> None:
        """Pause, and remove the explorer from the page."""
        self.pause()
        for widget in (*self.controls.values(), self._buttons, self.image, self.view):
            widget.close()

    def table(self) -> str:
        """The text equivalent of the small plots: up to nine steps of the training, percentages of the test points."""
        with self._lock:
            rows, last = self.training.rows, self.training.evaluate()
        every = max(1, -(-len(rows) // TABLE_ROWS))
        kept = [row for row in rows[::every] if row.step < last.step]
        head = f"{'':>6}{'right (%)':^32}{'as the teacher (%)':^24}"
        names = f"{'step':>6}{'teacher':>10}{'hard labels':>12}{'distilled':>10}{'hard labels':>14}{'distilled':>10}"
        return "\n".join([head, names, *(_format_row(row) for row in (*kept, last))])

    def _toggle(self) -> None:
        try:
            self.pause() if self.running else self.run()
        except Exception as error:
            self._show_error(str(error))

    async def _animate(self, run_number: int) -> None:
        try:
            while self._is_current(run_number):
                start = time.perf_counter()
                self._frame(run_number)
                # The remaining time is for messages: of controls that are moved, and of other cells.
                await asyncio.sleep(max(MIN_PAUSE, start + FRAME_SECONDS - time.perf_counter()))
        finally:  # also when the kernel was interrupted
            if run_number == self._run_number:
                self.pause()

    def _frame(self, run_number: int) -> None:
        """Some steps and a figure; pauses at the end of the run or after an error."""
        with self._lock:
            if not self._is_current(run_number):
                return
            # One at least, also while the teacher still learns: that these are due is what makes it learn.
            self._steps_due = max(1, min(LOG_EVERY, self._last_step - self.training.step))
            self._on_change()
            self.frames += 1
            if self.error or self.training.step >= self._last_step:
                self.pause()

    def _is_current(self, run_number: int) -> bool:
        """Whether a run continues: it was not paused, and the image is still on the page."""
        return self.running and run_number == self._run_number and self.image.comm is not None

    def _pause_others(self) -> None:
        """Pause another playground that runs, such as that of the same cell when it is executed again."""
        other = Playground._running_playground() if Playground._running_playground else None
        if other is not None and other is not self:
            other.pause()

    def _set_running(self, running: bool) -> None:
        self.running = running
        self.run_button.description, self.run_button.icon = ("Pause", "pause") if running else ("Run", "play")
        self._progress.value = self._progress_text()

    def _progress_text(self) -> str:
        training = self.training
        if not training.teacher.is_trained:
            step = training.teacher.step
            return f"The teacher learns: step {step} of {TEACHER_STEPS}" if step else "Nobody has learnt anything"
        kind = "Running" if self.running else "Paused"
        started = training.step or self.running
        return f"{kind} at step {training.step}" if started else "The teacher has learnt; press Run"


def _format_row(row: LogRow) -> str:
    shares = (
        row.teacher_accuracy,
        row.baseline_accuracy,
        row.distilled_accuracy,
        row.baseline_agreement,
        row.distilled_agreement,
    )
    widths = (10, 12, 10, 14, 10)
    texts = (f"{100 * share:>{width}.1f}" for share, width in zip(shares, widths, strict=True))
    return f"{row.step:>6}" + "".join(texts)
