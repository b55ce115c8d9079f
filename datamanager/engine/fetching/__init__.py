"""The transfer step of a download: an external source's bytes into the attempt's partial file."""
