"""What a job needs next: decided without I/O (`decide`, `rayjob`), carried out by `shell`."""
