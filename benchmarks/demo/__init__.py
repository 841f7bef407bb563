"""`python -m benchmarks demo`: networks learn to read digits, with nothing tuned."""
