//! A function is an ordinary program of its language: what works in a script works in a handler and in a command, and what
//! goes wrong is told in the function's own terms.

use std::time::Duration;

use faena_test_support::{Engine, Platform, Reply, eventually, tar_gz, zip};
use serde_json::{Value, json};

const HANDLER: &str = "contract = \"handler\"\n";

/// Registers a function of some files; its first call makes it.
fn register(platform: &Platform, name: &str, image: &str, run: &str, files: &[(&str, &str)]) {
    register_on(platform, Engine::Sandbox, name, image, run, files);
}

fn register_on(platform: &Platform, engine: Engine, name: &str, image: &str, run: &str, files: &[(&str, &str)]) {
    let runtime =
        json!({"name": name, "image": image, "path": "/ws", "dependencies": "", "run": run, "engine": engine.name()});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    let reply = platform.upload(name, name, &zip(&files));
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(platform.built(name)["status"], "READY");
}

fn python(platform: &Platform, name: &str, code: &str) {
    register(platform, name, "pythonruntime", "python3 x", &[("handler.py", code), ("faena.toml", HANDLER)]);
}

fn node(platform: &Platform, name: &str, code: &str) {
    register(platform, name, "noderuntime", "node x", &[("handler.mjs", code), ("faena.toml", HANDLER)]);
}

fn call(platform: &Platform, name: &str) -> Reply {
    platform.post(&format!("/f/{name}"), &json!({"i": 7}))
}

#[track_caller]
fn answers(platform: &Platform, name: &str, text: &str) {
    let reply = call(platform, name);
    assert_eq!((reply.status, reply.text().as_str()), (200, text), "{name}");
}

/// The call of a reply, once it is recorded.
fn record(platform: &Platform, reply: &Reply) -> Value {
    let num = reply.header("faena-call").expect("a number").to_owned();
    eventually(Duration::from_secs(10), "the record of a call", || {
        let call = platform.get(&format!("/call/{num}"));
        if call.status == 200 && call.json().get("endedAt").is_some() { Ok(call.json()) } else { Err(call.text()) }
    })
}

const WORKERS: &str = r#"
import concurrent.futures, multiprocessing

def double(n):
    return 2 * n

def handle(params, context):
    out = []
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            out.append(pool.map(double, [1, 2]))
        with concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            out.append(list(pool.map(double, [3])))
    return out
"#;

#[test]
fn every_start_method_of_multiprocessing_works() {
    let mut platform = Platform::start();
    let toml = "contract = \"handler\"\n[limits]\ntimeout = \"60s\"\nmemory = \"512 MB\"\n";
    for preload in ["runtime", "none"] {
        let toml = format!("preload = \"{preload}\"\n{toml}");
        register(&platform, preload, "pythonruntime", "python3 x", &[("handler.py", WORKERS), ("faena.toml", &toml)]);
        answers(&platform, preload, "[[2,4],[6],[2,4],[6],[2,4],[6]]");
    }
    assert!(platform.stop());
}

#[test]
fn a_handler_in_a_package_imports_its_neighbours() {
    let mut platform = Platform::start();
    let toml = "contract = \"handler\"\nhandler = \"src/app/a.py:go\"\n";
    let files = [
        (
            "src/app/a.py",
            "from .b import one\nfrom ..c import two\nimport b\ndef go(p):\n    return [one, two, b.one, __package__]\n",
        ),
        ("src/app/b.py", "one = 1\n"),
        ("src/c.py", "two = 2\n"),
        ("faena.toml", toml),
    ];
    register(&platform, "package", "pythonruntime", "python3 x", &files);
    answers(&platform, "package", r#"[1,2,1,"src.app"]"#);
    assert!(platform.stop());
}

#[test]
fn a_python_handler_finds_what_a_script_finds() {
    let mut platform = Platform::start();
    for (name, code, text) in [
        ("builtins", "def handle(p, c):\n    return [callable(f) for f in (exit, quit, help)]\n", "[true,true,true]"),
        ("markup", "class M(str):\n    pass\ndef handle(p, c):\n    return M('<b>')\n", "<b>"),
        ("alone", "def handle(params):\n    return params\n", r#"{"i":7}"#),
        ("default", "def handle(params, scale=2):\n    return 'context' if scale != 2 else 'no'\n", "context"),
        ("nothing", "def handle():\n    return 1\n", "1"),
        (
            "wrapped",
            "import functools\ndef w(f):\n    @functools.wraps(f)\n    def g(*a):\n        return f(*a)\n    return g\n@w\ndef handle(p):\n    return 2\n",
            "2",
        ),
        ("bytes", "def handle(p, c):\n    return memoryview(b'abc')\n", "abc"),
        (
            "aws",
            "def handle(p, c):\n    return [c.function_name, c.memory_limit_in_mb, c.aws_request_id == str(c.call), c.get_remaining_time_in_millis() > 0]\n",
            r#"["aws","256",true,true]"#,
        ),
        ("closed", "import sys\ndef handle(p, c):\n    sys.stdout.close()\n    return 1\n", "1"),
        ("replaced", "import sys\ndef handle(p, c):\n    sys.stdout = None\n    return 1\n", "1"),
        (
            "body",
            "def handle(p, c):\n    return [c.body.decode(), c.request.method, c.request.path]\n",
            r#"["{\"i\":7}","POST","/"]"#,
        ),
        (
            "stdin",
            "import subprocess, sys\ndef handle(p, c):\n    return sys.stdin.read() + subprocess.run(['cat'], stdout=-1).stdout.decode() + '|'\n",
            "|",
        ),
    ] {
        python(&platform, name, code);
        answers(&platform, name, text);
        // What closes its output cannot close it again, as in any program.
        if name != "closed" {
            answers(&platform, name, text);
        }
    }
    assert!(platform.stop());
}

#[test]
fn a_node_handler_finds_what_a_script_finds() {
    let mut platform = Platform::start();
    for (name, code, text) in [
        ("alone", "export function handle(params, more = {}) { return [params, more]; }\n", r#"[{"i":7},{}]"#),
        ("bytes", "export function handle() { return new Uint8Array([97, 98]); }\n", "ab"),
        ("buffer", "export function handle() { return Buffer.from('xyz').subarray(1); }\n", "yz"),
        (
            "aws",
            "export function handle(p, c) { return [c.functionName, c.memoryLimitInMB, c.awsRequestId === String(c.call), c.getRemainingTimeInMillis() > 0]; }\n",
            r#"["aws","256",true,true]"#,
        ),
        (
            "stdin",
            "import fs from 'node:fs';\nexport function handle(p, c) { return [fs.readFileSync(0, 'utf8').length, String(process.stdin.isTTY)]; }\n",
            r#"[0,"undefined"]"#,
        ),
        (
            "body",
            "export function handle(p, c) { return [c.body.toString(), c.request.method, c.request.path]; }\n",
            r#"["{\"i\":7}","POST","/"]"#,
        ),
        ("only", "export default () => 'default';\n", "default"),
    ] {
        node(&platform, name, code);
        answers(&platform, name, text);
    }
    let common = [
        (
            "handler.cjs",
            "const m = require('tool'); exports.handle = async () => [m.name, (await import('./b.mjs')).b];\n",
        ),
        (
            "b.mjs",
            "import { createRequire } from 'node:module';\nimport tool from 'tool';\nexport const b = tool.name + createRequire(import.meta.url)('./c.cjs');\n",
        ),
        ("c.cjs", "module.exports = 3;\n"),
        ("node_modules/tool/index.js", "exports.name = 'tool';\n"),
        ("faena.toml", HANDLER),
    ];
    register(&platform, "common", "noderuntime", "node x", &common);
    answers(&platform, "common", r#"["tool","tool3"]"#);
    assert!(platform.stop());
}

#[test]
fn a_reply_has_the_status_and_headers_that_the_handler_gives() {
    let mut platform = Platform::start();
    python(
        &platform,
        "py",
        "import faena\ndef handle(p, c):\n    return faena.Response({'a': 1}, status=int(c.request.headers['x-status']), headers={'X-Mine': 'yes', 'Set-Cookie': 'a=b'})\n",
    );
    node(
        &platform,
        "js",
        "export function handle(p, c) { return new Response('{\"a\":1}', {status: Number(c.request.headers['x-status']), headers: {'X-Mine': 'yes', 'Content-Type': 'application/json'}}); }\n",
    );
    for name in ["py", "js"] {
        for (key, status) in [(None, "201"), (Some("k"), "404"), (None, "503")] {
            let headers = [("X-Status", status), ("Idempotency-Key", key.unwrap_or_default())];
            let headers = if key.is_some() { &headers[..] } else { &headers[..1] };
            let reply = platform.send("PUT", &format!("/f/{name}/x?y"), headers, b"raw");
            assert_eq!(reply.status.to_string(), status, "{name}: {}", reply.text());
            assert_eq!((reply.text().as_str(), reply.header("x-mine")), (r#"{"a":1}"#, Some("yes")), "{name} {status}");
            assert!(reply.header("set-cookie").is_none());
            let call = record(&platform, &reply);
            assert_eq!(call["responseStatus"].to_string(), status, "{call}");
            assert_eq!(call["status"], if status == "503" { "FAILED" } else { "DONE" });
        }
    }
    assert!(platform.stop());
}

#[test]
fn what_json_cannot_express_is_named_with_its_place() {
    let mut platform = Platform::start();
    for (name, result, word) in [
        ("set", "{'a': [1, {2}]}", "result['a'][1] is a set"),
        ("nan", "[float('nan')]", "result[0] is nan"),
        ("key", "{(1, 2): 3}", "result has a key that is a tuple"),
        ("object", "object()", "result is a object"),
    ] {
        python(&platform, name, &format!("def handle(p, c):\n    return {result}\n"));
        let reply = call(&platform, name);
        assert!(reply.status == 502 && reply.text().contains(word), "{name}: {}", reply.text());
    }
    for (name, result, word) in [
        ("bigint", "{a: [1n]}", "result.a[0] is a BigInt"),
        ("map", "{m: new Map()}", "result.m is a Map"),
        ("view", "[new Uint8Array(1)]", "result[0] is a Uint8Array"),
        ("thrown", "(() => { throw {code: 'E1', message: 'no such order'} })()", "E1: no such order"),
    ] {
        node(&platform, name, &format!("export function handle() {{ return {result}; }}\n"));
        let reply = call(&platform, name);
        assert!(reply.status == 502 && reply.text().contains(word), "{name}: {}", reply.text());
    }
    assert!(platform.stop());
}

#[test]
fn a_traceback_shows_the_users_frames_alone() {
    let mut platform = Platform::start();
    python(&platform, "py", "async def deep():\n    raise ValueError('no')\nasync def handle(p):\n    await deep()\n");
    register(
        &platform,
        "load",
        "pythonruntime",
        "python3 x",
        &[("handler.py", "def handle(p): pass\nimport nosuchmodule\n"), ("faena.toml", HANDLER)],
    );
    node(&platform, "js", "export function handle() { null.x; }\n");
    for (name, shown) in
        [("py", "/ws/handler.py\", line 2, in deep"), ("load", "/ws/handler.py\", line 2"), ("js", "/ws/handler.mjs:1")]
    {
        let reply = call(&platform, name);
        let text = reply.json()["hint"].as_str().unwrap_or_default().to_owned();
        assert_eq!(reply.status, 502, "{name}: {text}");
        assert!(text.contains(shown), "{name}: {text}");
        for hidden in ["_faena", "asyncio", "shims", "node.mjs", &platform.data().display().to_string()] {
            assert!(!text.contains(hidden), "{name} shows {hidden}: {text}");
        }
    }
    assert!(platform.stop());
}

#[test]
fn the_user_has_a_name_and_a_home_in_both_engines() {
    let mut platform = Platform::start();
    const CODE: &str = "import getpass, os, pwd, socket\nu = pwd.getpwuid(os.getuid())\nassert u.pw_name == getpass.getuser()\nassert os.access(u.pw_dir, os.W_OK)\nassert socket.gethostbyname(socket.gethostname()).startswith('127.')\nsocket.create_server(('::1', 0), family=socket.AF_INET6)\nprint(u.pw_name)\n";
    for engine in Engine::ALL {
        register_on(&platform, engine, engine.name(), "pythonruntime", "python3 main.py", &[("main.py", CODE)]);
        answers(&platform, engine.name(), "function");
    }
    assert!(platform.stop());
}

#[test]
fn interfaces_can_be_listed_and_nothing_else_of_netlink() {
    let mut platform = Platform::start();
    const CODE: &str = r#"
import socket
def refused(*arguments):
    try:
        socket.socket(*arguments)
    except OSError as error:
        return error.errno
assert [name for _, name in socket.if_nameindex()] == ["lo"]
NETLINK, ROUTE, AUDIT, SEQPACKET, DCCP = 16, 0, 9, 5, 6
print([refused(NETLINK, socket.SOCK_RAW, ROUTE), refused(NETLINK, socket.SOCK_RAW, AUDIT), refused(2, SEQPACKET), refused(10, DCCP), refused(2, 3), refused(17, 3), refused(1, SEQPACKET)])
"#;
    for engine in Engine::ALL {
        register_on(&platform, engine, engine.name(), "pythonruntime", "python3 main.py", &[("main.py", CODE)]);
        answers(&platform, engine.name(), "[None, 1, 1, 1, 1, 1, None]");
    }
    assert!(platform.stop());
}

#[test]
fn attempts_of_every_contract_record_what_they_used() {
    let mut platform = Platform::start();
    python(
        &platform,
        "handler",
        "def handle(p):\n    x = bytearray(40 << 20)\n    return sum(range(3_000_000)) and len(x)\n",
    );
    const SERVER: &str = "import http.server, os\nclass H(http.server.BaseHTTPRequestHandler):\n    def do_GET(self):\n        x = bytearray(40 << 20)\n        sum(range(3_000_000))\n        self.send_response(200)\n        self.end_headers()\nhttp.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";
    register(
        &platform,
        "http",
        "pythonruntime",
        "python3 s.py",
        &[("s.py", SERVER), ("faena.toml", "contract = \"http\"\n")],
    );
    for name in ["handler", "http"] {
        // The first reading of an instance is compared with nothing.
        platform.get(&format!("/f/{name}"));
        let call = record(&platform, &platform.get(&format!("/f/{name}")));
        let attempt = &call["attempts"][0];
        assert!(attempt["peakMemoryBytes"].as_u64().is_some_and(|bytes| bytes > 40 << 20), "{name}: {attempt}");
        assert!(attempt["cpuMs"].as_f64().is_some_and(|ms| ms > 0.0), "{name}: {attempt}");
    }
    assert!(platform.stop());
}

#[test]
fn a_failed_command_leaves_its_standard_output_in_its_log() {
    let mut platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    for (name, code) in [("exit", "echo progress; echo why >&2; exit 1"), ("signal", "echo progress; kill -9 $$")] {
        platform.script(name, code);
        let headers = [("Content-Type", "application/json"), ("Prefer", "wait=60")];
        let body = json!({"funcName": name, "params": {}}).to_string();
        let call = platform.send("POST", "/invokeFunction", &headers, body.as_bytes()).json();
        assert_eq!(call["status"], "FAILED", "{call}");
        let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
        assert!(log.starts_with("progress\n"), "{name}: {log:?}");
    }
    assert!(platform.stop());
}

#[test]
fn a_server_that_listens_nowhere_or_elsewhere_is_told_so() {
    let mut platform = Platform::start();
    let toml = "contract = \"http\"\n";
    const ELSEWHERE: &str = "import socket, sys, time\nprint('starting', file=sys.stderr, flush=True)\ns = socket.create_server(('127.0.0.1', 3000))\nwhile True: time.sleep(0.01)\n";
    const NOWHERE: &str = "import time\ntime.sleep(1000)\n";
    for (name, code, words) in [
        ("elsewhere", ELSEWHERE, ["nothing listens on 127.0.0.1:8080 ($PORT)", "127.0.0.1:3000", "starting"]),
        ("nowhere", NOWHERE, ["nothing listens on 127.0.0.1:8080 ($PORT)", "no CPU for 5 s", ""]),
    ] {
        register(&platform, name, "pythonruntime", "python3 s.py", &[("s.py", code), ("faena.toml", toml)]);
        let reply = platform.get(&format!("/f/{name}"));
        let text = reply.text();
        assert!(reply.status == 502 && words.iter().all(|word| text.contains(word)), "{name}: {} {text}", reply.status);
    }
    assert!(platform.stop());
}

const CRASHING: &str = r#"
import http.server, os, threading

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/crash":
            os._exit(3)
        body = f"{self.command} {self.headers.get('content-length')}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_POST = do_HEAD = do_GET

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[test]
fn a_server_that_crashes_fails_only_the_calls_that_it_had() {
    let mut platform = Platform::start();
    let files = [("s.py", CRASHING), ("faena.toml", "contract = \"http\"\n")];
    register(&platform, "web", "pythonruntime", "python3 s.py", &files);
    assert_eq!(platform.send("POST", "/f/web/x", &[], b"").text(), "POST 0");
    let head = platform.send("HEAD", "/f/web/x", &[], b"");
    assert_eq!((head.status, head.header("content-length")), (200, Some("9")));
    for round in 0..5 {
        assert_eq!(platform.get("/f/web/crash").status, 502);
        for next in 0..20 {
            let reply = platform.send("POST", "/f/web/x", &[], b"");
            assert_eq!(reply.status, 200, "round {round}, call {next}: {}", reply.text());
        }
    }
    assert!(platform.stop());
}

#[test]
fn one_folder_around_everything_is_looked_through_unless_it_is_named() {
    let mut platform = Platform::start();
    let main: &[u8] = b"import os\nprint(sorted(os.listdir('.')), __file__)\n";
    for (name, run, root) in
        [("through", "python3 main.py", json!("fn/")), ("named", "python3 fn/main.py", Value::Null)]
    {
        let runtime = json!({"name": name, "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": run, "engine": "sandbox"});
        assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
        let archive = tar_gz(&[
            ("fn/main.py", main),
            ("fn/faena.toml", b"retries = 1\n"),
            ("__MACOSX/fn/._main.py", b"x"),
            (".DS_Store", b"x"),
        ]);
        let reply = platform.upload(name, name, &archive);
        assert_eq!((reply.status, &reply.json()["root"]), (201, &root), "{}", reply.text());
        assert_eq!(reply.json()["manifest"]["retries"], 1);
        assert_eq!(platform.built(name)["status"], "READY");
        let reply = call(&platform, name);
        assert!(reply.status == 200 && reply.text().contains("main.py"), "{}", reply.text());
    }
    assert!(platform.stop());
}

/// Whether the platform may set a floor for others: CAP_SYS_RESOURCE (capability.h), which a container may lack.
fn may_set_floors() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(effective.trim(), 16).expect("a mask") >> CAP_SYS_RESOURCE & 1 == 1
}

#[test]
fn a_process_is_killed_for_memory_before_its_agent_and_the_rest_of_the_host() {
    let mut platform = Platform::start();
    const CODE: &str = "import os\ndef write(n):\n    try:\n        os.write(os.open('/proc/self/oom_score_adj', os.O_WRONLY), str(n).encode())\n        return 'done'\n    except OSError as e:\n        return type(e).__name__\nscore = lambda p: open(f'/proc/{p}/oom_score_adj').read().strip()\nprint(score(1), score('self'), write(950), write(0), write(-500))\n";
    let floor = if may_set_floors() { "PermissionError" } else { "done" };
    for engine in Engine::ALL {
        register_on(&platform, engine, engine.name(), "pythonruntime", "python3 main.py", &[("main.py", CODE)]);
        answers(&platform, engine.name(), &format!("900 1000 done {floor} PermissionError"));
    }
    assert!(platform.stop());
}

#[test]
fn builds_leave_explicit_destinations_alone_and_keep_files_of_any_mode() {
    let mut platform = Platform::start();
    let main = "import glob, sys\nsys.path[:0] = ['lib', *glob.glob('px/**/*-packages', recursive=True)]\nimport six\nprint(six.__file__.split('/')[2])\n";
    for (name, dependencies, place) in [
        ("plain", "pip3 install -r requirements.txt", ".local"),
        ("target", "pip3 install -t lib -r requirements.txt", "lib"),
        ("prefix", "pip3 install --prefix px -r requirements.txt", "px"),
        ("venv", "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt", ".venv"),
    ] {
        let runtime = json!({"name": name, "image": "pythonruntime", "path": "/ws", "dependencies": dependencies, "run": "python3 main.py", "engine": "sandbox"});
        assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
        let archive = zip(&[("main.py", main.as_bytes()), ("requirements.txt", b"six==1.16.0\n")]);
        assert_eq!(platform.upload(name, name, &archive).status, 201);
        let built = platform.built(name);
        assert_eq!(built["status"], "READY", "{name}: {built}");
        answers(&platform, name, place);
    }
    let closed = json!({"name": "closed", "image": "bashruntime", "path": "/ws", "dependencies": "touch a:b 'c\\d' z && mkdir q && chmod 000 z q", "run": "ls", "engine": "sandbox"});
    assert_eq!(platform.post("/registerRuntime", &closed).status, 201);
    assert_eq!(platform.upload("closed", "closed", &zip(&[("f", b"x")])).status, 201);
    let built = platform.built("closed");
    assert_eq!(built["status"], "READY", "{built}");
    answers(&platform, "closed", "a:b\nc\\d\nf\ninput.json\nq\nrequest.json\nz");
    assert!(platform.stop());
}
