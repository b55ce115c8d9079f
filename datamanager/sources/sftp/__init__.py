"""Sources read over SFTP."""
