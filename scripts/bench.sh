#!/usr/bin/env bash
# Installs what is missing, then measures ztlens beside its peers. Needs a quiet machine; never part of the tests.
#   bench.sh [--quick] [--only NAME,…] [--runs 3] [--loader auto|core|bcc] [-o table|json] [--save FILE]    (docs/benchmarks.md)
set -euo pipefail
cd "$(dirname "$0")/.."
./scripts/setup.sh --test >&2
# xdp-filter, a peer. Written down where setup.sh does, so that `setup.sh --uninstall` takes it back. Without it the
# benchmarks say so and go on.
if ! command -v xdp-filter >/dev/null; then
    echo "bench: installing xdp-tools, for xdp-filter" >&2
    if apt-get update -qq >/dev/null &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends xdp-tools >/dev/null; then
        mkdir -p /var/lib/ztlens-setup
        grep -qxF "package xdp-tools" /var/lib/ztlens-setup/installed 2>/dev/null ||
            echo "package xdp-tools" >>/var/lib/ztlens-setup/installed
    else
        echo "bench: xdp-tools could not be installed; no comparison with xdp-filter" >&2
    fi
fi
exec .venv/bin/python -m tests.bench "$@"
