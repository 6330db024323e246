"""The patients of the clinic: short training scripts, some with real mistakes. `course.clinic.cases` says which."""
