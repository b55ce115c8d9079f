"""Lists of a large catalogue: rows that look like those of years of use, and how long each filter and sort takes."""
