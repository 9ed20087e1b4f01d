"""This machine: programs, processes, the kernel's counters, systemd, and the log."""
