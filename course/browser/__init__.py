"""A page on which teacher and student answer in the browser: make browser, or python -m course.browser.

runtime   onnxruntime-web from npm, once, in ~/.cache/kdlib/browser
networks  a teacher and students as ONNX files, float and int8, kept in the same folder
site      everything that the page consists of, by its address; page/ holds its HTML, CSS and JavaScript
server    answers with these files and with nothing else

The server computes nothing: the same files, written to a folder by --out, work on any host of static files.
"""
