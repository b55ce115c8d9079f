"""Downloads: requests with their secrets, unchanged sources, archives from outside, versions of schedules."""
