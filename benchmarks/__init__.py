"""What the data plane reaches, beside what users would take instead: `make bench-bytes`."""
