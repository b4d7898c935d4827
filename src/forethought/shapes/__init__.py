"""How large tensors and rows are: forms that grow with the batch, curves over sizes of inputs, padding."""
