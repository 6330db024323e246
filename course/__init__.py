"""The course beside the library: exercises, explorers and figures for the lessons in notebooks/.

    from course import exercises, explorers, plots

exercises   tasks with hints, solutions and feedback; lessons/ holds their content, specs, grading, code_grading and
            sandbox how they are made and graded, progress_file what a learner has done
explorers   interactive figures with a text equivalent
plots       figures in one look, with fixed colour roles and alt texts
notebooks   executes the lessons and writes them in canonical form
lab         starts JupyterLab on the first lesson

The course imports kdlib; kdlib never imports the course.
"""
