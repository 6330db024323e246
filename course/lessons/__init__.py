"""The exercises of each lesson, one module a lesson; `course.exercises` finds them by their names."""
