"""What a request says of a source, parsed: pure values, no I/O."""
