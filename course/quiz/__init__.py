"""Questions about the whole course, in a notebook, in the terminal or on paper.

    from course import quiz

    q = quiz.load()
    q                  # in a notebook: with controls; elsewhere the overview and the next question
    q.ask(7)           # a question as text
    q.answer(7, "b")   # right or wrong, with an explanation of every option
    q.report()         # how many are right, lesson by lesson, and what to read again

    python -m course.quiz --help     # the same in a terminal

The first answer counts. Answers are kept in the same small file as the progress with the exercises (see
`course.progress_file`): the names of the questions with "done" or "tried", and no letters.

question      what a question consists of
foundations   questions about lessons 00 to 05
teaching      questions about lessons 06 to 10
beyond        questions about lessons 11 to 17
engine        who has answered what: asking, answering, the report
widget        the controls of the notebook
"""

from course.quiz.engine import QUESTIONS, Quiz, load
from course.quiz.question import QuizQuestion

__all__ = ["QUESTIONS", "Quiz", "QuizQuestion", "load"]
