"""Pictures that answer: move a control and see what changes. Each is an object to show in a cell.

    from kdlib.classroom import explorers

    explorers.Temperature(temperature=4)

    Cost            lesson 01   what a network costs, against the budget of a device
    TeacherSees     lesson 03   what the teacher sees in a picture
    Temperature     lesson 04   what temperature makes of logits
    TemperatureMap  lesson 05   what alpha and temperature are worth, with five seeds behind each number
    Playground      lesson 05   a teacher and two students in a plane, while they learn
    Attention       lesson 06   where the layers of teacher and students look
    Relations       lesson 07   how layers and pictures relate inside the teacher, and inside a student as it learns

describe() gives the numbers as text, set(...) moves the controls from code, and compute(...), which needs no
notebook, gives what is drawn.
"""

from kdlib.classroom.explorers.attention import Attention
from kdlib.classroom.explorers.base import Explorer
from kdlib.classroom.explorers.cost import Cost
from kdlib.classroom.explorers.inside import Snapshots
from kdlib.classroom.explorers.playground import Playground
from kdlib.classroom.explorers.relations import Relations
from kdlib.classroom.explorers.teacher_sees import TeacherSees
from kdlib.classroom.explorers.temperature import Temperature
from kdlib.classroom.explorers.temperature_map import TemperatureMap

__all__ = [
    "Attention",
    "Cost",
    "Explorer",
    "Playground",
    "Relations",
    "Snapshots",
    "TeacherSees",
    "Temperature",
    "TemperatureMap",
]
