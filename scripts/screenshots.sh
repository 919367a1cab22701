#!/usr/bin/env bash
# Pictures of the page for the documentation, taken of the demo: docs/images/*.png. Root; a minute or two.
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh --test >&2
exec .venv/bin/python -m tests.support.screenshots docs/images
