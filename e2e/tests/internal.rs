//! Functions call other functions of their namespace by name, without a credential.

use std::time::Duration;

use faena_test_support::{Engine, Platform, eventually, zip};
use serde_json::{Value, json};

/// Answers with what it was asked, in pieces; `/echo` answers with the body as it comes.
const SERVER: &str = r#"
import http from "node:http";
http.createServer((request, response) => {
  if (request.url.startsWith("/echo")) return request.pipe(response);
  response.writeHead(201, { "x-mine": "yes" });
  response.write(request.method + " " + request.url + "\n");
  response.end(JSON.stringify(request.headers));
}).listen(process.env.PORT, "127.0.0.1");
"#;

/// Calls others, as `what` says.
const CALLER: &str = r#"
import json, socket, threading, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def get(host, path="/", headers={}, data=None):
    try:
        with opener.open(urllib.request.Request(f"http://{host}{path}", data, headers), timeout=30) as reply:
            return [reply.status, reply.read().decode(), reply.headers["x-mine"]]
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode(), None]
    except urllib.error.URLError as error:
        return [0, type(error.reason).__name__, None]

def ask(params, context):
    return [get(host, params.get("path", "/")) for host in params["hosts"]]

def forge(params, context):
    forged = {"Faena-Caller": "root", "Faena-Call-Depth": "0", "faena_caller": "root", "Host": "other.faena.internal", "X-Mine": "1"}
    return get("server.faena.internal", "/function/server?x=1", forged)

def echo(params, context):
    connection = socket.create_connection(("server.faena.internal", 80), 30)
    body, got = b"x" * 20_000_000, bytearray()
    head = f"POST /echo HTTP/1.1\r\nHost: server\r\nContent-Length: {len(body)}\r\n\r\n"
    sender = threading.Thread(target=lambda: connection.sendall(head.encode() + body))
    sender.start()
    while data := connection.recv(1 << 20):
        got += data
    sender.join()
    return got.count(b"x") >= len(body)

def deeper(params, context):
    status, body, _ = get("deeper.faena.internal")
    return json.loads(body) + 1 if status == 200 else status

def waits(params, context):
    return get("sleeps.faena.internal")

def sleeps(params, context):
    import time
    time.sleep(60)
"#;

/// Makes a function of a handler of [`CALLER`], which may call these.
fn caller(platform: &Platform, name: &str, calls: &str, more: &str) {
    let toml = format!("contract = \"handler\"\nhandler = \"calls.py:{name}\"\n{more}\n[identity]\ncalls = {calls}\n");
    let reply = platform.upload("py", name, &zip(&[("calls.py", CALLER.as_bytes()), ("faena.toml", toml.as_bytes())]));
    assert_eq!(reply.status, 201, "{}", reply.text());
}

fn platform(engine: Engine) -> Platform {
    with_functions(Platform::start(), engine)
}

fn with_functions(platform: Platform, engine: Engine) -> Platform {
    for (name, image, run) in [("py", "pythonruntime", "python3 calls.py"), ("js", "noderuntime", "node server.mjs")] {
        let runtime = json!({"name": name, "image": image, "path": "/ws", "dependencies": "", "run": run, "engine": engine.name()});
        assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    }
    let toml: &[u8] = b"contract = \"http\"\n";
    let reply = platform.upload("js", "server", &zip(&[("server.mjs", SERVER.as_bytes()), ("faena.toml", toml)]));
    assert_eq!(reply.status, 201, "{}", reply.text());
    platform
}

fn result(platform: &Platform, name: &str, params: &Value) -> Value {
    let call = platform.call(name, params);
    assert_eq!(call["status"], "DONE", "{call}");
    let text = call["result"].as_str().expect("a result");
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

fn functions_call_functions(engine: Engine) {
    let platform = platform(engine);
    caller(&platform, "ask", r#"["server", "mail-*"]"#, "");
    let hosts = ["server.faena.internal", "mail-send.faena.internal", "deeper.faena.internal", "faena.internal"];
    let answers = result(&platform, "ask", &json!({"hosts": hosts}));
    assert_eq!((&answers[0][0], &answers[0][2]), (&json!(201), &json!("yes")), "{answers}");
    let (line, headers) = answers[0][1].as_str().and_then(|body| body.split_once('\n')).expect("two lines");
    let headers: Value = serde_json::from_str(headers).expect("headers");
    assert_eq!((line, &headers["faena-caller"], &headers["faena-call-depth"]), ("GET /", &json!("ask"), &json!("1")));
    // What is listed and is not there is told by the platform; what is not listed has no name.
    assert_eq!(answers[1][0], 404, "{answers}");
    assert_eq!((&answers[2], &answers[3]), (&json!([0, "gaierror", null]), &json!([0, "gaierror", null])));

    // The function that is called is the one that was dialled, and no route of the API is there.
    caller(&platform, "forge", r#"["server"]"#, "");
    let forged = result(&platform, "forge", &json!({}));
    assert_eq!(forged[0], 201, "{forged}");
    let (line, headers) = forged[1].as_str().and_then(|body| body.split_once('\n')).expect("two lines");
    let headers: Value = serde_json::from_str(headers).expect("headers");
    assert_eq!(
        (line, &headers["faena-caller"], &headers["x-mine"]),
        ("GET /function/server?x=1", &json!("forge"), &json!("1"))
    );
    assert!(!headers.to_string().contains("root"), "{headers}");
    let raw = platform.send("GET", "/f/server", &[("Faena-Caller", "root"), ("Faena-Call-Depth", "7")], b"");
    assert!(!raw.text().to_lowercase().contains("faena-caller"), "{}", raw.text());

    // Bodies stream both ways.
    caller(&platform, "echo", r#"["server"]"#, "[limits]\nmemory = \"512 MB\"");
    assert_eq!(result(&platform, "echo", &json!({})), true);

    // Eight levels, and no ninth.
    caller(&platform, "deeper", r#"["deeper"]"#, "");
    assert_eq!(result(&platform, "deeper", &json!({})), 508 + 8);
}

#[test]
fn a_function_carries_the_scopes_that_its_runtime_allows() {
    let mut platform = platform(Engine::Sandbox);
    let runtime = |scopes: Value| {
        json!({"name": "py", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 calls.py",
        "engine": "sandbox", "allow": {"scopes": scopes}})
    };
    let toml = "contract = \"handler\"\nhandler = \"calls.py:ask\"\n[identity]\ncalls = [\"server\"]\nscopes = [\"Robots\", \"invoke\"]\n";
    let archive = zip(&[("calls.py", CALLER.as_bytes()), ("faena.toml", toml.as_bytes())]);
    assert_eq!(platform.upload("py", "ask", &archive).problem(422), "scope_not_allowed");
    for wrong in ["admin", "deploy", "read", "a b"] {
        assert_eq!(
            platform.post("/registerRuntime", &runtime(json!([wrong]))).problem(400),
            "malformed_json",
            "{wrong}"
        );
    }
    assert_eq!(platform.post("/registerRuntime", &runtime(json!(["robots", "invoke"]))).status, 200);
    let admin = toml.replace("Robots", "admin");
    let archive_of_admin = zip(&[("calls.py", CALLER.as_bytes()), ("faena.toml", admin.as_bytes())]);
    assert_eq!(platform.upload("py", "ask", &archive_of_admin).problem(400), "malformed_manifest");
    assert_eq!(platform.upload("py", "ask", &archive).status, 201);
    let hosts = json!({"hosts": ["server.faena.internal"]});
    let answers = result(&platform, "ask", &hosts);
    let headers = answers[0][1].as_str().and_then(|body| body.split_once('\n')).expect("two lines").1;
    let headers: Value = serde_json::from_str(headers).expect("headers");
    assert_eq!(headers["faena-caller-scopes"], "invoke, robots", "{headers}");
    // A rule about a scope can deny; those about accounts do not concern functions.
    platform.lock();
    let rule = |scope: &str| json!({"id": "no", "scope": scope, "resource": {"type": "function", "name": "server", "endpoint": "*"}, "access": "DENIED", "priority": 9});
    let of_path = json!({"id": "path", "scope": "robots", "resource": {"type": "function", "name": "server", "endpoint": "/admin"}, "access": "DENIED", "priority": 1});
    assert_eq!(platform.post("/rule", &of_path).status, 201);
    for (path, status) in [("/", 201), ("/admin", 403), ("//admin", 400), ("/x/../admin", 400), ("/%2fadmin", 400)] {
        let params = json!({"hosts": ["server.faena.internal"], "path": path});
        assert_eq!(result(&platform, "ask", &params)[0][0], status, "{path}");
    }
    for (scope, status) in [("robots", 403), ("others", 201), ("*", 201), ("+", 201)] {
        assert!(matches!(platform.post("/rule", &rule(scope)).status, 200 | 201));
        assert_eq!(result(&platform, "ask", &hosts)[0][0], status, "{scope}");
    }
}

/// Whoever is called has no more time than the one that calls.
fn a_call_ends_with_the_one_that_made_it(engine: Engine) {
    let platform = platform(engine);
    caller(&platform, "sleeps", "[]", "");
    caller(&platform, "waits", r#"["sleeps"]"#, "[limits]\ntimeout = \"2s\"");
    let call = platform.call("waits", &json!({}));
    assert!(matches!(call["status"].as_str(), Some("TIMEOUT" | "DONE")), "{call}");
    // A call of the direct path is listed when it has ended.
    let called = eventually(Duration::from_secs(20), "the other call has ended", || {
        let calls = platform.get("/calls?funcName=sleeps").json();
        let first = calls.as_object().and_then(|calls| calls.values().next()).and_then(|call| call["callNum"].as_i64());
        first.ok_or(calls)
    });
    let called = platform.ended(called);
    assert!(matches!(called["status"].as_str(), Some("TIMEOUT" | "EXPIRED" | "CANCELLED")), "{called}");
    assert!(called["attempts"][0]["runMs"].as_f64() < Some(10_000.0), "{called}");
}

#[test]
fn functions_call_functions_in_the_sandbox() {
    functions_call_functions(Engine::Sandbox);
}

#[test]
fn functions_call_functions_in_docker() {
    functions_call_functions(Engine::Docker);
}

#[test]
fn a_call_ends_with_the_one_that_made_it_in_the_sandbox() {
    a_call_ends_with_the_one_that_made_it(Engine::Sandbox);
}

/// The roles are processes of their own, and names are those that functions may have.
#[test]
fn functions_call_functions_between_processes() {
    let platform = with_functions(Platform::start_apart(), Engine::Sandbox);
    let toml: &[u8] = b"contract = \"http\"\n";
    let reply = platform.upload("js", "my_server", &zip(&[("server.mjs", SERVER.as_bytes()), ("faena.toml", toml)]));
    assert_eq!(reply.status, 201, "{}", reply.text());
    caller(&platform, "ask", r#"["server", "my_*"]"#, "");
    let hosts = ["server.faena.internal", "my_server.faena.internal"];
    let answers = result(&platform, "ask", &json!({"hosts": hosts}));
    assert_eq!((&answers[0][0], &answers[1][0]), (&json!(201), &json!(201)), "{answers}");
}

/// Programs that take the proxy of their environment reach functions too.
#[test]
fn the_proxy_leads_to_functions() {
    let platform = platform(Engine::Sandbox);
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    let script: &[u8] = b"curl -sS -x http://127.0.0.1:3128 http://server.faena.internal/by-proxy | head -1
        curl -sS -o /dev/null -w '%{http_code}\\n' -x http://127.0.0.1:3128 http://deeper.faena.internal/";
    let toml: &[u8] = b"[identity]\ncalls = [\"server\"]\n";
    assert_eq!(platform.upload("shell", "curls", &zip(&[("run.sh", script), ("faena.toml", toml)])).status, 201);
    let call = platform.call("curls", &json!({}));
    assert_eq!(call["result"], "GET /by-proxy\n403", "{call}");
}
