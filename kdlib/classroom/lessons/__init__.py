"""The exercises of each lesson, one module a lesson; `kdlib.classroom.exercises` finds them by their names."""
