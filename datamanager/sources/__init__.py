"""External sources: what getexternal reads from.

`download_terms.parse_terms` parses a request; its terms are checked, and opened. Each protocol is a `Source`
(`source_port`).
"""
