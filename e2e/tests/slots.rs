//! Slots bound the instances that work, on every call path, and no function keeps all others waiting.

use std::thread;
use std::time::Duration;

use faena_test_support::{Engine, Platform, Role, eventually, zip};
use serde_json::{Value, json};

/// A platform whose worker has this many slots.
fn with_slots(slots: u32) -> Platform {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), format!("slots = {slots}\ngrace = \"200ms\"\n")).expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform
}

/// Answers a call when sixteen are there.
const MEETING: &str = r#"
import http.server, os, threading

meeting = threading.Barrier(16)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        meeting.wait()
        self.send_response(200)
        self.end_headers()

class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64

Server(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[test]
fn calls_that_share_an_instance_share_its_slot() {
    let mut platform = with_slots(2);
    let runtime =
        json!({"name": "web", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 server.py"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let manifest = b"contract = \"http\"\nparallel = 16\n[limits]\ntimeout = \"1m\"\n";
    let archive = zip(&[("server.py", MEETING.as_bytes()), ("faena.toml", manifest)]);
    assert_eq!(platform.upload("web", "web", &archive).status, 201);
    platform.built("web");
    let queued: Vec<i64> = (0..16).map(|n| platform.invoke(&json!({"funcName": "web", "params": n}))).collect();
    for num in queued {
        assert_eq!(platform.ended(num)["status"], "DONE", "sixteen met in one instance");
    }
    let waited =
        |n| platform.send("POST", "/invokeFunction", &PREFER_WAIT, &body(&json!({"funcName": "web", "params": n})));
    thread::scope(|scope| {
        let calls: Vec<_> = (0..16).map(|n| scope.spawn(move || waited(n))).collect();
        for call in calls {
            let reply = call.join().expect("a call");
            assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("DONE")), "{}", reply.text());
        }
    });
    assert!(platform.stop());
}

const PREFER_WAIT: [(&str, &str); 2] = [("Content-Type", "application/json"), ("Prefer", "wait=60")];

fn body(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// Six calls of a function never end by themselves; a call of another function is served on each path all the same.
fn others_are_served(path: &'static str, request: &Value, contract: &str) {
    let mut platform = with_slots(2);
    let run = "python3 -c 'import time; time.sleep(600)'";
    let runtime = json!({"name": "long", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": run});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let manifest = format!("contract = \"{contract}\"\n[limits]\ntimeout = \"10m\"\n");
    let handler = b"import time\n\ndef handle(params, context):\n    time.sleep(600)\n";
    let archive = zip(&[("handler.py", &handler[..]), ("faena.toml", manifest.as_bytes())]);
    assert_eq!(platform.upload("long", "long", &archive).status, 201);
    platform.built("long");
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("short", "echo done");
    platform.built("short");

    for _ in 0..6 {
        let (port, request) = (platform.port, request.clone());
        // Those that are answered at their end are answered when the platform stops.
        thread::spawn(move || faena_test_support::post(port, path, &request));
    }
    eventually(Duration::from_secs(30), "all slots work", || {
        let pool = platform.get("/workers").json()[0]["pool"].clone();
        if pool["working"] == 2 { Ok(()) } else { Err(pool) }
    });
    let waited =
        platform.send("POST", "/invokeFunction", &PREFER_WAIT, &body(&json!({"funcName": "short", "params": {}})));
    assert_eq!((waited.status, &waited.json()["status"]), (200, &json!("DONE")), "{}", waited.text());
    assert_eq!(platform.send("POST", "/f/short", &[], b"").status, 200);
    let queued = platform.invoke(&json!({"funcName": "short", "params": {}}));
    assert_eq!(platform.ended(queued)["status"], "DONE");
    assert!(platform.stop());
}

#[test]
fn direct_calls_without_an_end_keep_no_other_function_waiting() {
    others_are_served("/f/long", &json!({}), "handler");
}

#[test]
fn sync_calls_without_an_end_keep_no_other_function_waiting() {
    others_are_served("/f/long", &json!({}), "command");
}

#[test]
fn queued_calls_without_an_end_keep_no_other_function_waiting() {
    others_are_served("/invokeFunction", &json!({"funcName": "long", "params": {}}), "command");
}

/// A call that is cancelled retires its instance; the calls beside it keep the slot, and can be cancelled as well.
#[test]
fn calls_of_a_retired_instance_are_still_known() {
    let mut platform = with_slots(1);
    let runtime = json!({"name": "py", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "-"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let manifest = b"contract = \"handler\"\nparallel = 4\n[limits]\ntimeout = \"10m\"\n";
    let handler = b"import time\n\ndef handle(params, context):\n    time.sleep(600)\n";
    let archive = zip(&[("handler.py", &handler[..]), ("faena.toml", manifest)]);
    assert_eq!(platform.upload("py", "sleeps", &archive).status, 201);
    platform.built("sleeps");
    let port = platform.port;
    let clients: Vec<_> = (0..3)
        .map(|_| thread::spawn(move || faena_test_support::request(port, "POST", "/f/sleeps", &[], b"").status))
        .collect();
    (1..=3).for_each(|num| platform.running(num));
    for num in 1..=3 {
        assert_eq!(platform.send("DELETE", &format!("/call/{num}"), &[], b"").status, 200);
        assert_eq!(platform.ended(num)["status"], "CANCELLED");
    }
    for client in clients {
        assert_eq!(client.join().expect("a client"), 409);
    }
    assert!(platform.stop());
}
