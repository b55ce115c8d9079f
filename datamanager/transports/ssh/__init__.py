"""SSH connections: the OpenSSH client and paramiko behind one channel, and host keys."""
