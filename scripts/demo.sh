#!/usr/bin/env bash
# Installs what is missing and shows ztlens at work.
#   demo.sh [--duration 20s] [-o json] …   a small network of namespaces with real traffic (`ztlens demo --help`)
#   demo.sh eth0 …                         watch this interface, both directions, live (`ztlens up --help`)
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
"$here/scripts/setup.sh" >&2
ztlens=$here/.venv/bin/ztlens
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    interface=$1
    shift
    exec "$ztlens" up -i "$interface" --observe "$@"
fi
exec "$ztlens" demo "$@"
