#!/usr/bin/env python3
"""Kills a random process of a platform every few seconds while clients call it, and then holds the record against what
the clients saw. Exits with 1 where a promise was broken.

    FAENA_BIN=… CALLS=20000 SEED=7 ENGINE=sandbox python3 scripts/chaos.py

The roles run apart. What is killed with SIGKILL: db, api, worker, the agent of an instance, a container.
The invariants' numbers are those of docs/reference/guarantees.md.
"""
import glob
import http.client
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

# Instances that wait are let go of soon, so that what is left at the end is a leftover.
os.environ.setdefault("FAENA_IDLE", "1s")
BIN = os.path.abspath(os.environ.get("FAENA_BIN", "target/release/faena"))
CALLS = int(os.environ.get("CALLS", "20000"))
ENGINE = os.environ.get("ENGINE", "sandbox")
SEED = int(os.environ.get("SEED", str(random.randrange(1 << 32))))
CLIENTS = 4
# Calls that may be on their way: the queue has a bound, and a client waits like everybody else.
AHEAD = 400
PATIENCE = 180
SCRIPT = """n=$(cat)
if [ $((n % 50)) = 7 ]; then exit 3; fi
echo $n
"""


class Platform:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="faena-chaos-")
        self.data = os.path.join(self.folder, "data")
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.roles = {}
        self.port = 20000 + os.getpid() % 10000
        for role in ("db", "api", "worker"):
            self.start(role)

    def start(self, role):
        command = [BIN, role, "--data", self.data, "--listen", f"127.0.0.1:{self.port}"]
        for layer in os.environ.get("ACCEPT_MISSING", "").split():
            command += ["--accept-missing", layer]
        self.roles[role] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def kill(self, role):
        process = self.roles[role]
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.start(role)

    def stop(self):
        for role in ("worker", "api", "db"):
            self.roles[role].send_signal(signal.SIGTERM)
            self.roles[role].wait()

    def request(self, method, path, body=None, headers=()):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, dict(headers))
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=()):
        body = None if body is None else json.dumps(body)
        status, reply = self.request(method, path, body, {"Content-Type": "application/json", **dict(headers)})
        return status, json.loads(reply)

    def ask(self, method, path, body=None, headers=(), seconds=60):
        """Asks until there is an answer that is no "later"."""
        end = time.monotonic() + seconds
        while True:
            try:
                status, reply = self.json(method, path, body, headers)
                if status not in (429, 503):
                    return status, reply
            except (OSError, http.client.HTTPException, ValueError):
                pass
            if time.monotonic() > end:
                raise SystemExit(f"{method} {path} has no answer within {seconds} s; log: {self.folder}/log")
            time.sleep(0.02)

    def platform_id(self):
        return open(os.path.join(self.data, "platform-id")).read().strip()

    def instances(self):
        """The cgroups of this platform's instances, each once."""
        pattern = f"/sys/fs/cgroup/**/faena/{self.platform_id()}.*/*.*"
        return {os.path.basename(path): path for path in glob.glob(pattern, recursive=True) if os.path.isdir(path)}

    def agents(self):
        """The first process of each instance. A new process of its function is in the same group at first, and may have a lower
        number once numbers begin again: where that one is killed, the function has failed."""
        pids = []
        for path in self.instances().values():
            try:
                pids += [int(line) for line in open(f"{path}/agent/cgroup.procs")]
            except OSError:
                continue
        return sorted(filter(is_first, set(pids)))

    def containers(self):
        if not shutil.which("docker"):
            return []
        filters = ["--filter", f"label=faena={self.platform_id()}"]
        listed = subprocess.run(["docker", "ps", "-aq", *filters], capture_output=True, text=True)
        return listed.stdout.split()


def upload(platform):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr("run.sh", SCRIPT)
    edge = "chaos-edge"
    body = (
        f'--{edge}\r\nContent-Disposition: form-data; name="module"; filename="x"\r\n\r\n'.encode()
        + archive.getvalue()
        + f"\r\n--{edge}--\r\n".encode()
    )
    kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
    runtime = {"name": "shell", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "bash run.sh", "engine": ENGINE}
    status, reply = platform.ask("POST", "/registerRuntime", runtime)
    assert status in (200, 201), reply
    status, reply = platform.request("POST", "/registerFunction/shell/echo", body, kind)
    assert status == 201, reply
    end = time.monotonic() + 60
    while platform.ask("GET", "/function/echo")[1]["status"] != "READY":
        assert time.monotonic() < end, "the function is not built"
        time.sleep(0.05)


class Clients:
    def __init__(self, platform):
        self.platform, self.accepted, self.seen = platform, {}, {}
        self.next, self.done = 0, 0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(random.Random(SEED + i),)) for i in range(CLIENTS)]

    def take(self):
        with self.lock:
            self.next += 1
            return self.next if self.next <= CALLS else None

    def run(self, chance):
        while (n := self.take()) is not None:
            body = {"funcName": "echo", "params": n, "retries": n % 3}
            key = {"Idempotency-Key": f"chaos-{n}"}
            status, call = self.platform.ask("POST", "/invokeFunction", body, key)
            assert status == 202, (status, call)
            self.accepted[n] = call["callNum"]
            if chance.random() < 0.1:
                # The same again, as after an answer that was lost.
                status, again = self.platform.ask("POST", "/invokeFunction", body, key)
                assert (status, again["callNum"]) == (202, call["callNum"]), (n, status, again)
            self.look(chance.choice(list(self.accepted.values())))
            while len(self.accepted) - self.ended() > AHEAD:
                time.sleep(0.1)

    def ended(self):
        """About how many have ended: the oldest that have not are looked at, and each answer is remembered."""
        with self.lock:
            nums = sorted(self.accepted.values())
            while self.done < len(nums) and self.look(nums[self.done]):
                self.done += 1
            return self.done

    def look(self, num):
        if num in self.seen:
            return True
        status, call = self.platform.ask("GET", f"/call/{num}")
        assert status == 200, (num, status, call)
        if call["status"] in ("PENDING", "RUNNING"):
            return False
        self.seen[num] = (call["status"], call["result"], call["endedAt"])
        return True


def break_things(platform, stop, killed, chance):
    while not stop.wait(chance.uniform(1, 5)):
        kinds = ["db", "api", "worker", "agent"] + (["container"] if ENGINE == "docker" else [])
        kind = chance.choice(kinds)
        if kind == "agent":
            agents = platform.agents()
            if agents:
                try:
                    os.kill(chance.choice(agents), signal.SIGKILL)
                except ProcessLookupError:
                    pass
        elif kind == "container":
            containers = platform.containers()
            if containers:
                subprocess.run(["docker", "kill", chance.choice(containers)], capture_output=True)
        else:
            platform.kill(kind)
        killed[kind] = killed.get(kind, 0) + 1


def check(platform, clients):
    wrong = []

    def expect(holds, what):
        if not holds and len(wrong) < 20:
            wrong.append(what)

    db = sqlite3.connect(f"file:{platform.data}/faena.db?mode=ro", uri=True)
    rows = {row[0]: row[1:] for row in db.execute(
        "SELECT num, status, spec, result, attempts, epoch, failures, retries, redeliveries, ended_at FROM calls")}
    letters = {row[0] for row in db.execute("SELECT num FROM dead_letters")}
    expect(len(clients.accepted) == CALLS, f"I1: {len(clients.accepted)} of {CALLS} calls were accepted")
    expect(len(rows) == CALLS, f"I7: {CALLS} keys made {len(rows)} calls")
    for n, num in clients.accepted.items():
        if num not in rows:
            expect(False, f"I1: call {num} was promised and has no row")
            continue
        status, spec, result, attempts, epoch, failures, retries, redeliveries, ended_at = rows[num]
        attempts, result = json.loads(attempts), json.loads(result).get("text")
        expect(json.loads(spec)["params"]["text"] == str(n), f"I1: call {num} has other params")
        expect(status not in ("PENDING", "RUNNING"), f"I2: call {num} is {status}")
        epochs = [attempt["epoch"] for attempt in attempts]
        expect(epochs == sorted(set(epochs)), f"I5: call {num} has epochs {epochs}")
        expect(bool(epochs) and epochs[-1] == epoch, f"I4: call {num} ended under {epoch}, its last attempt was {epochs[-1:]}")
        expect(failures <= retries + 1 and redeliveries <= 5, f"I6: call {num}: {failures} failures, {redeliveries} redeliveries")
        if n % 50 == 7:
            expect(status == "FAILED", f"I8: call {num} is {status} and fails by itself")
        else:
            expect((status, result) == ("DONE", str(n)), f"I8: call {num} is {status} with {result!r} and should be {n}")
        expect((num in letters) == (status in ("FAILED", "TIMEOUT", "EXPIRED")), f"I11: call {num} is {status}, dead letter: {num in letters}")
        seen = clients.seen.get(num)
        if seen:
            expect(seen[:2] == (status, result), f"I3: call {num} was seen as {seen[:2]} and is {(status, result)}")
    return wrong


def is_first(pid):
    """Whether this is process 1 of its innermost namespace."""
    try:
        numbers = [line.split()[1:] for line in open(f"/proc/{pid}/status") if line.startswith("NSpid:")]
    except (OSError, ValueError):
        return False
    return bool(numbers) and len(numbers[0]) > 1 and numbers[0][-1] == "1"


def is_occupied(group):
    return any(open(file).read() for file in glob.glob(f"{group}/**/cgroup.procs", recursive=True))


def leftovers(platform):
    # Groups in which nothing is yet wait for the next instances.
    left = [f"I9: instance {name}" for name, group in platform.instances().items() if is_occupied(group)]
    left += [f"I9: container {name}" for name in platform.containers()]
    left += [f"I9: {path}" for path in glob.glob(f"{platform.data}/blobs/spool/*")]
    left += [f"I9: {path}" for path in glob.glob(f"{platform.data}/worker/code/*.*")]
    return left


def main():
    platform = Platform()
    chance, killed, stop = random.Random(SEED), {}, threading.Event()
    print(f"chaos: {CALLS} calls on {ENGINE}, seed {SEED}, {platform.folder}", flush=True)
    upload(platform)
    clients = Clients(platform)
    begun = time.monotonic()
    breaker = threading.Thread(target=break_things, args=(platform, stop, killed, chance))
    breaker.start()
    for thread in clients.threads:
        thread.start()
    for thread in clients.threads:
        thread.join()
    stop.set()
    breaker.join()
    end = time.monotonic() + PATIENCE
    nums = sorted(clients.accepted.values())
    while time.monotonic() < end and not all(clients.look(num) for num in nums):
        time.sleep(0.5)
    wrong = check(platform, clients)
    end = time.monotonic() + 60
    while leftovers(platform) and time.monotonic() < end:
        time.sleep(0.5)
    wrong += leftovers(platform)
    platform.stop()
    wrong += [f"I9: group {name} after the stop" for name in platform.instances()]
    lost = sum(1 for num in nums if num in clients.seen)
    print(f"chaos: {lost} calls ended in {time.monotonic() - begun:.0f} s; killed: {killed}")
    for line in wrong:
        print(f"  broken  {line}")
    if wrong:
        print(f"chaos: {len(wrong)} promises broken; seed {SEED}, log and data in {platform.folder}")
        return 1
    shutil.rmtree(platform.folder, ignore_errors=True)
    print("chaos: every promise was kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
