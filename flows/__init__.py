"""Prefect flows and their tasks: adapters that read like the sentence they perform. Byte moving is
`datamanager.engine`'s.
"""
