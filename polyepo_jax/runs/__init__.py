"""A run on the disk and in time: its directory, checkpoints and logs; how it is restored, watched and stopped."""
