"""Sources read over FTP."""
