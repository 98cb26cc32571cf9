#!/usr/bin/env bash
# Installs what a machine lacks, and nothing that is there.
#
#   scripts/install.sh rust | python | node | docker | images | deny | shell | network | units | clock | browser | go | bench …
set -euo pipefail

say() { printf '%s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        say "Installing needs root; please run: $*"
        exit 1
    fi
}

packages() { # names of Debian packages
    command -v apt-get >/dev/null || { say "Please install: $*"; exit 1; }
    say "installing $*"
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
    as_root apt-get install -y --no-install-recommends "$@" >/dev/null ||
        { as_root apt-get update >/dev/null && as_root apt-get install -y --no-install-recommends "$@" >/dev/null; }
}

for tool in "$@"; do
    case $tool in
    rust)
        command -v cargo >/dev/null || { say "Please install Rust: https://rustup.rs"; exit 1; }
        command -v cc >/dev/null || packages build-essential
        # Without the target the agent is linked against glibc, which is larger and works too.
        ! command -v rustup >/dev/null || rustup target list --installed | grep -q musl ||
            rustup target add "$(uname -m)-unknown-linux-musl" >/dev/null 2>&1 || say "no musl target; going on with glibc"
        ;;
    python)
        [ -x /usr/bin/python3 ] && [ -x /usr/bin/pip3 ] && /usr/bin/python3 -c 'import ensurepip, venv' 2>/dev/null ||
            packages python3 python3-pip python3-venv
        ;;
    node) [ -x /usr/bin/node ] || packages nodejs npm ;;
    docker) command -v docker >/dev/null && { command -v dockerd >/dev/null || [ -x /usr/sbin/dockerd ]; } || packages docker.io ;;
    images) command -v mmdebstrap >/dev/null || packages mmdebstrap ;;
    deny) command -v cargo-deny >/dev/null || { say "installing cargo-deny"; cargo install --locked --quiet cargo-deny; } ;;
    go) [ -x /usr/bin/go ] || packages golang-go ;;
    browser) command -v chromium >/dev/null || packages chromium ;;
    clock) [ -e /usr/bin/faketime ] || packages faketime ;;
    network) command -v ip >/dev/null && command -v nft >/dev/null || packages iproute2 nftables ;;
    units) command -v systemd-analyze >/dev/null || packages systemd ;;
    bench) # what calls are measured against, beside cargo's output: $BENCH_VENV
        command -v wrk >/dev/null && command -v taskset >/dev/null || packages wrk util-linux
        [ -x "$BENCH_VENV/bin/uvicorn" ] || {
            python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null || packages python3-venv
            say "installing uvicorn"
            python3 -m venv "$BENCH_VENV" && "$BENCH_VENV/bin/pip" install --quiet uvicorn uvloop httptools
        } ;;
    services) # what functions reach in tests, beside cargo's output: $SERVICES_VENV
        compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || packages postgresql
        command -v redis-server >/dev/null || packages redis-server
        command -v git >/dev/null && command -v openssl >/dev/null && command -v runuser >/dev/null ||
            packages git openssl util-linux
        [ -d "$SERVICES_VENV/npm/node_modules/oidc-provider" ] || {
            say "installing oidc-provider"
            mkdir -p "$SERVICES_VENV/npm"
            npm install --prefix "$SERVICES_VENV/npm" --silent --no-audit --no-fund oidc-provider@8
        }
        [ -x "$SERVICES_VENV/bin/python" ] || {
            say "installing grpcio"
            /usr/bin/python3 -m venv "$SERVICES_VENV" && "$SERVICES_VENV/bin/pip" install --quiet grpcio
        } ;;
    api) # what the API is held against, beside cargo's output: $API_VENV
        [ -x "$API_VENV/bin/schemathesis" ] || {
            python3 -c 'import ensurepip, venv' 2>/dev/null || packages python3-venv
            say "installing schemathesis"
            python3 -m venv "$API_VENV" && "$API_VENV/bin/pip" install --quiet 'schemathesis==4.*' 'openapi-spec-validator==0.*' 'openapi-python-client==0.*'
        } ;;
    shell) command -v curl >/dev/null && command -v zip >/dev/null || packages curl zip ;;
    *) say "unknown: $tool"; exit 2 ;;
    esac
done
