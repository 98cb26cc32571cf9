#!/usr/bin/env python3
"""Measures a platform beside its raw limits, interleaved in one run, and prints ratios.

    FAENA_BIN=… bench.py         ROUNDS=7 by default; needs Docker and the image pythonruntime (`make bench`)

Each round measures every row once, so that a machine that slows down slows all of them. What is printed is the median
over the rounds. The platform's CPU time and memory come from /proc, its instances not included.
"""
import http.client
import io
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS", "7"))
CALLS = int(os.environ.get("CALLS", "8"))
GETS = 200
CLIENTS = 32
HELLO = "import json, sys\nprint('Hello, ' + json.load(sys.stdin)['name'])\n"
TICK = os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Platform:
    def __init__(self, folder):
        self.port = free_port()
        self.log = open(folder / "log", "ab")
        command = [os.environ["FAENA_BIN"], "up", "--listen", f"127.0.0.1:{self.port}", "--data", str(folder / "data"), "--log", "warn"]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.until(lambda: self.request("GET", "/readyz")[0] == 200)

    def until(self, probe, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if probe():
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise SystemExit("the platform did not get there in time")

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, method, path, body=None, headers=None, connection=None):
        c = connection or self.connect()
        c.request(method, path, body, headers or {})
        r = c.getresponse()
        data = r.read()
        if connection is None:
            c.close()
        return r.status, data

    def post(self, path, value, connection=None):
        return self.request("POST", path, json.dumps(value), {"Content-Type": "application/json"}, connection)

    def function(self, name, **runtime):
        runtime = {"name": name, "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 test.py", **runtime}
        assert self.post("/registerRuntime", runtime)[0] == 201
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as z:
            z.writestr("test.py", HELLO)
        edge = "bench-edge"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="module"; filename="x.zip"\r\n\r\n'.encode()
        body = head + packed.getvalue() + f"\r\n--{edge}--\r\n".encode()
        status, text = self.request("POST", f"/registerFunction/{name}/{name}", body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
        assert status == 201, text

    def cpu_us(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) * 1_000_000 / TICK

    def memory_mb(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def timed(action, count):
    """Milliseconds of each of `count` actions."""
    spans = []
    for _ in range(count):
        begun = time.perf_counter()
        action()
        spans.append((time.perf_counter() - begun) * 1000)
    return spans


def percentile(spans, share):
    return sorted(spans)[min(len(spans) - 1, int(len(spans) * share))]


class Row:
    """One measurement and its raw limit, round by round."""

    def __init__(self, name, unit):
        self.name, self.unit = name, unit
        self.ours, self.limit, self.all, self.cpu, self.memory = [], [], [], [], 0.0

    def result(self):
        ours, limit = statistics.median(self.ours), statistics.median(self.limit)
        cpu = round(statistics.median(self.cpu)) if self.cpu else None
        return {"row": self.name, "ratio": round(ours / limit, 3), "must": None, "aim": None, "ours": round(ours, 3), "limit": round(limit, 3),
                "p99": round(percentile(self.all, 0.99), 3) if self.all else None, "unit": self.unit, "cpu_us": cpu, "memory_mb": round(self.memory, 1)}


def calls(platform, row, name, limit):
    body, connection = json.dumps({"name": "Ada"}), platform.connect()

    def call():
        status, text = platform.request("POST", f"/f/{name}", body, {"Content-Type": "application/json"}, connection)
        assert status == 200 and text == b"Hello, Ada", (status, text)

    before = platform.cpu_us()
    spans = timed(call, CALLS)
    row.cpu.append((platform.cpu_us() - before) / CALLS)
    row.ours.append(statistics.median(spans))
    row.all += spans
    row.limit.append(limit)
    row.memory = platform.memory_mb()


def gets(platform, row, limit):
    connection = platform.connect()
    before = platform.cpu_us()
    spans = timed(lambda: platform.request("GET", "/healthz", connection=connection), GETS)
    row.cpu.append((platform.cpu_us() - before) / GETS)
    row.ours.append(statistics.median(spans))
    row.all += spans
    row.limit.append(limit)
    row.memory = platform.memory_mb()


RAW_SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", PORT))
while True:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n")
"""


def raw_get():
    """A GET of a socket that answers with three bytes without looking, in a process of its own."""
    port = free_port()
    server = subprocess.Popen(["python3", "-c", RAW_SERVER.replace("PORT", str(port))])
    try:
        connection, end = None, time.monotonic() + 10
        while connection is None and time.monotonic() < end:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.connect()
            except OSError:
                connection = None
                time.sleep(0.02)

        def get():
            connection.request("GET", "/")
            connection.getresponse().read()

        return statistics.median(timed(get, GETS))
    finally:
        server.kill()
        server.wait()


LOAD = """
local body = '{"funcName": "%s", "params": {"name": "Ada"}}'
local turn = 0
request = function()
    turn = turn + 1
    local name = "never" .. (FIRST + turn % 3)
    return wrk.format("POST", "/invokeFunction", {["Content-Type"] = "application/json"}, body:format(name))
end
response = function(status) if status ~= 202 then wrk.thread:stop() end end
"""


def accepts(platform, row, folder, turn, limit):
    """Accepted calls of functions whose builds never end, so that nothing but accepting is measured."""
    script = folder / "load.lua"
    script.write_text(LOAD.replace("FIRST", str(turn * 3)))
    before = platform.cpu_us()
    out = subprocess.run(["wrk", "-t1", f"-c{CLIENTS}", "-d1s", "-s", str(script), f"http://127.0.0.1:{platform.port}/"], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in out, out
    done, rate = int(out.split(" requests in ")[0].split()[-1]), float(out.split("Requests/sec:")[1].split()[0])
    row.ours.append(rate)
    row.cpu.append((platform.cpu_us() - before) / done)
    row.limit.append(limit)
    row.memory = platform.memory_mb()


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


def once(command):
    def run():
        out = subprocess.run(command, input=b'{"name": "Ada"}', capture_output=True, check=True).stdout
        assert out == b"Hello, Ada\n", out
    return run


def main():
    folder = Path(tempfile.mkdtemp(prefix="faena-bench-"))
    (folder / "code").mkdir()
    (folder / "code" / "test.py").write_text(HELLO)
    platform = Platform(folder)
    rows = {
        "sandbox": Row("call without a warm instance, sandbox, Python hello: p50 ÷ `docker run` of the same", "ms"),
        "bare": Row("call without a warm instance, sandbox, Python hello: p50 ÷ the bare process", "ms"),
        "docker": Row("call without a warm instance, docker, Python hello: p50 ÷ `docker run` of the same", "ms"),
        "get": Row("no-op GET, keep-alive, c=1: p50 ÷ a socket that answers blindly", "ms"),
        "accepts": Row(f"durable accepts/s, c={CLIENTS} ÷ one-row commits/s of SQLite", "1/s"),
    }
    try:
        platform.function("sandbox", engine="sandbox")
        platform.function("docker", engine="docker")
        for number in range(ROUNDS * 3):
            platform.function(f"never{number}", engine="sandbox", dependencies="sleep 3600")
        for name in ("sandbox", "docker"):
            platform.until(lambda name=name: json.loads(platform.request("GET", f"/function/{name}")[1])["status"] == "READY")
        docker_run = once(["docker", "run", "--rm", "-i", "--network", "none", "-v", f"{folder}/code:/ws:ro", "-w", "/ws", "pythonruntime", "python3", "test.py"])
        bare = once(["/usr/bin/python3", str(folder / "code" / "test.py")])
        for turn in range(ROUNDS):
            run_ms, bare_ms = statistics.median(timed(docker_run, 3)), statistics.median(timed(bare, CALLS))
            calls(platform, rows["sandbox"], "sandbox", run_ms)
            calls(platform, rows["bare"], "sandbox", bare_ms)
            calls(platform, rows["docker"], "docker", run_ms)
            gets(platform, rows["get"], raw_get())
            accepts(platform, rows["accepts"], folder, turn, one_row_commits(folder))
            print(f"round {turn + 1} of {ROUNDS}", flush=True)
    finally:
        platform.stop()
        shutil.rmtree(folder, ignore_errors=True)
    results = [row.result() for row in rows.values()]
    print("\n| row | ratio | ours | p99 | raw limit | unit | CPU-µs | MB |\n|---|---|---|---|---|---|---|---|")
    for r in results:
        print(f"| {r['row']} | {r['ratio']} | {r['ours']} | {r['p99'] or '–'} | {r['limit']} | {r['unit']} | {r['cpu_us']} | {r['memory_mb']} |")
    if os.environ.get("BENCH_JSON"):
        Path(os.environ["BENCH_JSON"]).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
