"""What a model does, seen once, and done again in two halves.

recording, shell    one run of the model, seen operation by operation
holdings, tracker   what is known before and during it of tensors and their memories
frontier, cut       what crosses from the frozen part to the rest
plan, joining       how to do it again for any batch, from runs of different sizes
trunk_run, head_run one half of it
trials              that the halves are the model, tried before anybody gets them
collecting          Python's collector, still meanwhile
halves, replay      what a user holds: Trunk, Head, Split
families, stretching  the same for inputs of any size
"""
