"""What makes a frozen part, and a sample, the one that it is: digests of their content.

identity, sources, marks, contents, additions   of any value: tensors, plain data, code
fingerprint, deciders, numerics      of a frozen part: all that leads to the frontier
account, past, unseen                of what a data set reads
patches                              of what somebody put into a library
tensors                              of many tensors at once
"""
