"""A large catalogue: rows as years of use leave them, how long each filter and sort takes, and maintenance."""
