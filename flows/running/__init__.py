"""What runs share: the mover's services, the transfer that a run performs, names and progress for people."""
