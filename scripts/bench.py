#!/usr/bin/env python3
"""Measures a platform beside its raw limits, interleaved in one run, and prints ratios.

    FAENA_BIN=… bench.py         ROUNDS=7 by default; needs root, Docker, its images, wrk and uvicorn (`make bench`)

Each round measures every row once, so that a machine that slows down slows all of them; what is printed is the median
over the rounds. The loader has core 0, platform and functions core 1, raw baselines likewise. The platform's CPU time
and memory come from /proc, its instances not included.
"""
import concurrent.futures
import http.client
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS", "7"))
SECONDS = float(os.environ.get("SECONDS_EACH", "1"))
ONLY = os.environ.get("ROWS", "")
MANY = int(os.environ.get("MANY", "10000"))
TARGET = Path(os.environ["FAENA_BIN"]).parent
# The size of the image that a node fetches.
IMAGE_MB = 256
LOADER, SERVER = "0", "1"
TICK = os.sysconf("SC_CLK_TCK")
JSON = {"Content-Type": "application/json"}
ADA = json.dumps({"name": "Ada"})

COMMAND = "import json, sys\nprint('Hello, ' + json.load(sys.stdin)['name'])\n"
HANDLER = "def handle(params, context):\n    return 'Hello, ' + params['name']\n"
ECHO = "def handle(params, context):\n    return params\n"
# Streams both ways, and events that say when they were written.
STREAMS = """
import http.server, os, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def head(self, kind, length=None):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
        self.end_headers()

    def do_GET(self):
        if self.path == "/events":
            self.head("text/event-stream")
            for _ in range(20):
                time.sleep(0.01)
                event = f"data: {time.monotonic_ns()}\\n\\n".encode()
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(event), event))
            self.wfile.write(b"0\\r\\n\\r\\n")
        else:
            block = bytes(1 << 20)
            self.head("application/octet-stream", 100 << 20)
            for _ in range(100):
                self.wfile.write(block)

    def do_POST(self):
        left = int(self.headers["Content-Length"])
        while left > 0:
            left -= len(self.rfile.read(min(left, 1 << 20)))
        self.head("text/plain", 2)
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
# A server that is reached from functions: it sends, takes bytes, answers with what it gets, and does so over TLS.
FAR = """
import socket, ssl, sys, threading

def source(c):
    block, left = bytes(1 << 20), int(c.recv(64))
    while left > 0:
        left -= c.send(block[: min(left, len(block))])

def sink(c):
    buffer, got = bytearray(1 << 20), 0
    while read := c.recv_into(buffer):
        got += read
    c.sendall(str(got).encode())

def echo(c):
    while data := c.recv(65536):
        c.sendall(data)

def serve(port, answer, wrap=lambda c: c):
    server = socket.create_server((sys.argv[1], port), backlog=1024)
    def one(c):
        with wrap(c) as c:
            answer(c)
    while True:
        c, _ = server.accept()
        c.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=one, args=(c,), daemon=True).start()

context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
for port, answer in ((9001, source), (9002, sink), (9003, echo)):
    threading.Thread(target=serve, args=(port, answer), daemon=True).start()
serve(9004, echo, lambda c: context.wrap_socket(c, server_side=True))
"""
# What is measured of it, by a function and, for the raw limit, by a process beside the server.
NEAR = """
import json, socket, ssl, statistics, sys, time

def measure(host):
    began, size, got = time.monotonic(), 256 << 20, 0
    with socket.create_connection((host, 9001)) as c:
        c.sendall(str(size).encode())
        buffer = bytearray(1 << 20)
        while got < size:
            got += c.recv_into(buffer)
    down = size / (time.monotonic() - began) / 1e6
    began = time.monotonic()
    with socket.create_connection((host, 9002)) as c:
        block = bytes(1 << 20)
        for _ in range(256):
            c.sendall(block)
        c.shutdown(socket.SHUT_WR)
        assert int(c.recv(64)) == size
    up = size / (time.monotonic() - began) / 1e6
    began = time.monotonic()
    for _ in range(500):
        with socket.create_connection((host, 9003)) as c:
            c.sendall(b"x")
            c.recv(1)
    opened = 500 / (time.monotonic() - began)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    handshakes = []
    for _ in range(30):
        began = time.monotonic()
        with context.wrap_socket(socket.create_connection((host, 9004))) as c:
            c.sendall(b"x")
            c.recv(1)
        handshakes.append((time.monotonic() - began) * 1000)
    return {"down": down, "up": up, "opened": opened, "tls": statistics.median(handshakes)}

def go(params):
    return measure(params["host"])

if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
"""
FAR_NETWORK, FAR_ADDRESS, FAR_HOST = "faena-bench", "10.214.0.2", "10.214.0.1"
ASGI = """
import json

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    text = ("Hello, " + json.loads(body)["name"]).encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})
"""
POST = 'wrk.method="POST"\nwrk.body=\'{"name":"Ada"}\'\nwrk.headers["Content-Type"]="application/json"\n'
ECHO_POST = 'wrk.method="POST"\nwrk.body=string.rep("x", 1048576)\nwrk.headers["Content-Type"]="application/octet-stream"\n'
ACCEPT = 'wrk.method="POST"\nwrk.path="/invokeFunction"\nwrk.headers["Content-Type"]="application/json"\nwrk.body=\'{"funcName":"command","params":{"name":"Ada"},"runAt":"2099-01-01T00:00:00Z"}\'\n'
NOOP = 'wrk.method="POST"\nwrk.path="/nowhere"\nwrk.headers["Content-Type"]="application/json"\nwrk.body=\'{"funcName":"x","params":{"name":"Ada"}}\'\n'


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def pinned(core, command):
    return ["taskset", "-c", core, *command]


def until(probe, what, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if probe():
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.01)
    raise SystemExit(f"{what} did not come in time")


def cpu_us(pids):
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks * 1_000_000 / TICK


def memory_mb(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def archive(files):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            z.writestr(entry, data)
    return packed.getvalue()


class Platform:
    """A platform on folders of its own; `roles` apart or one process."""

    def __init__(self, folder, roles=("up",), settings=""):
        self.sent = {}
        self.port, self.log = free_port(), open(folder / "log", "ab")
        (folder / "settings.toml").write_text(settings)
        self.processes = []
        for role in roles:
            command = [os.environ["FAENA_BIN"], role, "--listen", f"127.0.0.1:{self.port}", "--data", str(folder / "data"), "--config", str(folder / "settings.toml"), "--log", "warn"]
            self.processes.append(subprocess.Popen(pinned(SERVER, command), stdout=self.log, stderr=self.log))
        until(lambda: self.request("GET", "/readyz")[0] == 200, "the platform")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def request(self, method, path, body=None, headers=None, connection=None):
        c = connection or self.connect()
        c.request(method, path, body, {**self.sent, **(headers or {})})
        r = c.getresponse()
        data = r.read()
        if connection is None:
            c.close()
        return r.status, data

    def team(self, namespace, method, path, body, headers={}):
        """A request of an administrator for a namespace; its status."""
        sent = {"Authorization": f"Bearer {self.key}", "Faena-Namespace": namespace, **JSON, **headers}
        return self.request(method, path, body, sent)[0]

    def call(self, name, connection=None, body=ADA):
        status, text = self.request("POST", f"/f/{name}", body, JSON, connection)
        assert status == 200, (name, status, text)
        return text

    def runtime(self, name, **runtime):
        runtime = {"name": name, "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 test.py", **runtime}
        status, text = self.request("POST", "/registerRuntime", json.dumps(runtime), JSON)
        assert status in (200, 201), text

    def upload(self, runtime, name, files):
        edge = "bench-edge"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="module"; filename="x.zip"\r\n\r\n'.encode()
        body = head + archive(files) + f"\r\n--{edge}--\r\n".encode()
        status, text = self.request("POST", f"/registerFunction/{runtime}/{name}", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
        assert status in (200, 201), text

    def ready(self, name):
        until(lambda: json.loads(self.request("GET", f"/function/{name}")[1])["status"] == "READY", name, 300)

    def function(self, name, files, toml="", **runtime):
        self.runtime(name, **runtime)
        self.upload(name, name, {**files, **({"faena.toml": toml} if toml else {})})
        self.ready(name)

    def pool(self):
        return json.loads(self.request("GET", "/workers")[1])[0]["pool"]

    def pids(self):
        return [process.pid for process in self.processes]

    def join(self, folder, front):
        """Starts a node of this platform, whose own worker takes no work from then on."""
        token = json.loads(self.request("POST", "/node/token", "{}", JSON)[1])["token"]
        command = [os.environ["FAENA_BIN"], "worker", "--name", "node", "--join", token, "--api", f"127.0.0.1:{front}", "--data", str(folder / "data"), "--run", str(folder / "run"), "--log", "warn,faena_miniworker::images=info"]
        self.node_log = open(folder.parent / "node.log", "ab")
        self.processes.append(subprocess.Popen(pinned(SERVER, command), stdout=self.node_log, stderr=self.node_log))
        until(lambda: self.node("node").get("state") == "READY", "the node")
        self.request("POST", "/node/control/cordon", "{}", JSON)
        until(lambda: self.node("control").get("state") == "CORDONED", "the platform's own worker")

    def node(self, name):
        return json.loads(self.request("GET", f"/node/{name}")[1])

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)


class Pieces:
    """A body of so many megabytes, read piece by piece."""

    def __init__(self, megabytes):
        self.left = megabytes

    def read(self, _size):
        if self.left == 0:
            return b""
        self.left -= 1
        return bytes(1 << 20)


class PeakMemory:
    """How much a process grows until this is stopped, in MB."""

    def __init__(self, pid):
        self.pid, self.running = pid, True
        self.before = self.peak = memory_mb(pid)
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self):
        while self.running:
            self.peak = max(self.peak, memory_mb(self.pid))
            time.sleep(0.005)

    def stop(self):
        self.running = False
        self.thread.join()
        return max(self.peak - self.before, 0.01)


class Row:
    """One measurement and its raw limit, round by round."""

    def __init__(self, name, unit, must=None, aim=None, higher=False):
        self.name, self.unit, self.must, self.aim, self.higher = name, unit, must, aim, higher
        self.ours, self.limit, self.cpu, self.memory = [], [], [], 0.0

    def add(self, ours, limit, cpu=None, memory=None):
        self.ours.append(ours)
        self.limit.append(limit)
        if cpu is not None:
            self.cpu.append(cpu)
        self.memory = memory if memory is not None else self.memory

    def result(self):
        ratio = statistics.median(o / l for o, l in zip(self.ours, self.limit))
        return {"row": self.name, "ratio": round(ratio, 4), "must": self.must, "aim": self.aim, "ours": round(statistics.median(self.ours), 3),
                "limit": round(statistics.median(self.limit), 3), "unit": self.unit, "cpu_us": round(statistics.median(self.cpu), 1) if self.cpu else None,
                "memory_mb": round(self.memory, 1), "higher": self.higher}


class Bench:
    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="faena-bench-"))
        self.rows, self.raw, self.started = {}, {}, []

    def row(self, key, *args, **kwargs):
        self.rows[key] = Row(*args, **kwargs)

    def wrk(self, port, path, clients, script, seconds=SECONDS):
        """Median and 99th percentile in microseconds, and requests a second."""
        file = self.folder / "load.lua"
        file.write_text(script)
        command = ["wrk", "-t1", f"-c{clients}", f"-d{max(1, round(seconds))}s", "--latency", "-s", str(file), f"http://127.0.0.1:{port}{path}"]
        out = subprocess.run(pinned(LOADER, command), capture_output=True, text=True, check=True).stdout
        def us(share):
            number, unit = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", out).groups()
            return float(number) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]
        return us(50), us(99), float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1]), "Non-2xx" not in out

    def paced(self, port, path, rate):
        command = [str(TARGET / "paced"), str(port), path, str(rate), str(SECONDS)]
        return [float(word) for word in subprocess.run(pinned(LOADER, command), capture_output=True, text=True, check=True).stdout.split()]

    def serve(self, name, command, probe):
        port = free_port()
        process = subprocess.Popen(pinned(SERVER, [word.replace("PORT", str(port)) for word in command]), cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(process)
        self.raw[name] = (port, process.pid)
        def answers():
            c = http.client.HTTPConnection("127.0.0.1", port)
            c.request("POST", probe, ADA, JSON)
            return c.getresponse().read() == b"Hello, Ada"
        until(answers, name)

    # --- what is measured; each adds one round to its rows

    def warm(self, up):
        nat, py = self.raw["hyper"], self.raw["uvicorn"]
        before = cpu_us([nat[1]])
        raw = self.wrk(nat[0], "/", 1, POST)
        raw_cpu = (cpu_us([nat[1]]) - before) / (raw[2] * round(max(1, SECONDS)))
        uv = self.wrk(py[0], "/", 1, POST)
        before = cpu_us(up.pids())
        ours = self.wrk(up.port, "/f/native", 1, POST)
        cpu = (cpu_us(up.pids()) - before) / (ours[2] * round(max(1, SECONDS)))
        mem = memory_mb(up.pids()[0])
        assert ours[3]
        self.rows["native"].add(ours[0], raw[0], cpu, mem)
        self.rows["cpu"].add(cpu, raw_cpu, cpu, mem)
        python = self.wrk(up.port, "/f/python", 1, POST)
        self.rows["python"].add(python[0], uv[0], None, mem)
        docker = self.wrk(up.port, "/f/dnative", 1, POST)
        self.rows["docker-native"].add(docker[0], ours[0], None, mem)
        docker = self.wrk(up.port, "/f/dpython", 1, POST)
        self.rows["docker-python"].add(docker[0], python[0], None, mem)
        raw8, ours8 = self.wrk(nat[0], "/", 8, POST), self.wrk(up.port, "/f/native", 8, POST)
        self.rows["capacity"].add(ours8[2], raw8[2], None, mem)
        self.rows["capacity-python"].add(self.wrk(up.port, "/f/python8", 8, POST)[2], self.wrk(py[0], "/", 8, POST)[2], None, mem)
        raw_tail, ours_tail = self.paced(nat[0], "/", raw8[2] / 2), self.paced(up.port, "/f/native", ours8[2] / 2)
        self.rows["tail"].add(ours_tail[1] / ours_tail[0], raw_tail[1] / raw_tail[0], None, mem)
        raw_echo, echo = self.wrk(nat[0], "/echo", 1, ECHO_POST), self.wrk(up.port, "/f/echo", 1, ECHO_POST)
        self.rows["echo"].add(echo[2], raw_echo[2], None, mem)

    def apart(self, apart):
        raw = self.wrk(self.raw["hyper"][0], "/", 1, POST)
        before = cpu_us(apart.pids())
        ours = self.wrk(apart.port, "/f/native", 1, POST)
        self.rows["apart"].add(ours[0], raw[0], (cpu_us(apart.pids()) - before) / (ours[2] * round(max(1, SECONDS))))
        return ours[0]

    def node(self, apart, far):
        """A call on another machine costs a round trip over TLS more than one to another process."""
        between = self.apart(apart)
        echo = float(subprocess.run(pinned(SERVER, [str(TARGET / "tls_raw"), "echo"]), capture_output=True, text=True, check=True).stdout)
        before = cpu_us(far.pids())
        ours = self.wrk(far.port, "/f/native", 1, POST)
        self.rows["node"].add(ours[0], echo + between, (cpu_us(far.pids()) - before) / (ours[2] * round(max(1, SECONDS))))

    def download(self, far, turn):
        """An image of 256 MB that a node needs, as far as it lies on the node, before it is unpacked."""
        file = self.folder / "image.tar"
        with tarfile.open(file, "w") as archive:
            content = os.urandom(IMAGE_MB * 1_000_000)
            entry = tarfile.TarInfo("bin/noise")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        with open(file, "rb") as archive:
            status, reply = far.request("PUT", f"/image/bench:{turn}", archive, {"Content-Length": str(file.stat().st_size)})
        assert status == 201, (status, reply)
        seen = self.folder / "node.log"
        before = seen.stat().st_size if seen.exists() else 0
        far.runtime(f"image{turn}", image=f"bench:{turn}", engine="sandbox", dependencies="")
        far.upload(f"image{turn}", f"image{turn}", {"run.sh": b"true"})
        far.ready(f"image{turn}")
        fetched = re.search(r"downloaded_ms=(\d+)", seen.read_text()[before:])
        ours = file.stat().st_size / 1e6 / (int(fetched.group(1)) / 1000)
        raw = subprocess.run(pinned(SERVER, [str(TARGET / "tls_raw"), "cat", str(file)]), capture_output=True, text=True, check=True).stdout
        self.rows["download"].add(ours, float(raw))
        far.request("DELETE", f"/function/image{turn}")
        far.request("DELETE", f"/image/bench:{turn}")

    def decision(self):
        """Which of 1,000 nodes gets a call, of functions that are a million."""
        command = ["cargo", "test", "--release", "--locked", "--quiet", "-p", "faena-scheduler", "--lib", "a_thousand_nodes", "--", "--nocapture"]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        self.rows["decision"].add(float(re.search(r"a decision takes ([0-9.]+)", said.stdout + said.stderr).group(1)), 1.0)

    def keys(self, up, locked):
        """The same function on a platform with accounts, called with a key."""
        script = POST + f'\nwrk.headers["Authorization"] = "Bearer {locked.key}"\n'
        before = cpu_us(up.pids())
        without = self.wrk(up.port, "/f/native", 1, POST)
        cpu = (cpu_us(up.pids()) - before) / (without[2] * round(max(1, SECONDS)))
        before = cpu_us(locked.pids())
        ours = self.wrk(locked.port, "/f/native", 1, script)
        assert ours[3]
        with_key = (cpu_us(locked.pids()) - before) / (ours[2] * round(max(1, SECONDS)))
        self.rows["key"].add(ours[0], without[0], with_key)
        self.rows["key-cpu"].add(with_key - cpu, 2, with_key)

    def namespaces(self, locked):
        """What one namespace notices of another one that floods the platform: the 99th percentile of its calls, beside and alone."""
        calls = {"quiet-f": lambda: locked.team("quiet", "POST", "/f/work", "{}"),
                 "quiet-queued": lambda: locked.team("quiet", "POST", "/invokeFunction", json.dumps({"funcName": "work", "params": {}, "retries": 1}), {"Prefer": "wait=60"})}
        def p99(call):
            times = []
            for _ in range(200):
                began = time.monotonic()
                assert call() == 200
                times.append((time.monotonic() - began) * 1000)
            return statistics.quantiles(times, n=100)[98]
        alone = {name: p99(call) for name, call in calls.items()}
        over = threading.Event()
        def flood(number):
            while not over.is_set():
                locked.team("loud", "POST", f"/f/work{number % 8}", "{}")
        threads = [threading.Thread(target=flood, args=(number,)) for number in range(32)]
        for number in range(500):
            locked.team("loud", "POST", "/invokeFunction", json.dumps({"funcName": f"work{number % 8}", "params": {}}))
        [thread.start() for thread in threads]
        time.sleep(1)
        beside = {name: p99(call) for name, call in calls.items()}
        over.set()
        [thread.join() for thread in threads]
        for name in calls:
            self.rows[name].add(beside[name], alone[name])

    def streams(self, up):
        """Servers: the raw one as a function, and one whose bodies are streams."""
        nat = self.raw["hyper"]
        raw, ours = self.wrk(nat[0], "/", 1, POST), self.wrk(up.port, "/f/served", 1, POST)
        assert ours[3]
        self.rows["served"].add(ours[0], raw[0])
        raw_echo, echo = self.wrk(nat[0], "/echo", 1, ECHO_POST), self.wrk(up.port, "/f/served/echo", 1, ECHO_POST)
        self.rows["stream-echo"].add(echo[2], raw_echo[2])
        grown = PeakMemory(up.pids()[0])
        status, text = up.request("POST", "/f/streams/count", Pieces(100), {"Content-Length": str(100 << 20)})
        assert (status, text) == (200, b"ok"), (status, text)
        connection = up.connect()
        connection.request("GET", "/f/streams/large")
        reply, left = connection.getresponse(), 100 << 20
        while left > 0:
            left -= len(reply.read(1 << 20))
        connection.close()
        self.rows["through"].add(grown.stop(), 1.0)
        connection = up.connect()
        connection.request("GET", "/f/streams/events")
        reply, late = connection.getresponse(), []
        while line := reply.readline():
            if line.startswith(b"data: "):
                late.append((time.monotonic_ns() - int(line[6:])) / 1e6)
        connection.close()
        self.rows["event"].add(statistics.median(late), 1.0)

    def far(self):
        """A server in a network namespace of its own."""
        def ip(words):
            subprocess.run(["ip", *words.split()], check=True)
        self.far_ends()
        ip(f"netns add {FAR_NETWORK}")
        ip(f"link add fbench type veth peer name gbench netns {FAR_NETWORK}")
        ip(f"addr add {FAR_HOST}/24 dev fbench")
        ip("link set fbench up")
        ip(f"-n {FAR_NETWORK} addr add {FAR_ADDRESS}/24 dev gbench")
        ip(f"-n {FAR_NETWORK} link set gbench up")
        ip(f"-n {FAR_NETWORK} link set lo up")
        pem, near = self.folder / "far.pem", self.folder / "near.py"
        key = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=far".split()
        subprocess.run([*key, "-keyout", str(pem), "-out", f"{pem}.cert"], check=True, capture_output=True)
        pem.write_text(pem.read_text() + Path(f"{pem}.cert").read_text())
        (self.folder / "far.py").write_text(FAR)
        near.write_text(NEAR)
        inside = ["ip", "netns", "exec", FAR_NETWORK]
        self.started.append(subprocess.Popen([*inside, sys.executable, str(self.folder / "far.py"), FAR_ADDRESS, str(pem)]))
        until(lambda: socket.create_connection((FAR_ADDRESS, 9004), 1).close() is None, "the server that functions reach")
        self.near = [*inside, sys.executable, str(near), FAR_ADDRESS]

    def far_ends(self):
        subprocess.run(["ip", "netns", "del", FAR_NETWORK], capture_output=True)
        subprocess.run(["ip", "link", "del", "fbench"], capture_output=True)

    def egress(self, up):
        """One connection with much data, many connections, TLS; and what a start costs more that has a network device."""
        raw = json.loads(subprocess.run(self.near, check=True, capture_output=True, text=True).stdout)
        gateway = int(subprocess.run(["pgrep", "-n", "-f", r"/faena net$"], check=True, capture_output=True, text=True).stdout)
        before = cpu_us([gateway])
        ours = json.loads(up.call("egress", body=json.dumps({"host": FAR_ADDRESS})))
        used = cpu_us([gateway]) - before
        # Half a gigabyte in all.
        self.rows["egress-down"].add(ours["down"], 500, used / 512)
        self.rows["egress-down-raw"].add(ours["down"], raw["down"])
        self.rows["egress-up"].add(ours["up"], raw["up"])
        self.rows["egress-opened"].add(ours["opened"], 1000)
        self.rows["egress-tls"].add(ours["tls"], 1.2 * raw["tls"] + 1)
        differences = []
        for turn in range(40):
            spans = {}
            # Each goes first in turn, after the instance before was taken apart.
            for name in ("cold", "cold-egress") if turn % 2 else ("cold-egress", "cold"):
                time.sleep(0.12)
                spans[name] = timed(lambda: up.call(name), 1)[0]
            differences.append(spans["cold-egress"] - spans["cold"])
        self.rows["egress-start"].add(max(statistics.median(differences), 0.01), 0.5)

    def docker_run(self, count=3):
        command = ["docker", "run", "--rm", "-i", "--network", "none", "-v", f"{self.folder}/code:/ws:ro", "-w", "/ws", "pythonruntime", "python3", "test.py"]
        def run():
            out = subprocess.run(command, input=ADA.encode(), capture_output=True, check=True).stdout
            assert out == b"Hello, Ada\n", out
        return statistics.median(timed(run, count))

    def cold(self, up, turn):
        limit, mem = self.docker_run(), memory_mb(up.pids()[0])
        connection = up.connect()
        before = cpu_us(up.pids())
        spans = []
        for _ in range(7):
            spans += timed(lambda: up.call("cold", connection), 1)
            time.sleep(0.1)
        sandbox = statistics.median(spans)
        self.rows["cold"].add(sandbox, limit, (cpu_us(up.pids()) - before) / 7, mem)
        until(lambda: up.pool()["interpreters"] > 0, "an interpreter that is held ready", 30)
        up.call("cloned", connection)
        before = cpu_us(up.pids())
        spans = []
        for _ in range(3):
            # Where one interpreter waits for its code, the call finds it, as it would after a moment of calm.
            spare(up)
            spans += timed(lambda: up.call("cloned", connection), 1)
        self.rows["cold-zygote"].add(statistics.median(spans), limit, (cpu_us(up.pids()) - before) / 3, mem)
        fork = []
        for _ in range(9):
            fork += timed(lambda: up.call("forked", connection), 1)
            time.sleep(0.02)
        self.rows["fork"].add(statistics.median(fork), limit, None, mem)
        spans = timed(lambda: up.call("cold100", connection), 5)
        self.rows["cold-100"].add(statistics.median(spans), sandbox, None, mem)
        # A function that has never been called: its instance waits because faena.toml says so.
        for engine, name in (("sandbox", f"hit{turn}"), ("docker", f"dhit{turn}")):
            until(lambda name=name: up.request("GET", f"/function/{name}")[0] == 200, name)
            self.rows[f"hit-{engine}"].add(timed(lambda name=name: up.call(name, connection), 1)[0], limit, None, mem)
        spare(up)
        spans = []
        for index in range(2):
            spare(up)
            spans += timed(lambda index=index: up.call(f"dnew{turn}x{index}", connection), 1)
        docker = statistics.median(spans)
        self.rows["cold-docker"].add(docker, limit, None, mem)
        spare(up)
        self.rows["cold-docker-100"].add(timed(lambda: up.call(f"dbig{turn}", connection), 1)[0], docker, None, mem)
        # What is made for the next call is made before this is measured.
        spare(up)
        bare = statistics.median(timed(lambda: subprocess.run(["/usr/bin/python3", f"{self.folder}/code/test.py"], input=ADA.encode(), capture_output=True, check=True), 9))
        paced = []
        for _ in range(9):
            paced += timed(lambda: up.call("command", connection), 1)
            time.sleep(0.02)
        self.rows["command"].add(statistics.median(paced), bare, None, mem)

    def burst(self, up, count=50):
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            def at_once(action):
                begun = time.perf_counter()
                list(pool.map(lambda _: action(), range(count)))
                return (time.perf_counter() - begun) * 1000
            plain, cloned = at_once(lambda: up.call("cold")), at_once(lambda: up.call("cloned"))
            limit, mem = at_once(lambda: self.docker_run(1)), memory_mb(up.pids()[0])
            self.rows["burst"].add(plain, limit, None, mem)
            self.rows["burst-zygote"].add(cloned, limit, None, mem)

    def thaw(self, up):
        """A frozen instance answers, beside a paused container that is unpaused and does the least there is."""
        connection, container = up.connect(), self.raw["paused"][1]
        # It was last called in the round before, and what is not called is frozen after three seconds.
        time.sleep(4.5)
        ours = timed(lambda: up.call("frozen", connection), 1)[0]
        subprocess.run(["docker", "pause", container], check=True, capture_output=True)

        def unpause():
            subprocess.run(["docker", "unpause", container], check=True, capture_output=True)
            subprocess.run(["docker", "exec", container, "true"], check=True, capture_output=True)
        self.rows["thaw"].add(ours, timed(unpause, 1)[0])

    def idle(self, up, turn, count=20):
        """What twenty waiting instances take but for the users' own processes: their agents, the platform and the kernel."""
        before, resident, others = kernel_mb(), memory_mb(up.pids()[0]), up.pool()["instances"]
        old = set(agents())
        up.upload("native", f"idle{turn}", {"hello": self.native, "faena.toml": f'contract = "handler"\nminimum = {count}\n'})
        up.ready(f"idle{turn}")
        own = []

        def there():
            own[:] = [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and (pid / "cmdline").read_bytes().startswith(b"./hello")]
            return len(own) >= count + 3
        until(there, "waiting instances", 60)
        time.sleep(1)
        held = sum(private_mb(pid) for pid in agents() if pid not in old) + kernel_mb() - before + memory_mb(up.pids()[0]) - resident
        self.rows["idle"].add(held / count, 1.0, None, memory_mb(up.pids()[0]) - resident)
        up.request("DELETE", f"/function/idle{turn}")
        until(lambda: up.pool()["instances"] <= others + 2, "their end", 60)

    def accepts(self, up):
        before = cpu_us(up.pids())
        # Calls for another century, so that nothing but accepting is measured.
        ours = self.wrk(up.port, "/", 64, ACCEPT)
        assert ours[3], "an accept was refused"
        cpu = (cpu_us(up.pids()) - before) / (ours[2] * round(max(1, SECONDS)))
        noop = self.wrk(up.port, "/", 64, NOOP)
        self.rows["accepts"].add(ours[2], noop[2], cpu, memory_mb(up.pids()[0]))
        self.rows["accepts-commits"].add(ours[2], one_row_commits(self.folder), cpu, memory_mb(up.pids()[0]))

    def many(self, up, many):
        one = self.wrk(up.port, "/f/single", 1, POST)
        lua = 'local n = 0\nrequest = function()\n n = (n + 1) % 100\n return wrk.format("POST", "/f/many" .. n, {["Content-Type"] = "application/json"}, \'{"name":"Ada"}\')\nend\n'
        hundred = self.wrk(many.port, "/", 1, lua)
        assert hundred[3]
        self.rows["many"].add(hundred[0], one[0], None, memory_mb(many.pids()[0]))

    def deploy(self, up, turn):
        name = f"deployed{turn}"
        begun = time.perf_counter()
        up.upload("cold", name, {"handler.py": HANDLER, "faena.toml": 'contract = "handler"\n'})
        up.ready(name)
        assert up.call(name) == b"Hello, Ada"
        self.rows["deploy"].add((time.perf_counter() - begun) * 1000, 1000.0, None, memory_mb(up.pids()[0]))


# The thesis prototype that Faena's routes come from, as its authors measured it (milliseconds; median and p95): hello every
# quarter of a second, on their machine.
PROTOTYPE = {"none": (3299, 3681), "runtime": (2153, 2684), "function": (1308, 1697)}


def prototype(up, count=12):
    """Their paced hello under their three policies, in Docker, each call in an instance of its own."""
    print("\n| hello every 250 ms, docker, no instance used twice | ours, p50 | p95 | the prototype's p50 | p95 |\n|---|---|---|---|---|")
    for policy, (theirs, tail) in PROTOTYPE.items():
        name = f"paced-{policy}"
        up.function(name, {"test.py": COMMAND}, f'reuse = "never"\npreload = "{policy}"\n', engine="docker")
        spans = []
        for _ in range(count):
            begun = time.perf_counter()
            up.call(name)
            spans.append((time.perf_counter() - begun) * 1000)
            time.sleep(max(0.0, 0.25 - spans[-1] / 1000))
        spans.sort()
        print(f"| preload {policy} | {statistics.median(spans):.0f} | {spans[int(count * 0.95) - 1]:.0f} | {theirs} | {tail} |")


def kernel_mb():
    """What the kernel holds for processes, namespaces, mounts and control groups."""
    held = dict(re.findall(r"(\w+):\s+(\d+)", Path("/proc/meminfo").read_text()))
    return sum(int(held[name]) for name in ("SUnreclaim", "KernelStack", "PageTables", "Percpu")) / 1024


def agents():
    pids = (pid for pid in Path("/proc").iterdir() if pid.name.isdigit())
    return [pid for pid in pids if (pid / "cmdline").read_bytes().startswith(b"faena-agent")]


def private_mb(pid):
    text = (pid / "smaps_rollup").read_text()
    return sum(int(kb) for kb in re.findall(r"Private_\w+:\s+(\d+)", text)) / 1024


def spare(up):
    """Waits for what waits without code: two containers and one interpreter. A worker tells of it once a second."""
    time.sleep(1.5)
    until(lambda: up.pool()["prewarmed"] >= 3, "everything that waits without code", 30)


def timed(action, count):
    """Milliseconds of each of `count` actions."""
    spans = []
    for _ in range(count):
        begun = time.perf_counter()
        action()
        spans.append((time.perf_counter() - begun) * 1000)
    return spans


def one_row_commits(folder):
    """Commits of one row a second, each with its fsync, on the same disk."""
    path = folder / f"commits-{time.monotonic_ns()}.db"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)")
    begun, count = time.perf_counter(), 300
    for _ in range(count):
        db.execute("INSERT INTO t (text) VALUES (?)", ("x" * 512,))
    rate = count / (time.perf_counter() - begun)
    db.close()
    return rate


def define(bench):
    row = bench.row
    row("native", "warm, native handler, c=1: p50 ÷ raw hyper", "µs", 1.35, 1.15)
    row("python", "warm, Python handler, c=1: p50 ÷ uvicorn", "µs", 1.05, 0.9)
    row("docker-native", "the first row in docker ÷ in the sandbox", "µs", 1.1, 1.0)
    row("docker-python", "the second row in docker ÷ in the sandbox", "µs", 1.1, 1.0)
    row("cpu", "CPU-µs a call, native, c=1 ÷ raw", "µs", 2.2, 1.7)
    row("tail", "warm p99 ÷ p50, open loop at half capacity, ÷ raw's own", "", 2, 1.3)
    row("capacity", "calls/s on one core, native, c=8 ÷ raw", "1/s", 0.3, 0.5, higher=True)
    row("capacity-python", "calls/s on one core, Python, c=8 ÷ uvicorn", "1/s", 1.0, 1.5, higher=True)
    row("apart", "through a worker in another process, native, c=1: p50 ÷ raw", "µs", 1.7, 1.5)
    row("node", "through the front to a node, native, c=1: p50 ÷ (TLS echo + the row above)", "µs", 1.2, 1.0)
    row("download", "an image to a node through the front: MB/s ÷ `cat` over the same TLS", "MB/s", 0.5, 0.8, higher=True)
    row("decision", "which of 1,000 nodes gets a call of 1,000,000 functions", "µs", 50, 5)
    row("key", "warm, native handler, with a key of an account: p50 ÷ on an open platform", "µs", 1.05, 1.0)
    row("key-cpu", "what a key costs more of CPU-µs a call ÷ 2 µs", "µs", 1, 0.5)
    row("quiet-f", "a namespace beside one that floods the platform, /f/, 5 ms of work: p99 ÷ p99 alone", "ms", 2, 1.2)
    row("quiet-queued", "the same, queued, until its end: p99 ÷ p99 alone", "ms", 2, 1.2)
    row("cold", "cold, sandbox, Python hello ÷ `docker run`", "ms", 0.06, 0.04)
    row("cold-zygote", "cold, sandbox with zygote, Python hello ÷ `docker run`", "ms", 0.02, 0.01)
    row("fork", "`reuse = \"fork\"`, Python hello, warm ÷ `docker run`", "ms", None, None)
    row("hit-sandbox", "a pool hit, sandbox ÷ `docker run`", "ms", 0.005, 0.002)
    row("cold-docker", "cold, docker, preload runtime ÷ `docker run`", "ms", 0.15, 0.08)
    row("hit-docker", "a pool hit, docker, preload function ÷ `docker run`", "ms", 0.02, 0.005)
    row("cold-100", "cold with 100 MB of dependencies ÷ cold hello, sandbox", "ms", 1.5, 1.2)
    row("cold-docker-100", "cold with 100 MB of dependencies ÷ cold hello, docker", "ms", 1.5, 1.2)
    row("command", "`command` warm, Python ÷ the bare process", "ms", 1.3, 1.1)
    row("burst", "50 cold starts at once, sandbox ÷ 50 `docker run`", "ms", 0.06, 0.045)
    row("burst-zygote", "50 cold starts at once, sandbox with zygote ÷ 50 `docker run`", "ms", 0.02, 0.01)
    row("thaw", "thaw and call ÷ `docker unpause` and exec", "ms", 0.1, 0.03)
    row("accepts", "durable accepts/s, c=64 ÷ no-op POST/s", "1/s", 0.5, 0.8, higher=True)
    row("accepts-commits", "durable accepts/s, c=64 ÷ one-row commits/s of SQLite", "1/s", None, None, higher=True)
    row("many", "p50 with 10,000 functions, 100 warm ÷ with 1", "µs", 1.1, 1.02)
    row("idle", "idle memory of a warm instance above its process", "MB", 3, 0.5)
    row("echo", "1 MiB echo, requests/s ÷ raw", "1/s", 0.4, 0.8, higher=True)
    row("served", "warm, a server (`http`), c=1: p50 ÷ the same raw", "µs", None, None)
    row("stream-echo", "1 MiB echo by a server, requests/s ÷ raw", "1/s", 0.5, 0.8, higher=True)
    row("through", "growth while 100 MB pass, each way", "MB", 16, 4)
    row("event", "an event, from the server's write to the client's read", "ms", 5, 1)
    row("deploy", "deploy to first answer, Python hello", "ms of 1 s", 0.1, 0.05)
    row("egress-down", "one connection of a function, down ÷ 500 MB/s (CPU: the gateway's, a MB)", "MB/s", 1, 1.7, higher=True)
    row("egress-down-raw", "the same ÷ the same program beside the server", "MB/s", None, None, higher=True)
    row("egress-up", "one connection of a function, up ÷ beside the server", "MB/s", None, None, higher=True)
    row("egress-opened", "connections a second of a function, one after the other ÷ 1,000", "1/s", 1, 2, higher=True)
    row("egress-tls", "connect, TLS and first byte ÷ (1.2 × beside the server + 1 ms)", "ms", 1, 0.7)
    row("egress-start", "what a cold start costs more with a network device ÷ 0.5 ms", "ms", 1, 0.5)


def lock(platform):
    """Makes the first account of a platform, and a key of it."""
    def post(path, body, headers={}):
        status, text = platform.request("POST", path, json.dumps(body), {**JSON, **headers})
        assert status == 201, (path, status, text)
        return json.loads(text)
    account = post("/account", {"name": "bench", "type": "service", "scopes": ["admin"]})
    token = post("/token", {"id": account["id"], "secret": account["secret"]})["accessToken"]
    platform.key = post("/key", {"name": "bench"}, {"Authorization": f"Bearer {token}"})["key"]


def prepare(bench, up, apart, far, many, locked):
    native = bench.native = (TARGET / "examples" / "hello").read_bytes()
    echo = (TARGET / "examples" / "echo").read_bytes()
    program = {"engine": "sandbox", "image": "bashruntime", "run": "./hello"}
    handler = 'contract = "handler"\n'
    up.function("native", {"hello": native}, handler + "parallel = 8\n", **program)
    up.function("echo", {"hello": echo}, handler, **program)
    raw = (TARGET / "raw").read_bytes()
    up.function("served", {"raw": raw}, 'contract = "http"\n', engine="sandbox", image="bashruntime", run="./raw")
    up.function("streams", {"server.py": STREAMS}, 'contract = "http"\n', engine="sandbox", run="python3 server.py")
    up.request("GET", "/f/streams/events")
    up.function("frozen", {"hello": native}, handler, **program)
    up.function("single", {"hello": native}, handler, **program)
    up.function("dnative", {"hello": native}, handler + "parallel = 8\n", engine="docker", image="bashruntime", run="./hello")
    up.function("python", {"handler.py": HANDLER}, handler, engine="sandbox")
    up.function("python8", {"handler.py": HANDLER}, handler + "parallel = 8\n", engine="sandbox")
    up.function("dpython", {"handler.py": HANDLER}, handler, engine="docker")
    up.function("cold", {"handler.py": HANDLER}, handler + 'reuse = "never"\npreload = "none"\n', engine="sandbox")
    up.function("cloned", {"handler.py": HANDLER}, handler + 'reuse = "never"\n', engine="sandbox")
    up.function("forked", {"handler.py": HANDLER}, handler + 'reuse = "fork"\n', engine="sandbox")
    big = {f"deps/part{n}.bin": os.urandom(10 << 20) for n in range(10)}
    up.function("cold100", {"handler.py": HANDLER, **big}, handler + 'reuse = "never"\npreload = "none"\n', engine="sandbox")
    up.function("command", {"test.py": COMMAND}, engine="sandbox")
    up.runtime("dr", engine="docker")
    for turn in range(ROUNDS):
        up.upload("cold", f"hit{turn}", {"handler.py": HANDLER, "faena.toml": handler + "minimum = 1\n"})
        up.upload("dr", f"dhit{turn}", {"handler.py": HANDLER, "faena.toml": handler + 'preload = "function"\nminimum = 1\n'})
        up.upload("dr", f"dbig{turn}", {"handler.py": HANDLER, **big, "faena.toml": handler})
        for index in range(2):
            up.upload("dr", f"dnew{turn}x{index}", {"handler.py": HANDLER, "faena.toml": handler})
    up.function("egress", {"near.py": NEAR}, 'contract = "handler"\nhandler = "near.py:go"\nnetwork = "egress"\n', engine="sandbox")
    up.function("cold-egress", {"handler.py": HANDLER}, handler + 'reuse = "never"\npreload = "none"\nnetwork = "egress"\n', engine="sandbox")
    up.call("egress", body=json.dumps({"host": FAR_ADDRESS}))
    for name in ["native", "echo", "served", "dnative", "python", "python8", "dpython", "frozen", "single"]:
        up.request("POST", f"/f/{name}", ADA, JSON)
    apart.function("native", {"hello": native}, handler, **program)
    apart.call("native")
    far.function("native", {"hello": native}, handler, **program)
    far.call("native")
    locked.function("native", {"hello": native}, handler + "parallel = 8\n", **program)
    locked.call("native")
    lock(locked)
    locked.sent = {"Authorization": f"Bearer {locked.key}"}
    # Both wait for something else most of the time, as functions do: processor time is the kernel's to share.
    for namespace, milliseconds, names in (("quiet", 5, ["work"]), ("loud", 50, [f"work{number}" for number in range(8)])):
        assert locked.team("default", "POST", "/namespace", json.dumps({"name": namespace})) == 201
        locked.sent["Faena-Namespace"] = namespace
        code = f"import time\ndef handle(params, context):\n    time.sleep({milliseconds / 1000})\n    return 1\n"
        for name in names:
            locked.function(name, {"handler.py": code}, handler, engine="sandbox")
    locked.sent = {}
    many.runtime("many", **program)
    source = {"hello": native, "faena.toml": handler}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: many.upload("many", f"many{number}", source), range(MANY)))
    until(lambda: all(json.loads(many.request("GET", f"/function/many{MANY - n}")[1])["status"] == "READY" for n in range(1, 9)), "many functions", 600)
    for number in range(100):
        many.ready(f"many{number}")
        many.call(f"many{number}")


def main():
    bench = Bench()
    define(bench)
    (bench.folder / "code").mkdir()
    (bench.folder / "code" / "test.py").write_text(COMMAND)
    (bench.folder / "asgi.py").write_text(ASGI)
    for name in ("up", "apart", "far", "node", "many", "locked"):
        (bench.folder / name).mkdir()
    settings = 'queue_calls = 1000000\nqueue_bytes = "1 GB"\nqueue_total_calls = 1000000\nqueue_total_bytes = "4 GB"\nfreeze_after = "3s"\n'
    settings += f'egress_networks = ["{FAR_ADDRESS}/32"]\negress_bytes = "4 GB"\n'
    up = apart = far = many = locked = None
    try:
        bench.serve("hyper", [str(TARGET / "raw"), "PORT"], "/")
        bench.serve("uvicorn", [sys.executable, "-m", "uvicorn", "asgi:app", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error", "--port", "PORT"], "/")
        paused = subprocess.run(["docker", "run", "-d", "--network", "none", "pythonruntime", "sleep", "3600"], capture_output=True, text=True, check=True).stdout.strip()
        bench.raw["paused"] = (0, paused)
        bench.far()
        up = Platform(bench.folder / "up", settings=settings)
        apart = Platform(bench.folder / "apart", roles=("db", "api", "worker"))
        front = free_port()
        far = Platform(bench.folder / "far", settings=f'nodes = "127.0.0.1:{front}"\nname = "control"\n')
        far.join(bench.folder / "node", front)
        many = Platform(bench.folder / "many")
        locked = Platform(bench.folder / "locked")
        prepare(bench, up, apart, far, many, locked)
        steps = {"warm": lambda turn: bench.warm(up), "keys": lambda turn: bench.keys(up, locked), "namespaces": lambda turn: bench.namespaces(locked), "streams": lambda turn: bench.streams(up), "egress": lambda turn: bench.egress(up), "node": lambda turn: bench.node(apart, far), "download": lambda turn: bench.download(far, turn), "decision": lambda turn: bench.decision(), "cold": lambda turn: bench.cold(up, turn), "burst": lambda turn: bench.burst(up),
                 "thaw": lambda turn: bench.thaw(up), "accepts": lambda turn: bench.accepts(up), "deploy": lambda turn: bench.deploy(up, turn),
                 "idle": lambda turn: bench.idle(up, turn), "many": lambda turn: bench.many(up, many)}
        # What waits beforehand is made while nothing is measured.
        time.sleep(15)
        print(f"waiting beforehand: {up.pool()}", flush=True)
        for turn in range(ROUNDS):
            for name, step in steps.items():
                if ONLY and name not in ONLY.split(","):
                    continue
                step(turn)
            print(f"round {turn + 1} of {ROUNDS}", flush=True)
        prototype(up)
    finally:
        for platform in (up, apart, far, many, locked):
            if platform:
                platform.stop()
        for process in bench.started:
            process.kill()
        bench.far_ends()
        if "paused" in bench.raw:
            subprocess.run(["docker", "rm", "-f", bench.raw["paused"][1]], capture_output=True)
        shutil.rmtree(bench.folder, ignore_errors=True)
        # What was measured before something went wrong was measured.
        report([row.result() for row in bench.rows.values() if row.ours])


def mark(r):
    better = (lambda a, b: a >= b) if r["higher"] else (lambda a, b: a <= b)
    if r["must"] is None:
        return "–"
    return "aim" if better(r["ratio"], r["aim"]) else "must" if better(r["ratio"], r["must"]) else "missed"


def report(results):
    print("\n| row | ratio | must | aim | | ours | raw limit | unit | CPU-µs | MB |\n|---|---|---|---|---|---|---|---|---|---|")
    dash = lambda value: "–" if value is None else value
    for r in results:
        print(f"| {r['row']} | {r['ratio']} | {dash(r['must'])} | {dash(r['aim'])} | {mark(r)} | {r['ours']} | {r['limit']} | {r['unit']} | {dash(r['cpu_us'])} | {r['memory_mb']} |")
    if os.environ.get("BENCH_JSON"):
        Path(os.environ["BENCH_JSON"]).write_text(json.dumps([{key: value for key, value in r.items() if key != "higher"} for r in results], indent=1))


if __name__ == "__main__":
    main()
