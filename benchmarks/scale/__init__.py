"""A large catalogue: rows that look like those of years of use, how long each filter and sort takes, and maintenance."""
