//! Bodies that are no JSON, on the direct road: what each contract is given of them, and what is kept.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use faena_test_support::{Engine, Platform, Reply, eventually, zip};
use serde_json::{Value, json};

/// Answers with the body and its length, having looked at what came beside it.
const PYTHON: &str = r#"
import base64


def handle(params, context):
    body = base64.b64decode(params["bodyBase64"])
    assert (context.body or b"") == body, context.body
    assert list(params)[-1] == "bodyBase64"
    return {"method": params["method"], "path": params["path"], "query": params["query"], "bytes": len(body), "first": body[:4].hex()}
"#;

const NODE: &str = r#"
export function handle(params, context) {
  const body = Buffer.from(params.bodyBase64, "base64");
  if (Buffer.compare(context.body ?? Buffer.alloc(0), body)) throw new Error("another body");
  const { method, path, query } = params;
  return { method, path, query, bytes: body.length, first: body.toString("hex", 0, 4) };
}
"#;

const COMMAND: &str = r#"
import base64, json, sys

body = sys.stdin.buffer.read()
params = json.load(open("input.json"))
assert base64.b64decode(params.pop("bodyBase64")) == body
print(json.dumps({"method": params["method"], "path": params["path"], "query": params["query"], "bytes": len(body), "first": body[:4].hex()}))
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
    // Within the frame, beside it, and in the blob store.
    for length in [0, 1, 3000, 100_000, 3_000_000] {
        let body: Vec<u8> = (0..length).map(|n| [0xff, 0x00, b'a', b'"'][n % 4]).collect();
        let path = format!("/f/{name}/a%20b?c=d");
        let reply = platform.send("PUT", &path, &[("Content-Type", "application/octet-stream")], &body);
        let first: String = body.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let expected = json!({"method": "PUT", "path": "/a%20b", "query": "c=d", "bytes": length, "first": first});
        assert_eq!(told(&reply), expected, "{name}, {length} bytes");
        let call = kept(platform, &reply);
        let (params, sent) = (&call["params"], STANDARD.encode(&body));
        assert_eq!((&params["method"], &params["path"]), (&json!("PUT"), &json!("/a%20b")), "{name}, {length} bytes");
        assert!(params["bodyBase64"] == sent, "{name}: what is kept of {length} bytes is another body");
        let again = platform.send("POST", &format!("/call/{}/replay", call["callNum"]), &[], b"").json();
        let again = platform.ended(again["callNum"].as_i64().expect("a number"));
        let result = again["result"].as_str().and_then(|text| serde_json::from_str::<Value>(text).ok());
        assert_eq!(result, Some(expected), "{name}: the replay of {length} bytes: {}", again["error"]);
    }
    let listed = platform.get(&format!("/calls?funcName={name}")).json();
    let listed = listed.as_object().expect("calls");
    let is_cut =
        |call: &Value| call["paramsCut"] == true && call["params"].as_str().is_some_and(|text| text.len() < 1100);
    assert!(listed.values().filter(|call| is_cut(call)).count() >= 6, "a list shows whole bodies");
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
