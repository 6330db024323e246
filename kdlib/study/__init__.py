"""The study behind every number the lessons quote: which runs there are, and each run as a row of a CSV file.

entries  the methods, their hyper-parameters and the trials by which these are chosen: a table
grid     which runs make up a study
rows     CSV files that survive a kill, and the JSON file beside each that says how it came about
bench    one run: data, teachers, a student, a row
choose   hyper-parameters by trials on the validation split, equally many for each method
run      a whole study: go on with what is missing
command  `kdlib study` and `python -m kdlib.study`
"""
