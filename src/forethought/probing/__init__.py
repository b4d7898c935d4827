"""Whether a frozen part gives a sample the same rows whenever, wherever and among whom it is run."""
