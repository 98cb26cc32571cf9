#!/usr/bin/env bash
# Builds the release binary of an earlier commit, and prints its path.
#
#   scripts/old_binary.sh COMMIT FOLDER
#
# The sources, and what cargo makes of them, stay in FOLDER: the next time is short.
set -euo pipefail

commit=$(git rev-parse --verify "$1^{commit}")
mkdir -p "$2"
folder=$(cd "$2" && pwd)
if [ "$(cat "$folder/commit" 2>/dev/null)" != "$commit" ]; then
    rm -rf "$folder/source"
    mkdir "$folder/source"
    git archive "$commit" | tar --extract --directory "$folder/source"
    (cd "$folder/source" && CARGO_TARGET_DIR="$folder/target" cargo build --release --locked --quiet --package faena) >&2
    echo "$commit" > "$folder/commit"
fi
echo "$folder/target/release/faena"
