"""How the Data Manager reaches machines: one port (`base`), the local file system and SFTP behind it (`factory`)."""
