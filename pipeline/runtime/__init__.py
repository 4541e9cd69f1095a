"""The base of a run: the attempt that holds a run directory, Ray, log files, the terminal, this machine."""
