"""The clinic of lesson 15: ten short training scripts, most of them with a mistake that real code has had.

    from course import clinic

    clinic.diagnoses()              # the faults to choose from
    one = clinic.patient(3)         # shows the script
    one.train()                     # shows the curves
    one.name("d")                   # is it that?
    one.treat({22: "..."})          # another line 22: does it help?

scripts/     the patients
ward         pictures, networks, batches and the loop that all of them share
script       a script's text, with other lines, run
cases        what is wrong with each, and where that was seen
exercise     what a learner sees of one
figure       its curves
"""

from course.clinic.cases import CASES, DIAGNOSES
from course.clinic.exercise import Patient, diagnoses, patient, patients

__all__ = ["CASES", "DIAGNOSES", "Patient", "diagnoses", "patient", "patients"]
