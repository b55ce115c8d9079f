"""Sources read over HTTP: http, https, webdav, s3."""
