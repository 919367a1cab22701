#!/usr/bin/env bash
# Installs what ztlens needs on Debian 12 or Ubuntu 24.04; --uninstall takes back what it installed.
#   setup.sh [--test] [--uninstall]
# What it changes outside this folder (packages, header links) it writes down in $RECORD, and nothing else is undone.
set -euo pipefail
cd "$(dirname "$0")/.."

RECORD=/var/lib/ztlens-setup/installed
VENV=.venv
DUCKDB2=2.0.0 # beside the pinned one, for the tests: $VENV/duckdb2, to be put on PYTHONPATH
KERNEL=$(uname -r)
PACKAGES=(python3-bpfcc libbpf1 iproute2 python3-venv)
BUILD_PACKAGES=(clang llvm libbpf-dev make) # for bpf/core.bpf.o, here alone: hosts that get the wheel need none of them
EXTRAS=()

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: %s\nsetup: %s\n' "$1" "$2" >&2; exit 3; }
remember() { mkdir -p "$(dirname "$RECORD")"; grep -qxF "$1" "$RECORD" 2>/dev/null || echo "$1" >>"$RECORD"; }
installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

apt_install() {
    if [ -z "${updated:-}" ]; then
        say "refreshing the package lists"
        apt-get update -qq >/dev/null || fail "apt-get update failed" "check the network and /etc/apt/sources.list"
        updated=yes
    fi
    # What apt adds on top (dependencies) is taken back by autoremove.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    for package in "$@"; do remember "package $package"; done
}

install_packages() {
    local missing=()
    for package in "$@"; do installed "$package" || missing+=("$package"); done
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing Debian packages: ${missing[*]}"
        apt_install "${missing[@]}" || fail "could not install ${missing[*]}" "see the apt error above"
    fi
}

# BCC compiles against /lib/modules/$(uname -r)/{build,source}. Kernels of clouds and micro-VMs often have no header
# package; XDP and TC programs use only the user API, so the distribution's headers serve. A directory or link that is
# there is never touched.
install_headers() {
    local modules=/lib/modules/$KERNEL flavour build
    [ -e "$modules/build" ] && return
    if apt-cache show "linux-headers-$KERNEL" >/dev/null 2>&1; then
        say "installing linux-headers-$KERNEL"
        apt_install "linux-headers-$KERNEL" && [ -e "$modules/build" ] && return
    fi
    flavour=linux-headers-$(dpkg --print-architecture)
    [ "$(. /etc/os-release; echo "$ID")" = ubuntu ] && flavour=linux-headers-generic
    if ! installed "$flavour"; then
        say "the running kernel $KERNEL has no header package; installing $flavour instead"
        apt_install "$flavour" || fail "no kernel headers for $KERNEL" "install a header package by hand and link it to $modules/build"
    fi
    build=$(find /usr/src -maxdepth 1 -name 'linux-headers-*' ! -name '*-common' | sort -V | tail -1)
    [ -n "$build" ] || fail "$flavour brought no /usr/src/linux-headers-*" "link your kernel's headers to $modules/build"
    for directory in /lib/modules "$modules"; do
        if [ ! -d "$directory" ]; then mkdir "$directory"; remember "directory $directory"; fi
    done
    ln -s "$build" "$modules/build"
    remember "link $modules/build"
    if [ ! -e "$modules/source" ]; then
        # Debian splits the headers: the common half is the source tree.
        local source=${build%-*}-common
        [ -d "$source" ] || source=$build
        ln -s "$source" "$modules/source"
        remember "link $modules/source"
    fi
    say "linked $modules/build to $build"
}

# The kernel side as an object, which needs neither compiler nor headers where it is loaded.
build_object() {
    make -s -q -C bpf 2>/dev/null && return
    install_packages "${BUILD_PACKAGES[@]}"
    say "building bpf/core.bpf.o"
    make -s -C bpf || fail "bpf/core.bpf.o could not be built" "see the compiler's error above"
}

install_venv() {
    local extra='' wanted
    [ ${#EXTRAS[@]} -gt 0 ] && extra="[$(IFS=,; echo "${EXTRAS[*]}")]"
    wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)
    for stamp in "" "[test]"; do # the test extra holds everything the plain install does
        [ "$extra" != "$stamp" ] && [ "$stamp" = "" ] && continue
        [ "$(cat "$VENV/.setup$stamp" 2>/dev/null)" = "$wanted" ] && return
    done
    if [ ! -x "$VENV/bin/python" ] || ! grep -q 'include-system-site-packages = true' "$VENV/pyvenv.cfg"; then
        say "making $VENV from /usr/bin/python3 (BCC belongs to the system's interpreter)"
        /usr/bin/python3 -m venv --clear --system-site-packages "$VENV" >/dev/null ||
            fail "could not make $VENV" "is there room on the disk, and is python3-venv installed?"
    fi
    say "installing pinned Python packages$extra"
    "$VENV/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e ".$extra" 2>&1 |
        { grep -v '^WARNING' || true; } >&2
    [ "${PIPESTATUS[0]}" = 0 ] || fail "pip could not install the packages" "see its error above; is PyPI reachable?"
    echo "$wanted" >"$VENV/.setup$extra"
}

# Only the tests need these: Node runs the JavaScript of the docs, Chromium shows the page, and the sink works with two
# versions of DuckDB.
install_test_tools() {
    if [ "$(cat $VENV/duckdb2/.setup 2>/dev/null)" != $DUCKDB2 ]; then
        say "installing DuckDB $DUCKDB2 beside the pinned one"
        rm -rf $VENV/duckdb2
        "$VENV/bin/pip" install --quiet --disable-pip-version-check --no-deps --target $VENV/duckdb2 duckdb==$DUCKDB2 2>&1 |
            { grep -v '^WARNING' || true; } >&2
        [ "${PIPESTATUS[0]}" = 0 ] || fail "pip could not install DuckDB $DUCKDB2" "see its error above; is PyPI reachable?"
        echo $DUCKDB2 >$VENV/duckdb2/.setup
    fi
    local missing=()
    command -v node >/dev/null || missing+=(nodejs)
    command -v npm >/dev/null || missing+=(npm)
    command -v tcpdump >/dev/null || missing+=(tcpdump)
    command -v chromium >/dev/null || missing+=(chromium)
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing test tools: ${missing[*]}"
        apt_install "${missing[@]}" || fail "could not install ${missing[*]}" "see the apt error above"
    fi
    if [ ! -x $VENV/prometheus/usr/bin/promtool ]; then # unpacked, not installed: a package would start a service
        say "unpacking Debian's prometheus into $VENV/prometheus"
        rm -rf $VENV/prometheus && mkdir $VENV/prometheus
        (cd $VENV/prometheus && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; } \
            >/dev/null 2>&1 && dpkg -x prometheus_*.deb . && rm prometheus_*.deb) ||
            fail "could not get Debian's prometheus" "see \`apt-get download prometheus\`"
    fi
    local js=tests/integration/javascript
    if [ -f $js/package.json ] && [ ! $js/node_modules/.setup -nt $js/package.json ]; then
        say "installing npm packages for the JavaScript example and the page's tests"
        (cd $js && npm install --silent --no-package-lock --no-audit --no-fund >/dev/null && touch node_modules/.setup) ||
            fail "npm could not install the packages of $js" "is the npm registry reachable?"
    fi
}

uninstall() {
    rm -rf "$VENV" tests/integration/javascript/node_modules ./*.egg-info bpf/core.bpf.o
    say "removed $VENV"
    [ -f "$RECORD" ] || { say "nothing was installed outside this folder"; return; }
    local packages=()
    while read -r kind name; do # newest first, so that directories are empty when their turn comes
        case $kind in
        link) [ -L "$name" ] && rm "$name" && say "removed $name" ;;
        directory) rmdir "$name" 2>/dev/null && say "removed $name" ;;
        package) packages+=("$name") ;;
        esac
    done < <(tac "$RECORD")
    if [ ${#packages[@]} -gt 0 ]; then
        say "removing Debian packages: ${packages[*]}"
        DEBIAN_FRONTEND=noninteractive apt-get purge -y -qq --autoremove "${packages[@]}" >/dev/null
    fi
    rm -r "$(dirname "$RECORD")"
}

[ "$(id -u)" = 0 ] || fail "setup needs root: it installs packages" "run it with sudo"
command -v apt-get >/dev/null || fail "this is not Debian or Ubuntu" "see docs/quickstart.md for what to install by hand"
for option in "$@"; do
    case $option in
    --test) EXTRAS=(test) ;;
    --uninstall) uninstall; exit 0 ;;
    *) printf 'setup: unknown option %s\nsetup: usage: setup.sh [--test] [--uninstall]\n' "$option" >&2; exit 2 ;;
    esac
done
install_packages "${PACKAGES[@]}"
install_headers
build_object
install_venv
[ ${#EXTRAS[@]} -eq 0 ] || install_test_tools
say "ready"
