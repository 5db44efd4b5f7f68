"""What several commands share: how a run is started, and how saved responses are read."""
