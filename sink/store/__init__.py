"""The database: tables brought up to date, commits in one transaction, housekeeping."""

from sink.store.store import Batch, Commit, Store, memory_store, prepare

__all__ = ["Batch", "Commit", "Store", "memory_store", "prepare"]
