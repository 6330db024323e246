"""The quiz with controls, for a notebook: Tab to a letter, Enter, Tab to the button, Enter.

The letters are buttons, because JupyterLab takes the arrow keys away from radio buttons (it selects cells by them). As
in the explorers nothing is cleared and drawn again: a few HTML widgets change their text.
"""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any

import ipywidgets

if TYPE_CHECKING:
    from course.quiz.engine import Quiz

PARAGRAPH = '<p style="line-height: 1.4; max-width: 46rem; margin: 0.4em 0">'
MARKS = {"done": "right", "tried": "wrong", "": "open"}
NO_LETTER = f'<div role="status">{PARAGRAPH}Choose a letter first.</p></div>'


class Controls:
    """A list of questions, the letters, one button, and texts that change in place.

    The button answers, and afterwards leads to the next question, so that Enter twice goes on. It says which letter is
    chosen, and is never disabled: that would take the focus away from it.
    """

    def __init__(self, quiz: Quiz) -> None:
        self.quiz = quiz
        self._busy = self._is_answered = False
        self.number = ipywidgets.Dropdown(description="Question", layout={"width": "auto", "max_width": "22rem"})
        style = {"button_width": "3rem", "description_width": "initial"}
        self.letters = ipywidgets.ToggleButtons(options=[], description="Letter", style=style)
        self.button = ipywidgets.Button(description="Answer", button_style="primary")
        self.prompt, self.feedback, self.summary = (ipywidgets.HTML() for _ in range(3))
        self._fill_list()
        self._show(quiz.next_number() or 1)
        self.number.observe(self._on_number, names="value")
        self.letters.observe(self._on_letter, names="value")
        self.button.on_click(self._on_button)
        row = ipywidgets.HBox([self.letters, self.button], layout={"align_items": "flex-end", "flex_flow": "row wrap"})
        self.view = ipywidgets.VBox([self.number, self.prompt, row, self.feedback, self.summary])

    def _fill_list(self) -> None:
        rows = enumerate(self.quiz.questions, 1)
        names = [(f"{n}, lesson {one.lesson}: {MARKS[self.quiz.states[one.name]]}", n) for n, one in rows]
        chosen, self._busy = self.number.value, True
        self.number.options = names
        if chosen is not None:
            self.number.value = chosen
        self._busy = False
        self.summary.value = f"{PARAGRAPH}{html.escape(self.quiz.summary())}</p>"

    def _show(self, number: int) -> None:
        """Ask a question; what was said about the one before goes away."""
        one, self._busy = self.quiz.question(number), True
        self.number.value = number
        self.letters.options = list(one.key.by_letter)
        self.letters.tooltips = [option.text for option in one.options]
        self.letters.value = None
        self._busy = False
        options = "<br>".join(f"<b>{k})</b> {html.escape(option.text)}" for k, option in one.key.by_letter.items())
        question = f"{PARAGRAPH}{html.escape(one.question)}</p>{PARAGRAPH}{options}</p>"
        self.prompt.value = f'<div role="status">{question}</div>'
        self.feedback.value = ""
        self._offer_answer()

    def _offer_answer(self) -> None:
        self._is_answered, letter = False, self.letters.value
        self.button.description = f"Answer {letter}" if letter else "Answer"

    def _on_number(self, change: dict[str, Any]) -> None:
        if not self._busy:
            self._show(change["new"])

    def _on_letter(self, _change: dict[str, Any]) -> None:
        if self._busy:
            return
        if self.feedback.value == NO_LETTER:
            self.feedback.value = ""
        self._offer_answer()

    def _on_button(self, _button: Any) -> None:
        number = self.number.value
        if self.letters.value is None:
            self.feedback.value = NO_LETTER
            return
        if not self._is_answered:
            note = self.quiz.keep(number, self.letters.value)
            self.feedback.value = f'<div role="status" aria-live="polite">{self._explained(number, note)}</div>'
            self._fill_list()
            self._is_answered, self.button.description = True, "Next question"
            return
        following = self.quiz.next_number(number)
        if following:
            self._show(following)
            return
        report = html.escape(self.quiz.report_text())
        self.feedback.value = f'<div role="status"><pre style="line-height: 1.3">{report}</pre></div>'

    def _explained(self, number: int, note: str) -> str:
        """The verdict in bold and what to read again, then every option with its explanation, and the note if any."""
        one, chosen = self.quiz.question(number), self.letters.value
        verdict = "Right" if chosen == one.correct else f"Wrong. Read again: {self.quiz.where(one)}"
        rows = []
        for letter, option in one.key.by_letter.items():
            word = "right" if option.correct else "wrong"
            weight = "600" if letter == chosen else "400"
            explanation = html.escape(option.explanation)
            rows.append(f'<span style="font-weight: {weight}">{letter}) {word}:</span> {explanation}')
        paragraphs = [f"<b>{html.escape(verdict)}.</b>", "<br>".join(rows), *([html.escape(note)] if note else [])]
        return "".join(f"{PARAGRAPH}{text}</p>" for text in paragraphs)
