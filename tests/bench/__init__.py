"""Benchmarks: what ztlens costs and what it reaches, beside its peers, in one run. See docs/benchmarks.md.

    python -m tests.bench [--quick] [--only NAME,…] [--runs 3] [-o table|json] [--save FILE]

No test imports this and nothing here is a test.
"""
