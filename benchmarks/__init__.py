"""Measurements, as JSON lines. `make bench`, or `python -m benchmarks NAME...`."""
