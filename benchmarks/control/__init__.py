"""How fast requests start and end, beside the stock Prefect process worker: `make bench-control`."""
