"""SSH certificates with which the mover logs in as the person for whom it works.

(docs/adr/0030-certificates-per-connection.md)
"""
