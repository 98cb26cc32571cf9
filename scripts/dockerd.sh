#!/usr/bin/env bash
# Sees to it that a Docker daemon answers: whoever runs one keeps it, otherwise one is started for this machine.
set -euo pipefail

answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

answers && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "No Docker daemon answers, and only root can start one. Start it, or run the tests as root." >&2
    exit 1
fi
echo "No Docker daemon answers; starting one (log: /tmp/faena-dockerd.log)" >&2
command -v dockerd >/dev/null || [ -x /usr/sbin/dockerd ] || "$(dirname "$0")/install.sh" docker
PATH=$PATH:/usr/sbin setsid nohup dockerd >/tmp/faena-dockerd.log 2>&1 </dev/null &
for _ in $(seq 300); do
    answers && exit 0
    sleep 0.1
done
tail -5 /tmp/faena-dockerd.log >&2
echo "The Docker daemon did not start." >&2
exit 1
