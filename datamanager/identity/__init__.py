"""Who asks, and what they may: service tokens, bearer tokens of an OIDC issuer, scopes, roles and grants.

No database and no HTTP server here. `grant.Grant` is what the rest of the code asks.
"""
