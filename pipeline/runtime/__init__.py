"""What a run stands on: the attempt that holds a run directory, Ray, log files, the terminal, this machine."""
