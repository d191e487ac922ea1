"""What moving tokens costs: bytes between ranks, the busiest port, dispatchers and collectives."""
