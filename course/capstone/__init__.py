"""The capstone: distil for pictures of one's own, and write one page whose every claim can be checked.

    python -m course.capstone cost --teacher A --student B --data imagefolder@32:pictures   measure sizes and times
    python -m course.capstone repeat STUDY.csv --method kd      the command that trains this student again, to keep it
    python -m course.capstone draft --study STUDY.csv ...       a report with the numbers, without the words
    python -m course.capstone check report.md                   hold every claim of a report against the files

The page for the learner is course/capstone/README.md, and course/capstone/example/ is a whole one.

pictures   a folder of pictures to practise with
document   the report as front matter, sections, tables and lists
evidence   the files that the commands have written
checks     one function a claim; each says what is wrong and what to do
draft      a report with the numbers filled in
cost       parameters, MACs, bytes and times of teacher and student, measured
"""

from pathlib import Path

from course.capstone.checks import check
from course.capstone.document import Report, read_report
from course.capstone.evidence import Evidence, read_evidence

__all__ = ["EXAMPLE", "Evidence", "Report", "check", "read_evidence", "read_report"]

EXAMPLE = Path(__file__).parent / "example" / "report.md"
