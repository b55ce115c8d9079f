"""Sources read over HTTP: http, https, webdav, s3; by the mover, or by a machine's own curl."""
