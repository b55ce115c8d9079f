"""Transfers that share a flow run: each has its row, lease, events and end; the work is done for all together."""
