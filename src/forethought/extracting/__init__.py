"""From a model and a data set to stored rows.

extraction          the verb: what is missing is computed, the rest is found
frozen              the frozen part, ready to give rows
roll, manifest      which sample has which key, believed only while nothing changed
division            work shared with other processes
precision, calibration, accuracy, rowbytes, layouts, feeding   how rows are written down, and what that costs
verification, explanation, outcome   what was found, and why
live, writethrough  rows without a store, and while it is filled
pace, ways, speedups, capturing   ways to run the frozen part sooner, measured and chosen
"""
