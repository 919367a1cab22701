"""The sink: from JetStream into DuckDB, and every question about what is kept there."""

import os

# The limit of the process (`service.bounded`) counts what is mapped, used or not. Left to themselves DuckDB's allocator
# keeps all it ever mapped and Arrow's maps 1 GiB at once: after one large question the process would stand at its limit
# for ever, where the next small allocation of anything else fails. Both read this while they are loaded.
os.environ.setdefault("DUCKDB_JE_MALLOC_CONF", "retain:false")
os.environ.setdefault("MIMALLOC_ARENA_EAGER_COMMIT", "0")
