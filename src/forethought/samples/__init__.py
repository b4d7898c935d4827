"""The user's data set, as batches of what the model is given, with a key for each sample.

dataset             any data set, read
batch, columns      what was read, parted into inputs and targets
measuring, search, unevenness, joints   samples that differ in size
reading, watching   what reading touches: random numbers, files
targets             what is kept beside the rows
"""
