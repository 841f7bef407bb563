"""Demonstration and measurements: `python -m benchmarks` lists the commands."""
