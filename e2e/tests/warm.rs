//! Instances that answer many calls, and those that wait for them: both contracts, both engines, both direct paths.

use std::time::Duration;

use faena_test_support::{Engine, Platform, Reply, Role, eventually, request, zip};
use serde_json::{Value, json};

const PYTHON: &str = r#"
import os, sys, time
calls = 0

def handle(params, context):
    global calls
    calls += 1
    if "raise" in params:
        raise ValueError(params["raise"])
    if "exit" in params:
        os._exit(params["exit"])
    if "sleep" in params:
        time.sleep(params["sleep"])
    if "eat" in params:
        return len(b"x" * params["eat"])
    if "print" in params:
        print(params["print"])
    if "text" in params:
        return params["text"]
    return {"calls": calls, "function": context.function, "call": context.call, "params": params}
"#;

const NODE: &str = r#"
let calls = 0;
export async function handle(params, context) {
  calls += 1;
  if (params.raise) throw new Error(params.raise);
  if (params.sleep) await new Promise((resolve) => setTimeout(resolve, params.sleep * 1000));
  if (params.print) console.log(params.print);
  if (params.text) return params.text;
  return { calls, function: context.function, call: context.call, params };
}
"#;

const SERVER: &str = r#"
import http.server, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        status = int(self.headers.get("x-status") or 200)
        text = f"{self.command} {self.path} {body.decode()} {self.headers.get('authorization')}".encode()
        self.send_response(status)
        for name, value in [("content-length", str(len(text))), ("x-mine", "yes"), ("set-cookie", "a=b")]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = answer

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Registers a function of one language, and waits until it is built.
fn function(platform: &Platform, engine: Engine, name: &str, (image, file, code): (&str, &str, &str), toml: &str) {
    let runtime = json!({"name": name, "image": image, "path": "/ws", "dependencies": "", "run": format!("python3 {file}"), "engine": engine.name()});
    assert!([200, 201].contains(&platform.post("/registerRuntime", &runtime).status));
    let reply = platform.upload(name, name, &zip(&[(file, code.as_bytes()), ("faena.toml", toml.as_bytes())]));
    assert!([200, 201].contains(&reply.status), "{}", reply.text());
    let built = platform.built(name);
    assert_eq!(built["status"], "READY", "{built}");
}

const TOML: &str = "contract = \"handler\"\n[limits]\ntimeout = \"5s\"\n";

fn python(platform: &Platform, engine: Engine, name: &str, toml: &str) {
    function(platform, engine, name, ("pythonruntime", "handler.py", PYTHON), toml);
}

/// A call on the direct path: its status and what came.
fn direct(platform: &Platform, name: &str, params: &Value) -> (u16, String) {
    let reply = platform.post(&format!("/f/{name}"), params);
    (reply.status, reply.text())
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// What every handler does, in whatever language.
fn answers_many_calls(platform: &Platform, name: &str) {
    let (status, text) = direct(platform, name, &json!({"n": [1, "añ"]}));
    assert_eq!(status, 200, "{text}");
    assert_eq!((&parsed(&text)["function"], &parsed(&text)["params"]), (&json!(name), &json!({"n": [1, "añ"]})));
    let calls = |text: &str| parsed(text)["calls"].as_u64().expect("a number");
    let again = direct(platform, name, &json!({})).1;
    assert_eq!(calls(&again), calls(&text) + 1);
    // A waited call and an asynchronous one meet the same process.
    assert_eq!(direct(platform, name, &json!({"text": "as \"it\" is"})).1, "as \"it\" is");
    let call = platform.call(name, &json!({"print": "to the log"}));
    assert_eq!(call["status"], "DONE", "{call}");
    assert_eq!(calls(call["result"].as_str().expect("a text")), calls(&again) + 2);
    assert_eq!(call["attempts"][0]["start"], "warm", "{call}");
    let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
    assert_eq!(log, "to the log\n");
    // An exception is the call's, and the process lives on.
    let (status, text) = direct(platform, name, &json!({"raise": "no such thing"}));
    assert_eq!(status, 502);
    assert!(text.contains("no such thing") && text.contains("handler."), "{text}");
    assert!(calls(&direct(platform, name, &json!({})).1) > calls(&again) + 2);
}

fn a_call_that_takes_too_long_ends_its_instance_alone(platform: &Platform, name: &str) {
    let call = json!({"funcName": name, "params": {"sleep": 30}, "timeoutMs": 300, "retries": 0});
    let call = platform.ended(platform.invoke(&call));
    assert_eq!((&call["status"], &call["error"]["kind"]), (&json!("TIMEOUT"), &json!("timeout")), "{call}");
    let next = direct(platform, name, &json!({})).1;
    assert_eq!(parsed(&next)["calls"], 1);
}

fn handlers(engine: Engine) {
    let mut platform = Platform::start();
    python(&platform, engine, "py", TOML);
    function(&platform, engine, "js", ("noderuntime", "handler.mjs", NODE), TOML);
    for name in ["py", "js"] {
        answers_many_calls(&platform, name);
        a_call_that_takes_too_long_ends_its_instance_alone(&platform, name);
    }
    assert!(platform.stop());
}

fn a_process_that_ends_is_told_and_replaced(engine: Engine) {
    let mut platform = Platform::start();
    python(&platform, engine, "ends", TOML);
    let kind = |params: Value| {
        let call = json!({"funcName": "ends", "params": params, "retries": 0});
        let call = platform.ended(platform.invoke(&call));
        (call["error"]["kind"].as_str().unwrap_or_default().to_owned(), call)
    };
    let (exit, call) = kind(json!({"exit": 7}));
    assert_eq!((exit.as_str(), &call["error"]["exitCode"]), ("exit", &json!(7)), "{call}");
    let (oom, call) = kind(json!({"eat": 900_000_000}));
    // Python may see the refusal itself.
    assert!(["oom", "exception"].contains(&oom.as_str()), "{call}");
    assert_eq!(direct(&platform, "ends", &json!({})).0, 200);
    // One that cannot even be imported says why.
    let broken = ("pythonruntime", "handler.py", "import no_such_module\ndef handle(p):\n    pass\n");
    function(&platform, engine, "broken", broken, TOML);
    let (status, text) = direct(&platform, "broken", &json!({}));
    assert_eq!(status, 502);
    assert!(text.contains("no_such_module"), "{text}");
    assert!(platform.stop());
}

fn servers(engine: Engine) {
    let mut platform = Platform::start();
    let toml = "contract = \"http\"\n[limits]\ntimeout = \"10s\"\n";
    function(&platform, engine, "web", ("pythonruntime", "server.py", SERVER), toml);
    let headers = [("Authorization", "Bearer secret"), ("Content-Type", "text/plain")];
    let reply = platform.send("PUT", "/f/web/a/b?c=d", &headers, b"body");
    assert_eq!((reply.status, reply.text().as_str()), (200, "PUT /a/b?c=d body None"));
    assert_eq!((reply.header("x-mine"), reply.header("set-cookie")), (Some("yes"), None));
    assert_eq!(reply.header("content-security-policy"), Some("sandbox"));
    let reply = platform.send("GET", "/f/web", &[("X-Status", "404")], b"");
    assert_eq!((reply.status, reply.header("faena-error")), (404, None));
    let reply = platform.send("GET", "/f/web", &[("X-Status", "503")], b"");
    assert_eq!((reply.status, reply.header("faena-error")), (503, Some("function")));
    let call = platform.call("web", &json!({"n": 1}));
    assert_eq!((&call["status"], &call["result"]), (&json!("DONE"), &json!("POST / {\"n\":1} None")), "{call}");
    assert!(platform.stop());
}

macro_rules! on_both {
    ($($case:ident: $sandbox:ident, $docker:ident;)*) => {$(
        #[test]
        fn $sandbox() {
            $case(Engine::Sandbox);
        }

        #[test]
        fn $docker() {
            $case(Engine::Docker);
        }
    )*};
}
on_both! {
    handlers: handlers_in_the_sandbox, handlers_in_docker;
    a_process_that_ends_is_told_and_replaced: a_process_that_ends_in_the_sandbox, a_process_that_ends_in_docker;
    servers: servers_in_the_sandbox, servers_in_docker;
}

#[test]
fn a_worker_in_another_process_serves_the_same_contracts() {
    let mut platform = Platform::start_apart();
    python(&platform, Engine::Sandbox, "py", TOML);
    answers_many_calls(&platform, "py");
    let toml = "contract = \"http\"\n";
    function(&platform, Engine::Sandbox, "web", ("pythonruntime", "server.py", SERVER), toml);
    let reply = platform.send("PUT", "/f/web/x", &[("Content-Type", "text/plain")], b"body");
    assert_eq!((reply.status, reply.text().as_str()), (200, "PUT /x body None"));
    assert!(platform.stop());
}

/// The record of a call on the direct path is the same as any other, whether it was written alone or among many.
#[test]
fn many_calls_are_recorded_behind_their_answers() {
    let mut platform = Platform::start();
    python(&platform, Engine::Sandbox, "py", TOML);
    let mut numbers = Vec::new();
    for n in 0..60 {
        let reply = platform.post("/f/py", &json!({"text": format!("call {n}")}));
        numbers.push((reply.header("faena-call").expect("a number").to_owned(), n));
    }
    eventually(Duration::from_secs(10), "every call can be read", || {
        for (number, n) in &numbers {
            let call = platform.get(&format!("/call/{number}")).json();
            if (&call["status"], &call["result"]) != (&json!("DONE"), &json!(format!("call {n}"))) {
                return Err(call);
            }
        }
        Ok(())
    });
    eventually(Duration::from_secs(10), "the last one is written", || {
        let page = platform.get("/calls?limit=200").json();
        if page.as_object().is_some_and(|calls| calls.len() == numbers.len()) { Ok(()) } else { Err(page) }
    });
    // Pages join both without a gap or a double.
    let mut listed = Vec::new();
    let mut path = "/calls?limit=7&funcName=py".to_owned();
    loop {
        let reply = platform.get(&path);
        let page = reply.json();
        listed
            .extend(page.as_object().expect("calls").values().map(|call| call["callNum"].as_i64().expect("a number")));
        let Some(link) = reply.header("link") else { break };
        link.split(['<', '>']).nth(1).expect("a link").clone_into(&mut path);
    }
    let mut wanted: Vec<i64> = numbers.iter().map(|(number, _)| number.parse().expect("a number")).collect();
    wanted.sort_unstable();
    listed.sort_unstable();
    assert_eq!(listed, wanted);
    let replayed = platform.post(&format!("/call/{}/replay", numbers[30].0), &json!({}));
    assert_eq!(replayed.status, 202, "{}", replayed.text());
    let call = platform.ended(replayed.json()["callNum"].as_i64().expect("a number"));
    assert_eq!(call["result"], "call 30");
    assert!(platform.stop());
}

/// A call of `py` that somebody waits for meanwhile.
fn calling(platform: &Platform, params: &'static str) -> std::thread::JoinHandle<Reply> {
    let port = platform.port;
    std::thread::spawn(move || {
        request(port, "POST", "/f/py", &[("Content-Type", "application/json")], params.as_bytes())
    })
}

fn running(platform: &Platform, number: u32) {
    eventually(Duration::from_secs(3), "the call runs", || {
        let call = platform.get(&format!("/call/{number}")).json();
        if call["status"] == "RUNNING" { Ok(()) } else { Err(call) }
    });
}

/// A call that runs on the direct path is seen, and can be cancelled.
fn a_running_call_is_seen_and_cancelled(mut platform: Platform) {
    python(&platform, Engine::Sandbox, "py", TOML);
    direct(&platform, "py", &json!({}));
    let waiting = calling(&platform, "{\"sleep\": 4}");
    running(&platform, 2);
    let reply = platform.send("DELETE", "/call/2", &[], b"");
    assert_eq!((reply.status, &reply.json()["status"]), (200, &json!("CANCELLED")));
    assert_eq!(waiting.join().expect("an answer").status, 409);
    assert_eq!(direct(&platform, "py", &json!({})).0, 200);
    assert!(platform.stop());
}

#[test]
fn a_running_call_is_seen_and_cancelled_in_one_process() {
    a_running_call_is_seen_and_cancelled(Platform::start());
}

#[test]
fn a_running_call_is_seen_and_cancelled_in_another_process() {
    a_running_call_is_seen_and_cancelled(Platform::start_apart());
}

/// A waiting client is told at once when a worker dies under a call, and the next worker serves the next call.
#[test]
fn a_call_is_lost_with_the_worker_that_ran_it() {
    let mut platform = Platform::start_apart();
    python(&platform, Engine::Sandbox, "py", TOML);
    direct(&platform, "py", &json!({}));
    let waiting = calling(&platform, "{\"sleep\": 4}");
    running(&platform, 2);
    platform.kill(Role::Worker);
    let reply = waiting.join().expect("an answer");
    assert_eq!(reply.status, 502, "{}", reply.text());
    assert!(reply.text().contains("was lost"), "{}", reply.text());
    assert_eq!(reply.header("faena-error"), Some("platform"));
    platform.start_role(Role::Worker);
    eventually(Duration::from_secs(20), "another worker answers", || {
        let (status, text) = direct(&platform, "py", &json!({}));
        if status == 200 { Ok(()) } else { Err(text) }
    });
    eventually(Duration::from_secs(10), "the end is recorded", || {
        let call = platform.get("/call/2").json();
        if call["status"] == "FAILED" { Ok(()) } else { Err(call) }
    });
    assert!(platform.stop());
}

/// Calls of an api that is gone do not run on, and its successor finds the worker.
#[test]
fn a_worker_outlives_its_api() {
    // A call that ran on would hold the one slot for its minute.
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "slots = 1\n").expect("settings");
    for role in [Role::Db, Role::Api, Role::Worker] {
        platform.start_role(role);
    }
    platform.ready();
    let code = "import os, time\n\ndef handle(params, context):\n    if 'sleep' in params:\n        time.sleep(params['sleep'])\n    return os.getpid()\n";
    function(&platform, Engine::Sandbox, "py", ("pythonruntime", "handler.py", code), "contract = \"handler\"\n");
    assert_eq!(direct(&platform, "py", &json!({})).0, 200);
    let waiting = calling(&platform, "{\"sleep\": 3000}");
    running(&platform, 2);
    platform.kill(Role::Api);
    // The connection ended without an answer.
    assert!(waiting.join().is_err());
    platform.start_role(Role::Api);
    platform.ready();
    eventually(Duration::from_secs(20), "the one slot is free", || {
        let (status, text) = direct(&platform, "py", &json!({}));
        if status == 200 { Ok(()) } else { Err(text) }
    });
    assert!(platform.stop());
}

/// A new version is what runs from the moment it is seen to be READY, and not a moment later.
fn a_new_version_runs_as_soon_as_it_is_seen(mut platform: Platform) {
    for n in 0..12 {
        let code = format!("def handle(params, context):\n    return 'version {n}'\n");
        function(&platform, Engine::Sandbox, "py", ("pythonruntime", "handler.py", &code), TOML);
        assert_eq!(direct(&platform, "py", &json!({})), (200, format!("version {n}")));
    }
    assert_eq!(platform.send("DELETE", "/function/py", &[], b"").status, 204);
    assert_eq!(direct(&platform, "py", &json!({})).0, 404);
    assert!(platform.stop());
}

#[test]
fn a_new_version_runs_as_soon_as_it_is_seen_in_one_process() {
    a_new_version_runs_as_soon_as_it_is_seen(Platform::start());
}

#[test]
fn a_new_version_runs_as_soon_as_it_is_seen_in_another_process() {
    a_new_version_runs_as_soon_as_it_is_seen(Platform::start_apart());
}

/// What waits whether or not calls come waits after a start, too, and wherever there is a worker.
fn what_always_waits_is_there_before_a_call(mut platform: Platform, worker: Role) {
    python(&platform, Engine::Sandbox, "kept", &format!("minimum = 2\n{TOML}"));
    let two_wait = |platform: &Platform| {
        eventually(Duration::from_secs(20), "two that wait", || {
            let workers = platform.get("/workers").json();
            let there =
                workers.as_array().and_then(|workers| workers.iter().find(|worker| worker["status"] == "ready"));
            let waiting = there.and_then(|worker| worker["pool"]["instances"].as_u64());
            if waiting == Some(2) { Ok(()) } else { Err(workers) }
        });
    };
    two_wait(&platform);
    platform.kill(worker);
    platform.start_role(worker);
    platform.ready();
    two_wait(&platform);
    let call = platform.call("kept", &json!({}));
    assert_eq!(call["attempts"][0]["start"], "warm", "{call}");
    // Of a version that has a successor nothing waits any longer.
    python(&platform, Engine::Sandbox, "kept", TOML);
    eventually(Duration::from_secs(40), "the end of what waited", || {
        let workers = platform.get("/workers").json();
        let there = workers.as_array().and_then(|workers| workers.iter().find(|worker| worker["status"] == "ready"));
        let waiting = there.and_then(|worker| worker["pool"]["instances"].as_u64());
        if waiting == Some(0) { Ok(()) } else { Err(workers) }
    });
    assert!(platform.stop());
}

#[test]
fn what_always_waits_is_there_after_a_start() {
    what_always_waits_is_there_before_a_call(Platform::start(), Role::Up);
}

#[test]
fn what_always_waits_is_there_in_a_new_worker() {
    what_always_waits_is_there_before_a_call(Platform::start_apart(), Role::Worker);
}

/// What waits is told, kept as asked for, and frozen while nobody calls it; a call finds it all the same.
#[test]
fn what_waits_is_kept_and_frozen() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "freeze_after = \"1s\"\nidle = \"1s\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    python(&platform, Engine::Sandbox, "kept", &format!("minimum = 2\n{TOML}"));
    python(&platform, Engine::Sandbox, "goes", TOML);
    for name in ["kept", "goes"] {
        assert_eq!(direct(&platform, name, &json!({})).0, 200);
    }
    let pool = || platform.get("/workers").json()[0]["pool"].clone();
    eventually(Duration::from_secs(20), "two wait, frozen", || {
        let pool = pool();
        let seen = (pool["instances"].as_u64(), pool["frozen"].as_u64());
        if seen == (Some(2), Some(2)) { Ok(()) } else { Err(pool) }
    });
    let call = platform.call("kept", &json!({}));
    assert_eq!(call["attempts"][0]["start"], "warm", "{call}");
    assert!(pool()["refills"].as_u64() > Some(0), "{}", pool());
    assert!(platform.stop());
}
