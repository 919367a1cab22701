#!/usr/bin/env bash
# Installs what is missing, test tools too, then checks and tests everything. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh --test
./scripts/check.sh
exec .venv/bin/python -m pytest "$@"
