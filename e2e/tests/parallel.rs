//! Many calls at once in one process: short ones one after the other, long ones beside each other.

use std::thread;
use std::time::Duration;

use faena_test_support::{Engine, Platform, eventually, zip};
use serde_json::{Value, json};

const HANDLER: &str = r#"
import sys
import threading

gates, meeting = {}, threading.Barrier(4)


def gate(name):
    return gates.setdefault(name, threading.Event())


def handle(params, context):
    what = params["do"]
    if what == "wait":
        gate(params["for"]).wait()
    elif what == "open":
        gate(params["for"]).set()
    elif what == "meet":
        meeting.wait()
    elif what == "exit":
        sys.exit(params["code"])
    return {"n": params.get("n")}
"#;

/// Calls on the direct path, all at once; what each answered.
fn at_once(platform: &Platform, calls: impl IntoIterator<Item = Value>) -> Vec<(u16, String)> {
    let send = |params: Value| {
        let reply = platform.post("/f/p", &params);
        (reply.status, reply.text())
    };
    thread::scope(|scope| {
        let calls: Vec<_> = calls.into_iter().map(|params| scope.spawn(move || send(params))).collect();
        calls.into_iter().map(|call| call.join().expect("a call")).collect()
    })
}

fn all_answered(replies: &[(u16, String)]) {
    assert!(replies.iter().all(|(status, _)| *status == 200), "{replies:?}");
}

fn python_answers_several_calls_at_once(engine: Engine, preload: &str) {
    let mut platform = Platform::start();
    let runtime = json!({"name": "p", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "-", "engine": engine.name()});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let function = |name: &str, more: &str| {
        let toml = format!("contract = \"handler\"\npreload = \"{preload}\"\n{more}[limits]\ntimeout = \"20s\"\n");
        let archive = zip(&[("handler.py", HANDLER.as_bytes()), ("faena.toml", toml.as_bytes())]);
        assert_eq!(platform.upload("p", name, &archive).status, 201);
        assert_eq!(platform.built(name)["status"], "READY");
    };
    if preload == "runtime" {
        // The call of another function has an interpreter held ready.
        function("first", "");
        assert_eq!(platform.post("/f/first", &json!({"do": "add"})).status, 200);
        eventually(Duration::from_secs(20), "what waits without code", || {
            let pool = platform.get("/workers").json()[0]["pool"].clone();
            if pool["prewarmed"].as_u64() > Some(0) { Ok(()) } else { Err(pool) }
        });
    }
    function("p", "parallel = 4\n");
    // From here on there is one instance: nobody ever asks for more than it takes.
    all_answered(&at_once(&platform, [json!({"do": "add"})]));
    // Calls that are over at once need no thread each.
    for round in 0..3 {
        let replies = at_once(&platform, (0..4).map(|n| json!({"do": "add", "n": n})));
        all_answered(&replies);
        for (n, (_, text)) in replies.iter().enumerate() {
            let answer: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(answer["n"], n, "{text}");
        }
        // None of four that wait for each other keeps another from being called.
        all_answered(&at_once(&platform, (0..4).map(|_| json!({"do": "meet"}))));
        // Nor do three that wait for the fourth.
        let gate = |what: &str| json!({"do": what, "for": round});
        all_answered(&at_once(&platform, [gate("wait"), gate("wait"), gate("wait"), gate("open")]));
        // So many short ones that the threads rest again.
        for _ in 0..80 {
            all_answered(&at_once(&platform, (0..4).map(|n| json!({"do": "add", "n": n}))));
        }
    }
    let call =
        platform.ended(platform.invoke(&json!({"funcName": "p", "params": {"do": "exit", "code": 7}, "retries": 0})));
    assert_eq!((&call["error"]["kind"], &call["error"]["exitCode"]), (&json!("exit"), &json!(7)), "{call}");
    all_answered(&at_once(&platform, [json!({"do": "add"})]));
    assert!(platform.stop());
}

#[test]
fn python_answers_several_calls_at_once_in_the_sandbox() {
    python_answers_several_calls_at_once(Engine::Sandbox, "none");
}

#[test]
fn python_answers_several_calls_at_once_in_a_clone() {
    python_answers_several_calls_at_once(Engine::Sandbox, "runtime");
}

#[test]
fn python_answers_several_calls_at_once_in_docker() {
    python_answers_several_calls_at_once(Engine::Docker, "none");
}
