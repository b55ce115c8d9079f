"""What every transfer's flow run is built on: its transfer under a lease, its lifecycle, the decision to retry."""
