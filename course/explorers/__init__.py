"""Interactive figures: move a control and see what changes. Display one in a cell.

    from course import explorers

    explorers.Temperature(temperature=4)

    Cost            lesson 01   the cost of a network, against the budget of a device
    Compression     lesson 02   a compressed network: bytes, MACs, time and accuracy, among all others
    TeacherSees     lesson 03   the teacher's view of an image
    Temperature     lesson 04   softened logits at any temperature
    TemperatureMap  lesson 05   gains over alpha and temperature, with five seeds behind each number
    Playground      lesson 05   a teacher and two students classify a plane, while they are trained
    Attention       lesson 06   attention maps of the layers of teacher and students
    Relations       lesson 07   relations between layers and between images, in the teacher and in snapshots of students
    Planner         lesson 09   a planned experiment, simulated: its intervals, and how often its verdict is right
    Teachers        lesson 10   a teacher among all: what is known of it, and what its students got
    Ensemble        lesson 12   several teachers' answers to a picture, alone and together, and their disagreement
    SearchReplay    lesson 13   random search and TPE on a map that was trained before, a trial at a time
    Modalities      lesson 14   a student of another modality: labels, wrong pairs, temperature

describe() gives the text equivalent, set(...) moves the controls from code, and compute(...), which needs no notebook,
gives what is drawn. DEVICES are the budgets of Cost; run_playground(steps, PlaygroundSettings(...)) trains without a
figure; Snapshots keeps copies of a student during its training.
"""

from course.explorers.attention import Attention
from course.explorers.base import Explorer
from course.explorers.compression import Compression
from course.explorers.cost import DEVICES, Cost
from course.explorers.ensemble import Ensemble
from course.explorers.modalities import Modalities
from course.explorers.planner import Planner
from course.explorers.playground import Playground
from course.explorers.playground_training import Settings as PlaygroundSettings
from course.explorers.playground_training import run_playground
from course.explorers.relations import Relations
from course.explorers.search_replay import SearchReplay
from course.explorers.snapshots import Snapshots
from course.explorers.teacher_sees import TeacherSees
from course.explorers.teachers import Teachers
from course.explorers.temperature import Temperature
from course.explorers.temperature_map import TemperatureMap

__all__ = [
    "DEVICES",
    "Attention",
    "Compression",
    "Cost",
    "Ensemble",
    "Explorer",
    "Modalities",
    "Planner",
    "Playground",
    "PlaygroundSettings",
    "Relations",
    "SearchReplay",
    "Snapshots",
    "TeacherSees",
    "Teachers",
    "Temperature",
    "TemperatureMap",
    "run_playground",
]
