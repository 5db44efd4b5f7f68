"""The study behind docs/results.md: what is run, by which commands, and what comes of it."""
