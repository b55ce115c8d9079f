"""Programs that run on the machine beside SFTP."""
