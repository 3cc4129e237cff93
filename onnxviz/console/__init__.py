"""What the command line says while a job runs: to people, to programs, and to a log file."""
