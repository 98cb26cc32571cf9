#!/usr/bin/env python3
"""Replaces an older binary by a newer one, role by role, while clients call: db, the api, and each node in turn. Exits with 1
where a call was lost or failed.

    OLD_BIN=… FAENA_BIN=… NODES=2 SEED=7 python3 scripts/upgrade.py

Clients do as good clients do: they ask again where nothing answers, or the platform says "later". The invariants are those of
scripts/chaos.py, with one more: no attempt of any call was lost, since every worker drains before it is replaced.
"""
import json
import os
import signal
import sqlite3
import sys
import threading
import time

os.environ.setdefault("NODES", "2")
import chaos  # noqa: E402  the topology is read when it is imported

OLD = os.path.abspath(os.environ["OLD_BIN"])
NEW = chaos.BIN
# Between two replacements, so that calls run on every mixture.
SETTLE = 3


def replace(platform, role):
    """Stops a role as an operator does, and starts it with the new binary."""
    platform.roles[role].send_signal(signal.SIGTERM)
    assert platform.roles[role].wait() == 0, f"{role} does not stop well"
    platform.start(role)
    status, reply = platform.ask("GET", "/readyz")
    assert status == 200, reply


def replace_node(platform, node):
    status, reply = platform.ask("POST", f"/node/{node.name}/drain", {})
    assert status == 200, reply
    assert node.process.wait(timeout=120) == 0, f"{node.name} does not stop well"
    node.start()
    end = time.monotonic() + 60
    while (found := platform.ask("GET", f"/node/{node.name}")[1])["state"] != "READY":
        assert time.monotonic() < end, found
        time.sleep(0.1)


def roll(platform, failed):
    try:
        steps = [("db", lambda: replace(platform, "db")), ("api", lambda: replace(platform, "api"))]
        steps += [(node.name, lambda node=node: replace_node(platform, node)) for node in platform.nodes]
        for name, step in steps:
            time.sleep(SETTLE)
            begun = time.monotonic()
            step()
            print(f"upgrade: {name} is the new one after {time.monotonic() - begun:.1f} s", flush=True)
        time.sleep(SETTLE)
    except Exception as error:
        failed.append(f"the upgrade itself: {error!r}")


class Waiting(threading.Thread):
    """A client whose calls have no row until they have ended."""

    def __init__(self, platform, stop):
        super().__init__()
        self.platform, self.stop, self.calls, self.wrong = platform, stop, 0, []

    def run(self):
        while not self.stop.is_set():
            n = self.calls * 50
            self.calls += 1
            body = json.dumps(n).encode()
            status, reply = self.ask(body)
            if (status, reply) != (200, str(n).encode()):
                self.wrong.append(f"a call on /f/ was answered {status} {reply[:300]!r}")

    def ask(self, body):
        # A request that the platform did not take is asked again; one that it took has its one answer.
        while True:
            try:
                status, reply = self.platform.request("POST", "/f/echo", body, {"Content-Type": "application/json"})
                if status != 503:
                    return status, reply
            except ConnectionRefusedError:
                pass
            except OSError as error:
                return 0, repr(error).encode()
            time.sleep(0.02)


def attempts(platform):
    """Calls that were attempted more often than they failed by themselves."""
    db = sqlite3.connect(f"file:{platform.data}/faena.db?mode=ro", uri=True)
    return [num for num, redeliveries in db.execute("SELECT num, redeliveries FROM calls") if redeliveries]


def main():
    # Clients call until everything is replaced.
    chaos.BIN, chaos.CALLS = OLD, 1 << 40
    platform, stop, failed = chaos.Platform(), threading.Event(), []
    print(f"upgrade: from {OLD} to {NEW}, {len(platform.nodes)} nodes, {platform.folder}", flush=True)
    chaos.upload(platform)
    clients, waiting = chaos.Clients(platform), Waiting(platform, stop)
    for thread in [*clients.threads, waiting]:
        thread.start()
    chaos.BIN = NEW
    roll(platform, failed)
    with clients.lock:
        chaos.CALLS = clients.next
    for thread in clients.threads:
        thread.join()
    stop.set()
    waiting.join()
    end = time.monotonic() + chaos.PATIENCE
    nums = sorted(clients.accepted.values())
    while time.monotonic() < end and not all(clients.look(num) for num in nums):
        time.sleep(0.5)
    wrong = failed + chaos.check(platform, clients, waiting.calls) + waiting.wrong[:20]
    wrong += [f"call {num} was lost by a worker, and delivered again" for num in attempts(platform)[:20]]
    platform.stop()
    for node in platform.nodes:
        node.remove()
    print(f"upgrade: {len(nums)} queued calls and {waiting.calls} calls on /f/")
    return chaos.report("upgrade", wrong, platform)


if __name__ == "__main__":
    sys.exit(main())
