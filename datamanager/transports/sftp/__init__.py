"""SFTP version 3, pipelined over one channel."""
