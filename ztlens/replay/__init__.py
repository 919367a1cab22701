"""Recorded verdicts stream again.

`windows` (history in the order of its stamps, some 100,000 verdicts at a time), `stream` (the same out of JetStream,
when the store is gone), `schedule` (when each stamp is due), `publish` (batches, maps and names onto a session's
subjects, or lines on stdout), `run` (one to the other, and what it came to).
"""
