"""Many processes that are one run, and storage that all of them reach."""
