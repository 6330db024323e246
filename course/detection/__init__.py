"""Detection, small enough for a laptop: scenes, a centre-point detector, its distillation, and what that is worth.

scenes      pieces of Fashion-MNIST on noisy canvases, with their boxes
centers     boxes as maps of centres, and back
detector    the network, its loss, and the methods by which a student learns
precision   average precision
figure      a scene with the boxes of several detectors
experiment  paired runs: `python -m course.detection`
gains       what they say: each method against hard labels, seed by seed
shipped     a teacher and two students, trained, in data/detectors
"""
