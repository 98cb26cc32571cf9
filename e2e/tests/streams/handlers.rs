//! Handlers with streamed answers.

use faena_test_support::{Platform, Role, zip};
use serde_json::{Value, json};

use crate::client::Connection;
use crate::{LONG, number, record};

const PYTHON: &str = r#"
import faena

made = 0

def numbers(count):
    for number in range(count):
        yield f"{number}\n"

async def later(count):
    for number in range(count):
        yield f"{number}\n".encode()

def endless(text):
    global made
    try:
        while True:
            made += len(text)
            yield text
    finally:
        print("closed")

def breaks():
    yield "the beginning"
    raise ValueError("in the middle")

def handle(params):
    kind = params.get("kind")
    if kind == "later":
        return later(params["count"])
    if kind == "endless":
        return endless(params.get("text", "x" * 1000))
    if kind == "events":
        return faena.Response(endless("data: x\n\n"), status=201, headers={"Content-Type": "text/event-stream"})
    if kind == "breaks":
        return breaks()
    if kind == "wrong":
        return iter([{"a": 1}])
    if kind == "nothing":
        return iter([])
    if kind == "made":
        return made
    return numbers(params["count"])
"#;

const NODE: &str = r#"
let stopped = 0;

async function* numbers(count) {
  for (let number = 0; number < count; number += 1) yield `${number}\n`;
}

export async function handle(params, context) {
  if (params.kind === "stream") return new ReadableStream({
    pull(controller) { controller.enqueue("x".repeat(1000)); },
    cancel() { stopped += 1; },
  });
  if (params.kind === "response") return new Response(new ReadableStream({
    async start(controller) {
      controller.enqueue(new TextEncoder().encode("data: 0\n\n"));
      await new Promise((gone) => context.signal.addEventListener("abort", gone));
      stopped += 1;
      controller.close();
    },
  }), { status: 201, headers: { "Content-Type": "text/event-stream" } });
  if (params.kind === "whole") return new Response("all of it", { status: 202 });
  if (params.kind === "breaks") return (async function* () { yield "the beginning"; throw new Error("in the middle"); })();
  if (params.kind === "ticks") return (async function* () {
    for (let tick = 0; ; tick += 1) {
      yield `${tick}\n`;
      await new Promise((go) => setTimeout(go, params.every));
    }
  })();
  if (params.kind === "stopped") return stopped;
  return numbers(params.count);
}
"#;

fn function(platform: &Platform, name: &str, (image, file, code): (&str, &str, &str), toml: &str) {
    let runtime = json!({"name": image, "image": image, "path": "/ws", "dependencies": "", "run": "unused"});
    assert!([200, 201].contains(&platform.post("/registerRuntime", &runtime).status));
    let toml = format!("contract = \"handler\"\n{toml}");
    let reply = platform.upload(image, name, &zip(&[(file, code.as_bytes()), ("faena.toml", toml.as_bytes())]));
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(platform.built(name)["status"], "READY");
}

fn python(platform: &Platform, name: &str, toml: &str) {
    function(platform, name, ("pythonruntime", "handler.py", PYTHON), toml);
}

/// What a call on `/f/` answers, and the head of that.
fn called(platform: &Platform, name: &str, params: &Value) -> (String, String) {
    let mut connection = begun(platform, name, params);
    let head = connection.head();
    (head, String::from_utf8_lossy(&connection.rest()).into_owned())
}

fn begun(platform: &Platform, name: &str, params: &Value) -> Connection {
    let body = params.to_string();
    let head = format!(
        "POST /f/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Connection::send(platform, &format!("{head}{body}"))
}

fn pieces_are_an_answer(platform: &Platform, name: &str) {
    for (params, kind, body) in [
        (json!({"count": 3}), "text/plain", "2\r\n0\n\r\n2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n"),
        (json!({"kind": "later", "count": 1}), "application/octet-stream", "2\r\n0\n\r\n0\r\n\r\n"),
        (json!({"kind": "nothing"}), "", "0\r\n\r\n"),
    ] {
        let (head, answer) = called(platform, name, &params);
        assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains(kind), "{head}");
        // Pieces that wait for each other may travel in one chunk or in several.
        let text: String = answer.split("\r\n").skip(1).step_by(2).collect();
        let expected: String = body.split("\r\n").skip(1).step_by(2).collect();
        assert_eq!((text, answer.ends_with("0\r\n\r\n")), (expected, true), "{answer}");
        assert_eq!(record(platform, &head)["status"], "DONE");
    }
    let call = platform.call(name, &json!({"count": 3}));
    assert_eq!((&call["status"], &call["result"]), (&json!("DONE"), &json!("0\n1\n2\n")), "{call}");

    let (head, answer) = called(platform, name, &json!({"kind": "breaks"}));
    assert!(head.starts_with("HTTP/1.1 200") && answer.contains("the beginning"), "{head}{answer}");
    assert!(!answer.ends_with("0\r\n\r\n"), "it looks whole: {answer}");
    let call = record(platform, &head);
    assert_eq!((&call["status"], &call["error"]["kind"]), (&json!("FAILED"), &json!("exception")), "{call}");
    assert!(call["error"]["message"].as_str().is_some_and(|message| message.contains("in the middle")), "{call}");
}

#[test]
fn generators_of_python_are_streams() {
    let platform = Platform::start();
    for (name, toml) in [("one", ""), ("many", "parallel = 4\n"), ("forks", "reuse = \"fork\"\n")] {
        python(&platform, name, toml);
        if name == "forks" {
            // A fork cannot hear of credit: its answer is whole.
            assert_eq!(platform.send("POST", "/f/forks?count=3", &[], b"").status, 502, "a text is no count");
            let call = platform.call(name, &json!({"count": 3}));
            assert_eq!(call["result"], "0\n1\n2\n", "{call}");
            continue;
        }
        pieces_are_an_answer(&platform, name);
        let call = platform.call(name, &json!({"kind": "wrong"}));
        assert!(call["error"]["message"].as_str().is_some_and(|message| message.contains("dict")), "{call}");
        // More than a result may have.
        let call = platform.call(name, &json!({"kind": "endless"}));
        assert_eq!((&call["status"], &call["error"]["kind"]), (&json!("FAILED"), &json!("output")), "{call}");
    }
}

fn a_generator_is_closed_when_its_client_leaves(platform: &Platform, name: &str, params: &Value, status: &str) {
    let mut endless = begun(platform, name, params);
    let head = endless.head();
    endless.bytes(200_000);
    drop(endless);
    let call = record(platform, &head);
    assert_eq!(call["status"], status, "{call}");
    assert!(platform.get(&format!("/call/{}/logs", number(&head))).text().contains("closed"), "{call}");
    let call = platform.call(name, &json!({"count": 1}));
    assert_eq!((&call["result"], &call["attempts"][0]["start"]), (&json!("0\n"), &json!("warm")), "{call}");
}

#[test]
fn a_client_that_leaves_closes_the_generator() {
    for mut platform in [Platform::start(), Platform::start_apart()] {
        python(&platform, "one", "");
        python(&platform, "many", "parallel = 4\n");
        for name in ["one", "many"] {
            a_generator_is_closed_when_its_client_leaves(&platform, name, &json!({"kind": "endless"}), "CANCELLED");
            a_generator_is_closed_when_its_client_leaves(&platform, name, &json!({"kind": "events"}), "DONE");
        }
        assert!(platform.stop());
    }
}

#[test]
fn a_slow_reader_slows_a_generator() {
    let platform = Platform::start();
    python(&platform, "many", "parallel = 4\n");
    let mut slow = begun(&platform, "many", &json!({"kind": "endless", "text": "x".repeat(100_000)}));
    slow.head();
    let mut before = -1;
    let held = faena_test_support::eventually(LONG, "the generator waits for its reader", || {
        let now = platform.post("/f/many", &json!({"kind": "made"})).text().parse::<i64>().expect("a number");
        if now == std::mem::replace(&mut before, now) && now > 0 { Ok(now) } else { Err(now) }
    });
    assert!(held < 16 * 1024 * 1024, "{held} bytes were made while nobody read");
    slow.bytes(32 * 1024 * 1024);
}

#[test]
fn streams_of_node_are_streams() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "docker = \"off\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    function(&platform, "node", ("noderuntime", "handler.mjs", NODE), "parallel = 4\n");
    let (head, answer) = called(&platform, "node", &json!({"count": 3}));
    assert!(head.contains("text/plain") && answer.ends_with("0\r\n\r\n") && answer.contains('2'), "{head}{answer}");
    let call = platform.call("node", &json!({"count": 3}));
    assert_eq!((&call["status"], &call["result"]), (&json!("DONE"), &json!("0\n1\n2\n")), "{call}");
    let whole = platform.post("/f/node", &json!({"kind": "whole"}));
    assert_eq!((whole.status, whole.text().as_str()), (202, "all of it"));
    assert_eq!(whole.header("content-length"), Some("9"), "what is there at once is no stream");

    let (head, answer) = called(&platform, "node", &json!({"kind": "breaks"}));
    assert!(answer.contains("the beginning") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    assert_eq!(record(&platform, &head)["error"]["kind"], "exception");

    let mut events = begun(&platform, "node", &json!({"kind": "response"}));
    let head = events.head();
    assert!(head.starts_with("HTTP/1.1 201") && head.contains("text/event-stream"), "{head}");
    events.until(b"data: 0\n\n");
    drop(events);
    assert_eq!(record(&platform, &head)["status"], "DONE");
    let mut endless = begun(&platform, "node", &json!({"kind": "stream"}));
    let head = endless.head();
    endless.bytes(200_000);
    drop(endless);
    assert_eq!(record(&platform, &head)["status"], "CANCELLED");
    faena_test_support::eventually(LONG, "both were told", || {
        let stopped = platform.post("/f/node", &json!({"kind": "stopped"})).text();
        if stopped == "2" { Ok(()) } else { Err(stopped) }
    });
}

#[test]
fn a_stream_that_is_cancelled_ends_no_other() {
    let platform = Platform::start();
    function(&platform, "node", ("noderuntime", "handler.mjs", NODE), "parallel = 4\n");
    let mut ticks = begun(&platform, "node", &json!({"kind": "ticks", "every": 10}));
    let own = ticks.head();
    ticks.until(b"0\n");
    let mut other = begun(&platform, "node", &json!({"kind": "ticks", "every": 100}));
    let head = other.head();
    other.until(b"0\n");
    assert_eq!(platform.send("DELETE", &format!("/call/{}", number(&head)), &[], b"").status, 200);
    assert_eq!(record(&platform, &head)["status"], "CANCELLED");
    assert!(!other.rest().ends_with(b"0\r\n\r\n"), "it is broken off");
    // The cancelled generator wakes several times meanwhile; its pieces are ignored.
    ticks.until(b"\n60\n");
    drop(ticks);
    assert_eq!(record(&platform, &own)["error"]["kind"], "cancelled");
}
