#!/usr/bin/env python3
"""Kills a random process of a platform every few seconds while clients call it, and then holds the record against what
the clients saw. Exits with 1 where a promise was broken.

    FAENA_BIN=… CALLS=20000 SEED=7 ENGINE=sandbox NODES=3 python3 scripts/chaos.py

The roles run apart. What is killed with SIGKILL: db, api, worker, the agent of an instance, a container.
With NODES, workers run on so many machines of their own in place of the one beside the api: network namespaces whose one
link leads to the platform. Their links fail as well, both ways or one way, and workers stand still and go on.
The invariants' numbers are those of docs/reference/guarantees.md.
"""
import atexit
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
NODES = int(os.environ.get("NODES", "0"))
# How long a link or a worker may fail, in seconds: shorter and longer than a lease, which lasts 30.
FAULT = (1, 40)
SCRIPT = """n=$(cat)
if [ $((n % 50)) = 7 ]; then exit 3; fi
echo $n
"""


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


class Node:
    """A worker on a machine of its own."""

    def __init__(self, number):
        block = os.getpid() % 200 + 20
        self.name = f"chaos{number}"
        self.space, self.link = f"fac{block}n{number}", f"fac{block}l{number}"
        self.gateway, own = (f"10.214.{block}.{number * 4 + end}" for end in (1, 2))
        self.faults = threading.Lock()
        run("ip", "netns", "add", self.space)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "up0", "netns", self.space)
        run("ip", "addr", "add", f"{self.gateway}/30", "dev", self.link)
        run("ip", "link", "set", self.link, "up")
        self.inside("ip", "addr", "add", f"{own}/30", "dev", "up0")
        self.inside("ip", "link", "set", "up0", "up")
        self.inside("ip", "link", "set", "lo", "up")

    def join(self, platform):
        self.platform, self.data = platform, os.path.join(platform.folder, self.name)
        status, made = platform.ask("POST", "/node/token", {})
        assert status == 201, made
        with open(f"{self.data}.token", "w") as file:
            file.write(made["token"])
        self.start()

    def inside(self, *words):
        run("ip", "netns", "exec", self.space, *words)

    def start(self):
        command = ["nsenter", f"--net=/run/netns/{self.space}", BIN, "worker", "--name", self.name, "--slots", "4"]
        command += ["--api", f"{self.gateway}:{self.platform.front}", "--join", f"@{self.data}.token"]
        command += ["--data", self.data, "--run", f"{self.data}.run"]
        log = self.platform.log
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.start()

    def fail(self, kind, seconds, stop):
        """Its link fails for a while, or its worker stands still; one of these at a time."""
        with self.faults:
            if kind == "standstill":
                self.process.send_signal(signal.SIGSTOP)
            else:
                hooks = {"partition": ("input", "output"), "deaf": ("input",), "mute": ("output",)}[kind]
                self.inside("nft", "add", "table", "inet", "faults")
                for hook in hooks:
                    chain = f"{{ type filter hook {hook} priority 0; policy drop; }}"
                    self.inside("nft", "add", "chain", "inet", "faults", hook, chain)
                    end = "iifname" if hook == "input" else "oifname"
                    self.inside("nft", "add", "rule", "inet", "faults", hook, end, "!=", "up0", "accept")
            stop.wait(seconds)
            if kind == "standstill":
                self.process.send_signal(signal.SIGCONT)
            else:
                self.inside("nft", "delete", "table", "inet", "faults")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()

    def remove(self):
        for words in (("link", "delete", self.link), ("netns", "delete", self.space)):
            subprocess.run(["ip", *words], capture_output=True)


class Platform:
    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="faena-chaos-")
        self.data = os.path.join(self.folder, "data")
        self.log = open(os.path.join(self.folder, "log"), "ab")
        self.roles = {}
        self.port = 20000 + os.getpid() % 10000
        # Ports from 32,768 on are those of clients.
        self.front = self.port - 10000
        atexit.register(self.abandon)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        self.nodes = []
        for role in ("db", "api") if NODES else ("db", "api", "worker"):
            self.start(role)
        for number in range(NODES):
            self.nodes.append(Node(number))
            self.nodes[-1].join(self)

    def start(self, role):
        command = [BIN, role, "--data", self.data, "--listen", f"127.0.0.1:{self.port}"]
        if NODES and role == "api":
            command += ["--nodes", f"0.0.0.0:{self.front}"]
        for layer in os.environ.get("ACCEPT_MISSING", "").split():
            command += ["--accept-missing", layer]
        self.roles[role] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)

    def kill(self, role):
        process = self.roles[role]
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.start(role)

    def stop(self):
        for node in self.nodes:
            node.stop()
        for role in ("worker", "api", "db"):
            if role in self.roles:
                self.roles[role].send_signal(signal.SIGTERM)
                self.roles[role].wait()

    def abandon(self):
        """Ends every process and removes every namespace, also after an error."""
        for process in [*self.roles.values(), *(node.process for node in self.nodes if hasattr(node, "process"))]:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for node in self.nodes:
            node.remove()

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

    def workers(self):
        """The data folders of its workers."""
        return [node.data for node in self.nodes] or [self.data]

    def ids(self):
        """What instances are marked with: the id of each worker's data folder."""
        return [open(os.path.join(data, "platform-id")).read().strip() for data in self.workers()]

    def instances(self):
        """The cgroups of this platform's instances, each once."""
        patterns = [f"/sys/fs/cgroup/**/faena/{platform}.*/*.*" for platform in self.ids()]
        paths = [path for pattern in patterns for path in glob.glob(pattern, recursive=True)]
        return {os.path.basename(path): path for path in paths if os.path.isdir(path)}

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
        labels = [["--filter", f"label=faena={platform}"] for platform in self.ids()]
        listed = [subprocess.run(["docker", "ps", "-aq", *label], capture_output=True, text=True) for label in labels]
        return [container for of_one in listed for container in of_one.stdout.split()]


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
    faults, lasting = ["partition", "deaf", "mute", "standstill"], []
    while not stop.wait(chance.uniform(1, 5)):
        kinds = ["db", "api", "agent"] + (["container"] if ENGINE == "docker" else [])
        kind = chance.choice(kinds + (["node", *faults] if platform.nodes else ["worker"]))
        if kind in faults:
            node, seconds = chance.choice(platform.nodes), chance.uniform(*FAULT)
            if not node.faults.locked():
                lasting.append(threading.Thread(target=node.fail, args=(kind, seconds, stop)))
                lasting[-1].start()
                killed[kind] = killed.get(kind, 0) + 1
            continue
        if kind == "node":
            node = chance.choice(platform.nodes)
            # One that stands still is not killed: it is to come back with what it held.
            if node.faults.acquire(blocking=False):
                node.kill()
                node.faults.release()
                killed[kind] = killed.get(kind, 0) + 1
            continue
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
    for fault in lasting:
        fault.join()


def check(platform, clients, others=0):
    """Compares the record with what the clients saw. Other clients have made at most `others` calls."""
    wrong = []

    def expect(holds, what):
        if not holds and len(wrong) < 20:
            wrong.append(what)

    db = sqlite3.connect(f"file:{platform.data}/faena.db?mode=ro", uri=True)
    rows = {row[0]: row[1:] for row in db.execute(
        "SELECT num, status, spec, result, attempts, epoch, failures, retries, redeliveries, ended_at FROM calls")}
    letters = {row[0] for row in db.execute("SELECT num FROM dead_letters")}
    expect(len(clients.accepted) == CALLS, f"I1: {len(clients.accepted)} of {CALLS} calls were accepted")
    expect(CALLS <= len(rows) <= CALLS + others, f"I7: {CALLS} keys made {len(rows)} calls")
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
    for data in platform.workers():
        left += [f"I9: {path}" for path in glob.glob(f"{data}/worker/code/*.*")]
    return left


def main():
    platform = Platform()
    chance, killed, stop = random.Random(SEED), {}, threading.Event()
    where = f"{NODES} nodes" if NODES else "one worker"
    print(f"chaos: {CALLS} calls on {ENGINE}, {where}, seed {SEED}, {platform.folder}", flush=True)
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
    for node in platform.nodes:
        node.remove()
    wrong += [f"I9: group {name} after the stop" for name in platform.instances()]
    lost = sum(1 for num in nums if num in clients.seen)
    print(f"chaos: {lost} calls ended in {time.monotonic() - begun:.0f} s; killed: {killed}")
    return report("chaos", wrong, platform)


def report(name, wrong, platform):
    """Prints which promises were broken; the status to exit with."""
    for line in wrong:
        print(f"  broken  {line}")
    if wrong:
        print(f"{name}: {len(wrong)} promises broken; seed {SEED}, log and data in {platform.folder}")
        return 1
    shutil.rmtree(platform.folder, ignore_errors=True)
    print(f"{name}: every promise was kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
