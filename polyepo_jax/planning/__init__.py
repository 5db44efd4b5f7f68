"""What a program needs of a machine that is not there: the machines (`hardware`) and compiled programs (`hlo`)."""
