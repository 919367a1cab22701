#!/usr/bin/env bash
# What needs no root and no kernel: style, types, who may import whom, generated files. All of it, then the verdict.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
status=0
run() {
    printf 'check: %s\n' "$*" >&2
    "$@" || status=1
}
run $bin/ruff check .
run $bin/ruff format --check .
run $bin/mypy
run $bin/lint-imports
run $bin/python -m schemas.render --check
exit $status
