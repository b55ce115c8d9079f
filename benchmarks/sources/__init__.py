"""What fetching from outside reaches: speed beside curl, and memory with many downloads at once."""
