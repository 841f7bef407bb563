"""`python -m benchmarks privacy`: the figures behind `docs/privacy.md`."""
