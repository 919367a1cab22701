"""The policy engine: policy.yaml to arrays, and the arrays to verdicts. Pure: no sockets, no kernel, no clock.

`parse` (text → `model`), `compile` (model → arrays: classes and bit vectors), `evaluate` (arrays → decisions).
All that can go wrong is `errors.PolicyError`.
"""
