"""The quiz in a terminal: a letter and Enter; q and Enter leaves, and the next call goes on from there.

python -m course.quiz                  ask what is not right yet
python -m course.quiz --lesson 00 03   the questions about one lesson or several
python -m course.quiz --report         what is right, and what to read again
python -m course.quiz --print          all questions, for paper
python -m course.quiz --solutions      all questions with their explanations
python -m course.quiz --forget         begin anew
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from course.grading import wrap
from course.quiz.engine import Quiz, load
from kdlib.errors import escape_unprintable


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0, or 2 for a lesson without questions."""
    escape_unprintable()
    options = _parser().parse_args(arguments)
    try:
        quiz = load(*options.lesson)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    again = " ".join(["python -m course.quiz", *(["--lesson", *options.lesson] if options.lesson else [])])
    if options.forget:
        quiz.forget()
    elif options.print or options.solutions:
        print("\n\n".join(_on_paper(quiz, number, options.solutions) for number in range(1, len(quiz) + 1)))
    else:
        if not options.report:
            _ask_all(quiz)
        quiz.report(again)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m course.quiz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    about = "only the questions about these lessons, by their numbers"
    parser.add_argument("--lesson", nargs="+", action="extend", default=[], metavar="NUMBER", help=about)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--report", action="store_true", help="what is right, and what to read again")
    how.add_argument("--print", action="store_true", help="print all questions")
    how.add_argument("--solutions", action="store_true", help="print all questions with their explanations")
    how.add_argument("--forget", action="store_true", help="forget the answers to these questions")
    return parser


def _on_paper(quiz: Quiz, number: int, solutions: bool) -> str:
    one = quiz.question(number)
    text = quiz.text(number)
    return f"{text}\n\n{wrap(one.key.explanations(one.correct))}" if solutions else text


def _ask_all(quiz: Quiz) -> None:
    """Ask until nothing is open, or the learner leaves."""
    number = quiz.next_number()
    while number:
        print(f"\n{quiz.text(number)}\n")
        letters = list(quiz.question(number).key.by_letter)
        letter = _read_letter()
        if letter == "q":
            break
        if letter not in letters:
            print(f"\nType one letter, {letters[0]} to {letters[-1]}, and Enter; q leaves.")
            continue
        print(f"\n{quiz.grade(number, letter)}")
        number = quiz.next_number(number)
    print()


def _read_letter() -> str:
    """What was typed, without quotes; "q" at the end of the input and for Ctrl-C."""
    try:
        return input("Letter, or q to leave: ").strip().strip("\"')").lower()
    except (EOFError, KeyboardInterrupt):
        return "q"


if __name__ == "__main__":
    sys.exit(main())
