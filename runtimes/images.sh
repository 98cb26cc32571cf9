#!/usr/bin/env bash
# Makes the Docker images of the runtimes: pythonruntime, noderuntime, bashruntime.
#
#   runtimes/images.sh [python|node|bash …]      all of them by default; images that are there already are kept
#
# A Dockerfile is built where its base image can be had. Without a registry the image is made of Debian packages
# (mmdebstrap | docker import), from whatever mirror this machine's apt uses.
set -euo pipefail
cd "$(dirname "$0")"

# Seconds that a registry may take before it counts as out of reach.
registry_patience=20
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1

say() { printf '%s\n' "$*" >&2; }

has() { docker image inspect "$1" >/dev/null 2>&1; }

by_registry() { # name
    local base
    base=$(sed -n 's/^FROM *//p' "$1/Dockerfile" | head -1)
    has "$base" || timeout "$registry_patience" docker pull --quiet "$base" >/dev/null 2>&1 || return 1
    docker build --quiet --tag "${1}runtime" "$1" >/dev/null
}

by_packages() { # name
    command -v mmdebstrap >/dev/null || apt-get install -y mmdebstrap >/dev/null
    # shellcheck disable=SC1090
    . "./$1/packages.sh"
    local tree
    tree=$(mktemp --suffix=.tar)
    # Whole before it is imported: half an image would look like one.
    mmdebstrap --quiet --variant="$variant" --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --customize-hook='rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* ' \
        "$suite" "$tree"
    docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' "$tree" "${1}runtime" >/dev/null
    rm -f "$tree"
}

for name in "${@:-python node bash}"; do
    for name in $name; do
        if has "${name}runtime"; then
            say "${name}runtime is there"
        elif by_registry "$name"; then
            say "${name}runtime built from its Dockerfile"
        else
            say "${name}runtime: no registry within reach, making it of Debian packages"
            by_packages "$name"
            say "${name}runtime made of Debian packages"
        fi
    done
done
