#!/usr/bin/env bash
# Starts a platform, walks through one function with curl, prints each command and its reply, stops the platform.
set -euo pipefail
cd "$(dirname "$0")/.."
faena=$1

work=$(mktemp -d)
platform=
finish() {
    [ -z "$platform" ] || { kill "$platform" 2>/dev/null && wait "$platform" 2>/dev/null; } || true
    rm -rf "$work"
}
trap finish EXIT

start() {
    "$faena" up --listen 127.0.0.1:3000 --data "$work/data" "$@" >"$work/log" 2>&1 &
    platform=$!
    for _ in $(seq 300); do
        kill -0 "$platform" 2>/dev/null || return 1
        curl -sf -o /dev/null localhost:3000/readyz && return 0
        sleep 0.05
    done
    return 1
}

# A machine may lack a layer of the sandbox; the demo goes without it and says so.
accepted=()
until start "${accepted[@]}"; do
    layer=$(sed -n 's/.*--accept-missing \([a-z-]*\).*/\1/p' "$work/log" | head -1)
    if [ -z "$layer" ]; then
        cat "$work/log" >&2
        exit 1
    fi
    sed -n 's/^faena: //p' "$work/log"
    echo "(going without the layer $layer)"
    accepted+=(--accept-missing "$layer")
done

# Only what the commands answer, not how fast.
export CURL_HOME=$work
echo silent >"$work/.curlrc"

bold() { if [ -t 1 ]; then printf '\n\033[1m$ %s\033[0m\n' "$1"; else printf '\n$ %s\n' "$1"; fi; }
run() {
    bold "$1"
    (cd "$work" && bash -c "$1")
    echo
}

echo "A platform runs at localhost:3000: $(curl -s localhost:3000/workers | sed 's/.*"engines":\[//; s/\].*//; s/"missingLayers.*//; s/[{}"]//g')"
tar -C examples/dice -czf "$work/python.tar.gz" test.py requirements.txt
(cd examples/dice && zip -q "$work/python.zip" test.py requirements.txt)

run 'curl --header "Content-Type: application/json" -X POST --data '"'"'{"image": "pythonruntime","path": "/ws","dependencies": "pip3 install -r requirements.txt","run":"python3 test.py"}'"'"' localhost:3000/registerRuntime'
run 'curl -X POST -F module=@python.tar.gz localhost:3000/registerFunction/pythonruntime/dice'
run 'curl --header "Content-Type: application/json" -X POST --data '"'"'{"funcName":"dice", "params": {"roll":"4d6"}}'"'"' localhost:3000/invokeFunction'
run 'curl localhost:3000/runtimes'
run 'curl localhost:3000/functions'
run 'curl localhost:3000/calls'
run 'curl --header "Prefer: wait=60" localhost:3000/call/1'
run 'curl -X POST -F module=@python.zip localhost:3000/registerFunction/pythonruntime/dice'
run 'curl --header "Content-Type: application/json" -X POST --data '"'"'{"funcName":"dice", "params": {"roll":"4d6"}}'"'"' --header "Prefer: wait=60" localhost:3000/invokeFunction'
run 'curl --header "Content-Type: application/json" --data '"'"'{"roll":"2d20"}'"'"' localhost:3000/f/dice'

result=$(curl -s localhost:3000/call/1)
case $result in
*'"status":"DONE"'*'"result":"['[1-6],[1-6],[1-6],[1-6]']"'*) echo "call 1 is DONE with four numbers between 1 and 6" ;;
*) echo "call 1 did not end as it should: $result" >&2; tail -5 "$work/log" >&2; exit 1 ;;
esac
