"""Benchmarks: `python -m benchmarks.NAME` prints ratios against a named alternative in the same run."""
