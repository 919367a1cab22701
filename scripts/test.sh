#!/usr/bin/env bash
# Installs what is missing, test tools too, then checks and tests everything: the sink's own tests with DuckDB 2, too,
# but for those marked `once`.
# Three workers share the files of tests, for half of the tests wait; those of whole installations come first, for they
# take longest. Arguments go to pytest, and then there is that one run alone.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # else each of a thousand commands compiles its sources anew
./scripts/setup.sh --test
./scripts/check.sh
if [ $# -eq 0 ]; then
    set -- --numprocesses 3 --dist loadfile --no-loadscope-reorder
    PYTHONPATH=.venv/duckdb2 .venv/bin/python -m pytest "$@" -m "not once" tests/unit/sink
fi
exec .venv/bin/python -m pytest "$@"
