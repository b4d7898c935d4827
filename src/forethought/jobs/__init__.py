"""What `forethought extract` and `forethought fit` do: files and a model by name, to features and trained heads."""
