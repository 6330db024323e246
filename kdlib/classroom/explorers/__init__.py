"""Pictures that answer: move a control and see what changes. Each is an object to show in a cell.

    from kdlib.classroom import explorers

    explorers.Temperature(temperature=4)

    Cost          lesson 01   what a network costs, against the budget of a device
    TeacherSees   lesson 03   what the teacher sees in a picture
    Temperature   lesson 04   what temperature makes of logits

describe() gives the numbers as text, set(...) moves the controls from code, and compute(...), which needs no
notebook, gives what is drawn.
"""

from kdlib.classroom.explorers.base import Explorer
from kdlib.classroom.explorers.cost import Cost
from kdlib.classroom.explorers.teacher_sees import TeacherSees
from kdlib.classroom.explorers.temperature import Temperature

__all__ = ["Cost", "Explorer", "TeacherSees", "Temperature"]
