//! Bodies that are no JSON, on the direct path: what each contract is given of them, and what is kept.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use faena_test_support::{Engine, Platform, Reply, eventually, zip};
use serde_json::{Value, json};

/// Answers with the request and the length of its body, having looked at the params beside it.
const PYTHON: &str = r#"
def handle(params, context):
    assert params == {"c": "d"}, params
    body, request = context.body or b"", context.request
    assert request.headers["content-type"] == "application/octet-stream", request.headers
    return {"method": request.method, "path": request.path, "query": request.query, "bytes": len(body), "first": body[:4].hex()}
"#;

const NODE: &str = r#"
export function handle(params, context) {
  if (JSON.stringify(params) !== '{"c":"d"}') throw new Error("other params");
  const body = Buffer.from(context.body ?? []);
  const { method, path, query, headers } = context.request;
  if (headers["content-type"] !== "application/octet-stream") throw new Error("other headers");
  return { method, path, query, bytes: body.length, first: body.toString("hex", 0, 4) };
}
"#;

const COMMAND: &str = r#"
import json, os, sys

body = sys.stdin.buffer.read()
params, request = json.load(open("input.json")), json.load(open("request.json"))
assert params == {"c": "d"}, params
body = b"" if json.dumps(params, separators=(",", ":")).encode() == body else body
env = os.environ
assert (env["REQUEST_METHOD"], env["PATH_INFO"], env["QUERY_STRING"]) == (request["method"], request["path"], request["query"])
assert env["CONTENT_TYPE"] == request["headers"]["content-type"]
print(json.dumps({"method": request["method"], "path": request["path"], "query": request["query"], "bytes": len(body), "first": body[:4].hex()}))
"#;

fn function(platform: &Platform, name: &str, (image, file, code): (&str, &str, &str), toml: &str) {
    let runtime = json!({"name": name, "image": image, "path": "/ws", "dependencies": "", "run": format!("python3 {file}"), "engine": Engine::Sandbox.name()});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let archive = zip(&[(file, code.as_bytes()), ("faena.toml", toml.as_bytes())]);
    assert_eq!(platform.upload(name, name, &archive).status, 201);
    assert_eq!(platform.built(name)["status"], "READY");
}

fn told(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// The call as it is kept, once it has ended.
fn kept(platform: &Platform, reply: &Reply) -> Value {
    let num = reply.header("faena-call").expect("a number").to_owned();
    eventually(Duration::from_secs(10), "the record of a call", || {
        let call = platform.get(&format!("/call/{num}"));
        if call.status == 200 && call.json()["status"] == "DONE" { Ok(call.json()) } else { Err(call.text()) }
    })
}

fn are_whole(platform: &Platform, name: &str) {
    // Within the frame and beside it; kept in the record and in the blob store.
    const BINARY: [u8; 4] = [0xff, 0x00, b'a', b'"'];
    const TEXT: [u8; 4] = *b"\0a\"b";
    for (length, bytes) in
        [(0, TEXT), (1, BINARY), (1, TEXT), (600, TEXT), (60_000, TEXT), (100_000, BINARY), (3_000_000, TEXT)]
    {
        let body: Vec<u8> = (0..length).map(|n| bytes[n % 4]).collect();
        let path = format!("/f/{name}/a%20b?c=d");
        let reply = platform.send("PUT", &path, &[("Content-Type", "application/octet-stream")], &body);
        let first: String = body.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let expected = json!({"method": "PUT", "path": "/a%20b", "query": "c=d", "bytes": length, "first": first});
        assert_eq!(told(&reply), expected, "{name}, {length} bytes");
        let call = kept(platform, &reply);
        let request = &call["request"];
        assert_eq!((&request["method"], &request["path"]), (&json!("PUT"), &json!("/a%20b")), "{name}, {length} bytes");
        assert_eq!(call["params"], json!({"c": "d"}), "{name}, {length} bytes");
        let sent = if length > 0 { json!(STANDARD.encode(&body)) } else { Value::Null };
        assert!(request["bodyBase64"] == sent, "{name}: what is kept of {length} bytes is another body");
        let again = platform.send("POST", &format!("/call/{}/replay", call["callNum"]), &[], b"").json();
        let again = platform.ended(again["callNum"].as_i64().expect("a number"));
        let result = again["result"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        assert_eq!(result, Some(expected), "{name}: the replay of {length} bytes: {}", again["error"]);
    }
    let listed = platform.get(&format!("/calls?funcName={name}")).json();
    let listed = listed.as_object().expect("calls");
    assert!(listed.values().all(|call| call["request"].get("bodyBase64").is_none()), "a list shows no bodies");
}

fn every_contract(platform: &mut Platform) {
    let handler = "contract = \"handler\"\n";
    function(platform, "py", ("pythonruntime", "handler.py", PYTHON), handler);
    are_whole(platform, "py");
    function(platform, "together", ("pythonruntime", "handler.py", PYTHON), "contract = \"handler\"\nparallel = 4\n");
    are_whole(platform, "together");
    function(platform, "forks", ("pythonruntime", "handler.py", PYTHON), "contract = \"handler\"\nreuse = \"fork\"\n");
    are_whole(platform, "forks");
    function(platform, "js", ("noderuntime", "handler.mjs", NODE), handler);
    are_whole(platform, "js");
    function(platform, "command", ("pythonruntime", "main.py", COMMAND), "");
    are_whole(platform, "command");
    assert!(platform.stop());
}

#[test]
fn a_body_reaches_every_contract_whole_and_is_kept() {
    every_contract(&mut Platform::start());
}

#[test]
fn a_body_reaches_a_worker_in_another_process() {
    every_contract(&mut Platform::start_apart());
}

/// As JSON, which messages are, such bodies are six times as long.
#[test]
fn calls_that_end_together_are_all_kept() {
    let mut platform = Platform::start();
    function(&platform, "many", ("pythonruntime", "handler.py", PYTHON), "contract = \"handler\"\nparallel = 16\n");
    let body = vec![0; 64_000];
    let send = || platform.send("POST", "/f/many?c=d", &[("Content-Type", "application/octet-stream")], &body);
    send();
    let replies: Vec<Reply> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..32).map(|_| scope.spawn(send)).collect();
        calls.into_iter().map(|call| call.join().expect("a call")).collect()
    });
    for reply in &replies {
        assert!(kept(&platform, reply)["request"]["bodyBase64"] == STANDARD.encode(&body));
    }
    assert!(platform.stop());
}

/// A body reaches a handler by the scheduler too, and a function that speaks HTTP as it is.
#[test]
fn a_body_takes_every_call_path() {
    let mut platform = Platform::start();
    function(&platform, "py", ("pythonruntime", "handler.py", PYTHON), "contract = \"handler\"\n");
    const SERVER: &str = r#"
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body[::-1])

http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;
    function(&platform, "web", ("pythonruntime", "server.py", SERVER), "contract = \"http\"\n");
    for (key, body) in [("a", &b"\xff\x00"[..]), ("b", b"text"), ("c", b"")] {
        let headers = [("Content-Type", "application/octet-stream"), ("Idempotency-Key", key)];
        let told = told(&platform.send("POST", "/f/py?c=d", &headers, body));
        assert_eq!(told["bytes"], body.len(), "{told}");
        for headers in [&headers[..], &headers[..1]] {
            let reply = platform.send("POST", "/f/web", headers, body);
            let backwards: Vec<u8> = body.iter().rev().copied().collect();
            assert_eq!((reply.status, &reply.body[..]), (200, &backwards[..]));
        }
    }
    assert!(platform.stop());
}
