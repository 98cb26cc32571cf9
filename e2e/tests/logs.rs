//! Logs are there while they are written: of a call, of a build, of a function over all its calls.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use faena_test_support::{Engine, Platform, eventually, zip};
use serde_json::{Value, json};

/// The events of a stream as name and data, until it ends or `is_last` says so.
fn events(platform: &Platform, path: &str, is_last: impl Fn(&str, &Value) -> bool) -> Vec<(String, Value)> {
    let mut stream = TcpStream::connect(("127.0.0.1", platform.port)).expect("the platform listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("a request");
    let (mut events, mut name) = (Vec::new(), String::new());
    for line in BufReader::new(stream).lines() {
        let line = line.expect("a line");
        if let Some(event) = line.strip_prefix("event: ") {
            event.clone_into(&mut name);
        } else if let Some(data) = line.strip_prefix("data: ") {
            let data: Value = serde_json::from_str(data).expect("JSON");
            let is_over = is_last(&name, &data);
            events.push((name.clone(), data));
            if is_over {
                break;
            }
        }
    }
    events
}

fn lines(events: &[(String, Value)]) -> Vec<&str> {
    events.iter().filter(|(name, _)| name == "line").filter_map(|(_, data)| data["text"].as_str()).collect()
}

fn is_end(name: &str, _: &Value) -> bool {
    name == "end"
}

const SLOW: &str = "echo begun >&2; sleep 2; echo over >&2; echo result";

/// A platform with a function that writes, works for two seconds, and writes again.
fn with_slow(platform: Platform) -> Platform {
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("slow", SLOW);
    platform
}

#[test]
fn the_log_of_a_call_is_there_while_it_runs_and_is_followed_to_its_end() {
    let mut platform = with_slow(Platform::start_apart());
    let num = platform.invoke(&json!({"funcName": "slow", "params": {}}));
    let path = format!("/call/{num}/logs");
    eventually(Duration::from_secs(10), "the beginning of the log", || match platform.get(&path).text() {
        log if log == "begun\n" => Ok(()),
        log => Err(log),
    });
    let seen = events(&platform, &path, is_end);
    let seen_lines = lines(&seen);
    assert_eq!(seen_lines.first(), Some(&"begun"), "{seen:?}");
    assert_eq!(seen_lines.iter().filter(|line| **line == "over").count(), 1, "{seen:?}");
    assert_eq!(seen.last().map(|(_, data)| data["status"].as_str()), Some(Some("DONE")), "{seen:?}");
    let (_, line) = &seen[0];
    assert_eq!(
        (line["call"].as_i64(), line["attempt"].as_i64(), &line["stream"]),
        (Some(num), Some(1), &json!("stderr"))
    );
    assert_eq!(platform.ended(num)["result"], "result");
    assert_eq!(platform.get(&path).text(), "begun\nover\n");
    assert!(platform.stop());
}

#[test]
fn the_logs_of_a_function_are_those_of_all_its_calls() {
    let mut platform = with_slow(Platform::start());
    platform.script("loud", "echo \"$FAENA_CALL speaks\" >&2; echo kept");
    platform.script("angry", "echo oh >&2; exit 3");
    let nums: Vec<i64> =
        (0..3).map(|_| platform.call("loud", &json!({}))["callNum"].as_i64().expect("a number")).collect();
    let failed = platform.call("angry", &json!({}))["callNum"].as_i64().expect("a number");
    let ask = |query: &str| platform.get(&format!("/function/loud/logs{query}"));
    let all = ask("").json();
    let texts: Vec<String> = nums.iter().map(|num| format!("{num} speaks")).collect();
    let said = |lines: &Value| -> Vec<String> {
        let lines = lines.as_array().expect("lines");
        lines.iter().map(|line| line["text"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(said(&all), texts, "oldest first");
    assert!(all[0]["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{all}");
    let newest = ask("?limit=1");
    assert_eq!(said(&newest.json()), texts[2..]);
    let next = newest.header("link").and_then(|link| link.split(['<', '>']).nth(1)).expect("a link").to_owned();
    assert_eq!(said(&platform.get(&next).json()), texts[1..2]);
    assert_eq!(said(&ask("?since=1h&status=DONE&version=1").json()), texts);
    assert_eq!(said(&ask("?status=FAILED").json()), Vec::<String>::new());
    assert_eq!(said(&ask("?version=2").json()), Vec::<String>::new());
    assert_eq!(said(&ask("?since=2999-01-01T00:00:00Z").json()), Vec::<String>::new());
    let of_failed = platform.get("/function/angry/logs?status=FAILED").json();
    assert_eq!((said(&of_failed), &of_failed[0]["call"]), (vec!["oh".to_owned()], &json!(failed)));
    assert_eq!(ask("?sinse=1h").problem(400), "invalid_query");
    assert_eq!(ask("?since=yesterday").problem(400), "invalid_query");
    assert_eq!(platform.get("/function/nobody/logs").problem(404), "unknown_function");
    assert!(platform.stop());
}

#[test]
fn a_followed_function_shows_what_its_calls_write_before_they_end() {
    let mut platform = Platform::start();
    let runtime = json!({"name": "py", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 x",
        "engine": "sandbox"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let code = "import time\ndef handle(params, context):\n    print('begun', params['i'])\n    time.sleep(2)\n    print('over', params['i'])\n";
    let files: [(&str, &[u8]); 2] = [("handler.py", code.as_bytes()), ("faena.toml", b"contract = \"handler\"\n")];
    assert_eq!(platform.upload("py", "talk", &zip(&files)).status, 201);
    assert_eq!(platform.built("talk")["status"], "READY");
    let seen = std::thread::scope(|scope| {
        let follower =
            scope.spawn(|| events(&platform, "/function/talk/logs?since=1m", |_, line| line["text"] == "over 2"));
        for i in 1..=2 {
            assert_eq!(platform.post("/f/talk", &json!({"i": i})).status, 200);
        }
        follower.join().expect("the follower")
    });
    assert_eq!(lines(&seen), ["begun 1", "over 1", "begun 2", "over 2"]);
    assert_eq!(seen[0].1["stream"], "output");
    assert!(platform.stop());
}

#[test]
fn the_log_of_a_build_is_followed() {
    let mut platform = Platform::start();
    let runtime = json!({"dependencies": "echo installing; sleep 2; echo installed"});
    platform.shell_runtime(Engine::Sandbox, &runtime);
    let archive = zip(&[("run.sh", b"echo hi")]);
    assert_eq!(platform.upload("shell", "built", &archive).status, 201);
    eventually(Duration::from_secs(10), "the beginning of the log", || {
        let build = platform.get("/function/built/build").json();
        if build["status"] == "BUILDING" && build["log"] == "installing\n" { Ok(()) } else { Err(build) }
    });
    let seen = events(&platform, "/function/built/build", is_end);
    assert_eq!(lines(&seen), ["installing", "installed"]);
    assert_eq!(seen.last().map(|(_, data)| data["status"].as_str()), Some(Some("READY")), "{seen:?}");
    assert_eq!(platform.get("/function/built/build").json()["log"], "installing\ninstalled\n");
    assert!(platform.stop());
}

#[test]
fn a_runtime_whose_image_is_nowhere_is_registered_with_a_warning() {
    let mut platform = Platform::start();
    let runtime =
        |image: &str| json!({"name": "r", "image": image, "path": "/ws", "dependencies": "", "run": "python3 x"});
    let reply = platform.post("/registerRuntime", &runtime("nowhere/to-be-found"));
    assert_eq!(reply.status, 201);
    let warning = reply.json()["warnings"][0].as_str().expect("a warning").to_owned();
    assert!(
        warning.contains("neither the platform nor a node has the image") && warning.contains("nowhere/to-be-found"),
        "{warning}"
    );
    let reply = platform.post("/registerRuntime", &runtime("pythonruntime"));
    assert_eq!((reply.status, reply.json().get("warnings")), (200, None), "{}", reply.text());
    assert!(platform.stop());
}
