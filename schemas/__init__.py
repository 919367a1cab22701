"""The contracts of ztlens: what crosses from one room to the next, each described once.

`codes` (numbers and their words), `structs` (what kernel and user space share), `verdict` (the event),
`envelope` (a batch on the wire), `messages` (policy and loss records), `subjects` (names on NATS),
`tables` (DuckDB), `render` (makes `bpf/types.h` and `docs/schema.md` from these).
"""
