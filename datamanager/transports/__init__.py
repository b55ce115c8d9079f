"""How the Data Manager reaches machines: one port (`port`), the local file system and SFTP behind it (`factory`)."""
