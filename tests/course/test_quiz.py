"""The quiz: questions that can be trusted, answers that are kept, a report by lesson, keys and plain text."""

from __future__ import annotations

import builtins
import html
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from course import notebooks, quiz
from course.quiz import engine
from course.quiz.__main__ import main
from course.specs import Option
from kdlib import study
from kdlib.data import data_dir
from kdlib.study.runs_file import read_rows

NUMBERS = range(1, 33)


@pytest.fixture
def progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "progress.json"
    monkeypatch.setenv("KDLIB_PROGRESS", str(file))
    return file


def wrong_letter(number: int) -> str:
    return "a" if quiz.QUESTIONS[number - 1].correct != "a" else "b"


# The questions.


def test_the_questions_ask_about_every_lesson_in_order() -> None:
    lessons = [one.lesson for one in quiz.QUESTIONS]
    assert lessons == sorted(lessons)
    about_the_course = {"16", "18"}  # answers to the article's questions, and the quiz itself
    assert set(lessons) == {path.stem[:2] for path in notebooks.list_notebooks()} - about_the_course
    assert len({one.name for one in quiz.QUESTIONS}) == len(lessons) == 32
    assert all(one.name.isidentifier() for one in quiz.QUESTIONS)


@pytest.mark.parametrize("one", quiz.QUESTIONS, ids=lambda one: one.name)
def test_a_question_has_four_options_one_right_and_all_explained(one: quiz.QuizQuestion) -> None:
    assert len(one.options) == 4
    assert sum(option.correct for option in one.options) == 1
    assert one.question.endswith("?")
    texts = [option.text for option in one.options]
    explanations = [option.explanation for option in one.options]
    assert len(set(texts)) == len(set(explanations)) == 4
    assert all(len(text.split()) >= 5 and text.endswith((".", "?")) for text in explanations)
    assert len({text.endswith((".", "?")) for text in texts}) == 1  # all are sentences, or none is
    assert max(map(len, texts)) <= 1.35 * min(map(len, texts))  # none stands out
    assert (one.question + "".join(texts + explanations)).isascii()


def test_neither_position_nor_length_gives_the_answer_away() -> None:
    positions = Counter(one.correct for one in quiz.QUESTIONS)
    assert set(positions) == set("abcd")
    assert max(positions.values()) - min(positions.values()) <= 1
    in_a_row = zip(quiz.QUESTIONS, quiz.QUESTIONS[1:], strict=False)
    assert sum(one.correct == after.correct for one, after in in_a_row) <= 5
    longest = sum(max(one.options, key=lambda option: len(option.text)).correct for one in quiz.QUESTIONS)
    shortest = sum(min(one.options, key=lambda option: len(option.text)).correct for one in quiz.QUESTIONS)
    assert longest <= 10
    assert shortest <= 13


@pytest.mark.parametrize("one", quiz.QUESTIONS, ids=lambda one: one.name)
def test_the_section_to_read_again_is_in_the_lesson(one: quiz.QuizQuestion) -> None:
    paths = [path for path in notebooks.list_notebooks() if path.stem.startswith(f"{one.lesson}_")]
    if not paths or not one.section:
        return  # a lesson that is still to come
    cells = json.loads(paths[0].read_text(encoding="utf-8"))["cells"]
    prose = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert f"## {one.section}\n" in "\n\n".join(prose) + "\n"


def option(name: str, words: str) -> Option:
    """The option of a question that holds some words."""
    (one,) = [one for one in quiz.QUESTIONS if one.name == name]
    (found,) = [option for option in one.options if words in option.text]
    return found


def test_what_pairing_gains_is_what_the_rows_say() -> None:
    shares = []
    for path in sorted((data_dir() / "results").glob("methods-*.csv")):
        row = read_rows(path)[0]
        results = study.results("methods", student=row["student"], teacher=row["teacher"], images=int(row["images"]))

        def spread(found: Mapping[int, float]) -> float:
            return statistics.stdev(found.values())

        hard = spread(results.score("hard").by_seed)
        shares += [
            spread(results.gain(name).by_seed) / math.hypot(hard, spread(results.score(name).by_seed))
            for name in results.methods
        ]
    median = statistics.median(shares)
    assert sum(share < 1 for share in shares) < len(shares)  # hence "as a rule"
    said = f"by {1 - median:.0%} in the median".replace("%", " %")
    assert said in option("paired", "drops out").explanation
    assert f"{said} of {len(shares)} comparisons" in (notebooks.NOTEBOOKS_DIR / "glossary.md").read_text("utf-8")


def test_a_distance_has_a_derivative() -> None:
    assert option("needs_labels", "no derivative").explanation.startswith("They have one")


# Answers.


@pytest.mark.parametrize("number", NUMBERS)
def test_every_option_is_explained_whatever_was_answered(number: int, progress: Path) -> None:
    one = quiz.QUESTIONS[number - 1]
    for letter, option in one.key.by_letter.items():
        reply = " ".join(quiz.Quiz().grade(number, letter).split())
        assert reply.startswith("Right:" if option.correct else "Wrong:")
        assert all(" ".join(other.explanation.split()) in reply for other in one.options)
        assert (f"Read again: lesson {one.lesson}" in reply) is not option.correct


@pytest.mark.parametrize("blank", [..., None, ""])
def test_not_attempted_is_one_line_and_nothing_is_kept(blank: object, progress: Path) -> None:
    reply = quiz.Quiz().grade(1, blank)
    assert reply.startswith("Not attempted yet")
    assert len(reply.splitlines()) == 1
    assert not progress.exists()


@pytest.mark.parametrize("answer", ["e", "ab", 2, object(), ["a"]])
def test_what_is_no_letter_is_explained_and_not_kept(answer: object, progress: Path) -> None:
    assert quiz.Quiz().grade(1, answer).startswith("This is not an answer yet. Answer with one letter")
    assert not progress.exists()


@pytest.mark.parametrize("number", [0, 33, -1, True, 1.0, "1"])
def test_an_unknown_number_is_refused(number: object) -> None:
    with pytest.raises(ValueError, match="numbered from 1 to 32"):
        quiz.Quiz().ask(number)


def test_a_letter_is_read_as_people_write_it(progress: Path) -> None:
    letter = quiz.QUESTIONS[0].correct
    for written in (letter, letter.upper(), f" {letter}) ", f"{letter}."):
        assert quiz.Quiz().grade(1, written).startswith("Right")


def test_the_first_answer_counts_until_one_asks_again(progress: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = quiz.Quiz()
    one.answer(1, wrong_letter(1))
    reply = one.grade(1, quiz.QUESTIONS[0].correct)
    assert reply.startswith("Right")
    assert "first answer counts" in " ".join(reply.split())
    assert "0 of 32 right, 1 wrong, 31 open" in one.report_text()
    one.again()
    assert "1 question to answer once more." in capsys.readouterr().out
    one.answer(1, quiz.QUESTIONS[0].correct)
    assert "1 of 32 right, 0 wrong, 31 open" in one.report_text()


def test_answers_are_remembered_beside_those_of_the_exercises(progress: Path) -> None:
    progress.write_text('{"version": 1, "exercises": {"04.law": "done"}}')
    first = quiz.Quiz()
    first.answer(1, quiz.QUESTIONS[0].correct)
    first.answer(2, wrong_letter(2))
    kept = json.loads(progress.read_text())["exercises"]
    assert kept == {"04.law": "done", "quiz.fair_twin": "done", "quiz.resolution": "tried"}
    second = quiz.Quiz()
    assert second.summary() == "1 of 32 right, 1 wrong, 30 open"
    assert second.next_number() == 2  # what was wrong may be answered once more another day
    second.forget()
    assert json.loads(progress.read_text())["exercises"] == {"04.law": "done"}
    assert quiz.Quiz().summary() == "0 of 32 right, 0 wrong, 32 open"


def test_a_progress_file_that_cannot_be_read_does_not_stop_the_quiz(progress: Path) -> None:
    progress.write_text("{")
    one = quiz.Quiz()
    assert "cannot be read" in one.report_text()
    assert one.grade(1, "a").startswith(("Right", "Wrong"))
    assert quiz.Quiz().summary().endswith("31 open")


def test_nothing_is_written_where_progress_is_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KDLIB_PROGRESS", "off")
    monkeypatch.chdir(tmp_path)
    one = quiz.Quiz()
    one.answer(1, "a")
    one.forget()
    assert list(tmp_path.iterdir()) == []


def test_the_report_names_the_lessons_to_read_again(progress: Path) -> None:
    one = quiz.Quiz()
    for number, question in enumerate(quiz.QUESTIONS, 1):
        one.grade(number, question.correct if question.lesson not in ("05", "09") else wrong_letter(number))
    text = one.report_text()
    assert text.startswith("Quiz: 28 of 32 right, 4 wrong, 0 open")
    assert "Read again: lessons 05, 09." in text
    assert text.count("read again:") == 4
    assert '"Mistake 2: the answers of other pictures"' in text
    assert "05  How do logits teach?" in text
    assert one.next_number() == 0
    assert "Quiz: 28 of 32" in repr(one)


def test_the_questions_of_one_lesson(progress: Path) -> None:
    assert len(quiz.load(5)) == 2
    assert len(quiz.load("00")) == 1
    assert [one.lesson for one in quiz.load("05", 0)] == ["00", "05", "05"]
    with pytest.raises(ValueError, match="lesson with questions"):
        quiz.load("99")


# The terminal.


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    waiting = list(lines)

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    monkeypatch.setattr(builtins, "input", read)


def test_the_terminal_asks_until_it_is_left_and_goes_on_there(
    progress: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, quiz.QUESTIONS[0].correct, "x", wrong_letter(2), "q")
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.count("Question 2 of 32") == 2  # x was no answer
    assert out.index("Question 3 of 32") < out.index("Quiz: 1 of 32 right, 1 wrong, 30 open")
    typed(monkeypatch)
    assert main([]) == 0
    assert "Question 2 of 32" in capsys.readouterr().out


def test_the_terminal_takes_a_letter_with_quotes_and_tells_what_it_wants(
    progress: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "", "x", f'"{quiz.QUESTIONS[0].correct}"', "q")
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.count("Type one letter, a to ") == 2
    assert "in quotes" not in out
    assert "Quiz: 1 of 32 right, 0 wrong, 31 open" in out


def test_the_terminal_prints_for_paper_reports_and_forgets(
    progress: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--print"]) == 0
    paper = capsys.readouterr().out
    assert paper.count("\nQuestion ") == 31
    assert "right:" not in paper
    assert all(len(line) <= 88 for line in paper.splitlines())
    assert main(["--solutions", "--lesson", "5"]) == 0
    assert capsys.readouterr().out.count("right:") == 2
    typed(monkeypatch, "a")
    assert main(["--lesson", "00"]) == 0
    assert main(["--print", "--lesson", "00", "03", "--lesson", "05"]) == 0
    assert "Question 1 of 5, lesson 00" in capsys.readouterr().out
    assert main(["--report"]) == 0
    assert "31 open" in capsys.readouterr().out
    assert main(["--forget"]) == 0
    assert "forgotten" in capsys.readouterr().out
    assert main(["--lesson", "77"]) == 2


def test_it_asks_where_there_are_no_lessons_and_no_jupyter(
    progress: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip installs it: the lessons are in the repository."""
    monkeypatch.setattr(engine, "__file__", str(tmp_path / "course" / "quiz" / "engine.py"))
    for name in ("nbformat", "course.notebooks"):
        monkeypatch.setitem(sys.modules, name, None)
    engine.lesson_title.cache_clear()
    try:
        assert main(["--print", "--lesson", "00"]) == 0
        assert "lesson 00\n" in capsys.readouterr().out
        assert main(["--report", "--lesson", "00"]) == 0
        assert "written" not in capsys.readouterr().out
    finally:
        engine.lesson_title.cache_clear()


@pytest.mark.parametrize("lessons", [[], ["--lesson", "00", "03"]])
def test_the_terminal_says_by_which_command_it_asks_once_more(
    lessons: list[str], progress: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, wrong_letter(1), "q")
    assert main(lessons) == 0
    assert main([*lessons, "--report"]) == 0
    out = capsys.readouterr().out
    command = " ".join(["python -m course.quiz", *lessons])
    assert out.count(f"Read again: lesson 00. Then {command} asks once more.\n") == 2
    assert "again()" not in out
    assert ".again() asks once more" in quiz.Quiz().report_text()


# The controls.


def test_the_controls_ask_grade_and_go_on(progress: Path) -> None:
    from course.quiz.widget import Controls

    controls = Controls(quiz.Quiz())
    assert "lesson 00: open" in controls.number.options[0][0]
    controls.letters.value = wrong_letter(1)
    controls.button.click()
    assert "Wrong. Read again: lesson 00" in controls.feedback.value
    shown = html.unescape(controls.feedback.value)
    assert all(option.explanation in shown for option in quiz.QUESTIONS[0].options)
    assert "lesson 00: wrong" in controls.number.options[0][0]
    controls.button.click()
    assert controls.number.value == 2
    assert controls.letters.value is None
    assert controls.feedback.value == ""
    controls.number.value = 32
    assert quiz.QUESTIONS[31].question[:40] in controls.prompt.value
    controls.letters.value = quiz.QUESTIONS[31].correct
    controls.button.click()
    assert "<b>Right.</b>" in controls.feedback.value
    assert "1 of 32 right, 1 wrong" in controls.summary.value


def test_the_controls_say_in_words_what_they_ask_and_which_letter_is_chosen(progress: Path) -> None:
    from course.quiz.widget import Controls

    controls = Controls(quiz.Quiz())
    assert controls.letters.description == "Letter"
    controls.button.click()
    assert "Choose a letter first." in controls.feedback.value
    assert 'role="status"' in controls.feedback.value
    assert not progress.exists()
    controls.letters.value = "b"
    assert controls.feedback.value == ""
    assert controls.button.description == "Answer b"  # else its colour alone would tell
    controls.button.click()
    controls.button.click()
    assert controls.number.value == 2
    assert not controls.button.disabled  # that would take the keyboard's focus away
    assert 'role="status"' in controls.prompt.value  # a screen reader says the next question


def test_the_controls_say_that_an_answer_could_not_be_saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from course.quiz.widget import Controls

    monkeypatch.setenv("KDLIB_PROGRESS", str(tmp_path))  # a folder is no file
    controls = Controls(quiz.Quiz())
    controls.letters.value = "a"
    controls.button.click()
    assert "could not be saved" in controls.feedback.value


def test_the_controls_say_that_a_second_answer_is_not_stored(progress: Path) -> None:
    from course.quiz.widget import Controls

    controls = Controls(quiz.Quiz())
    for letter in (wrong_letter(1), quiz.QUESTIONS[0].correct):
        assert "first answer counts" not in controls.feedback.value
        controls.letters.value = letter
        controls.button.click()
    assert "first answer counts" in controls.feedback.value
    assert "lesson 00: wrong" in controls.number.options[0][0]


def test_after_the_last_question_the_controls_report(progress: Path) -> None:
    from course.quiz.widget import Controls

    controls = Controls(quiz.load("00"))
    controls.letters.value = wrong_letter(1)
    controls.button.click()
    controls.button.click()
    assert "Read again: lesson 00" in controls.feedback.value


def test_a_notebook_gets_controls_and_text(progress: Path) -> None:
    data = quiz.Quiz()._repr_mimebundle_()
    assert set(data) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert data["text/plain"].startswith("Quiz: 0 of 32 right")
    assert "Question 1 of 32" in data["text/plain"]


def test_without_ipywidgets_there_is_text(progress: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "course.quiz.widget", None)
    assert set(quiz.Quiz()._repr_mimebundle_()) == {"text/plain"}


def test_forgetting_one_lesson_keeps_the_answers_to_others(progress: Path) -> None:
    progress.write_text('{"version": 1, "exercises": {"quiz.fair_twin": "done"}}')
    assert main(["--lesson", "05", "--forget"]) == 0
    assert "quiz.fair_twin" in progress.read_text()
    assert main(["--forget"]) == 0
    assert "quiz.fair_twin" not in progress.read_text()


def test_after_the_last_question_comes_the_first_that_is_open(progress: Path) -> None:
    one = quiz.Quiz()
    assert one.next_number(32) == 1
    one.grade(1, quiz.QUESTIONS[0].correct)
    assert one.next_number(32) == 2
    assert one.next_number(7) == 8


def test_what_was_right_once_stays_right_on_another_day(progress: Path) -> None:
    quiz.Quiz().grade(1, quiz.QUESTIONS[0].correct)
    later = quiz.Quiz()
    assert "first answer counts" in " ".join(later.grade(1, wrong_letter(1)).split())
    assert later.summary() == "1 of 32 right, 0 wrong, 31 open"


def test_the_report_counts_what_is_open_as_not_right(progress: Path) -> None:
    one = quiz.load("05")
    one.grade(1, one.questions[0].correct)
    assert "1 of 2 right" in one.report_text().splitlines()[1]


def test_after_forgetting_the_same_quiz_takes_answers_again(progress: Path) -> None:
    one = quiz.Quiz()
    one.grade(1, wrong_letter(1))
    one.forget()
    assert "first answer counts" not in " ".join(one.grade(1, quiz.QUESTIONS[0].correct).split())
    assert one.summary() == "1 of 32 right, 0 wrong, 31 open"


def test_where_no_question_is_open_that_is_said(progress: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = quiz.load("00")
    one.grade(1, one.questions[0].correct)
    one.ask()
    assert capsys.readouterr().out.startswith("No question is open.")
