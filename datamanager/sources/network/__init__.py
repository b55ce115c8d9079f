"""Connections of downloads: which hosts they may reach, whom they trust, how slow a server may be."""
