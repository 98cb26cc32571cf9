//! Bodies of servers that pass through while they are made, and WebSockets: in one process and between processes.

mod bad;
mod client;
mod handlers;

use std::time::Duration;

use client::Connection;
use faena_test_support::{Engine, Platform, Role, eventually, zip};
use serde_json::{Value, json};

const SERVER: &str = include_str!("server.mjs");
const LONG: Duration = Duration::from_secs(30);
/// The example of RFC 6455, 1.3.
const HANDSHAKE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Makes the server a function, and waits until it answers.
fn server(platform: &Platform, engine: Engine, name: &str) {
    let runtime = json!({
        "name": "streams", "image": "noderuntime", "path": "/ws", "dependencies": "", "run": "node server.mjs", "engine": engine.name()
    });
    assert!([200, 201].contains(&platform.post("/registerRuntime", &runtime).status));
    let toml = "contract = \"http\"\nparallel = 16\n";
    let archive = zip(&[("server.mjs", SERVER.as_bytes()), ("faena.toml", toml.as_bytes())]);
    let reply = platform.upload("streams", name, &archive);
    assert!([200, 201].contains(&reply.status), "{}", reply.text());
    assert_eq!(platform.built(name)["status"], "READY");
    assert_eq!(platform.get(&format!("/f/{name}/written")).text(), "0");
}

fn started() -> Platform {
    let platform = Platform::start();
    server(&platform, Engine::Sandbox, "s");
    platform
}

/// The number of the call whose answer has this head.
fn number(head: &str) -> i64 {
    let found = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("faena-call").then(|| value.trim().parse().expect("a number"))
    });
    found.expect("the number of the call")
}

/// Its record, once it has ended.
fn record(platform: &Platform, head: &str) -> Value {
    platform.ended(number(head))
}

/// Lets every request of the function go on that waits, and returns when there was one.
fn go(platform: &Platform, name: &str) {
    eventually(LONG, "a request waits", || {
        let released = platform.get(&format!("/f/{name}/go")).text();
        if released == "0" { Err(released) } else { Ok(()) }
    });
}

fn events_arrive_one_by_one(platform: &Platform, name: &str) {
    let mut events = Connection::get(platform, &format!("/f/{name}/events"), "Accept: text/event-stream\r\n");
    let head = events.head();
    assert!(head.starts_with("HTTP/1.1 200") && head.to_lowercase().contains("text/event-stream"), "{head}");
    for number in 0..5 {
        events.until(format!("data: {number}\n\n").as_bytes());
        go(platform, name);
    }
    let closed: u32 = platform.get(&format!("/f/{name}/closed")).text().parse().expect("a number");
    drop(events);
    eventually(LONG, "the function learns that its client has gone", || {
        let now: u32 = platform.get(&format!("/f/{name}/closed")).text().parse().expect("a number");
        if now > closed { Ok(()) } else { Err(now) }
    });
    let call = record(platform, &head);
    assert_eq!((call["status"].as_str(), call["responseStatus"].as_u64()), (Some("DONE"), Some(200)), "{call}");
    assert!(call["streamed"]["responseBytes"].as_u64() >= Some(45), "{call}");
}

fn both_directions_flow_at_once(platform: &Platform, name: &str) {
    let head = format!("POST /f/{name}/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut echo = Connection::send(platform, &head);
    echo.chunk(b"one");
    let answer = echo.head();
    echo.until(b"one\r\n");
    for text in ["two", "three"] {
        echo.chunk(text.as_bytes());
        echo.until(format!("{text}\r\n").as_bytes());
    }
    echo.write(b"0\r\n\r\n");
    echo.until(b"0\r\n\r\n");
    let call = record(platform, &answer);
    assert_eq!(call["streamed"], json!({"requestBytes": 11, "responseBytes": 11}), "{call}");
    assert_eq!((&call["status"], &call["result"]), (&json!("DONE"), &json!("onetwothree")), "{call}");
    let replay = platform.post(&format!("/call/{}/replay", number(&answer)), &json!({})).json();
    let again = platform.ended(replay["callNum"].as_i64().expect("a number"));
    assert_eq!(again["result"], "onetwothree", "what is kept whole is sent again: {again}");

    let size = 100_000;
    let head = format!("POST /f/{name}/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    let mut long = Connection::send(platform, &head);
    long.write(&vec![b'x'; size]);
    let answer = long.head();
    let call = record(platform, &answer);
    assert_eq!(call["streamed"], json!({"requestBytes": size, "responseBytes": size}), "{call}");
    assert_eq!(call["result"].as_str().map(str::len), Some(4096), "the beginning of a long body");
    assert_eq!(platform.post(&format!("/call/{}/replay", number(&answer)), &json!({})).problem(409), "not_replayable");
}

fn uploads_have_no_bound_but_time(platform: &Platform, name: &str) {
    let size = 20 * 1024 * 1024;
    let head = format!("POST /f/{name}/count HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n");
    let mut upload = Connection::send(platform, &head);
    let block = vec![7; 64 * 1024];
    for _ in 0..size / block.len() {
        upload.write(&block);
    }
    let answer = upload.head();
    upload.until(format!("\"bytes\":{size},\"length\":\"{size}\"").as_bytes());
    let call = record(platform, &answer);
    assert_eq!(call["status"], "DONE", "{call}");
    assert_eq!(
        (&call["streamed"]["requestBytes"], &call["streamed"]["requestCut"]),
        (&json!(size), &Value::Null),
        "{call}"
    );
    assert_eq!(platform.post(&format!("/call/{}/replay", number(&answer)), &json!({})).problem(409), "not_replayable");
}

#[test]
fn streams_pass_through_in_one_process() {
    let platform = started();
    events_arrive_one_by_one(&platform, "s");
    both_directions_flow_at_once(&platform, "s");
    uploads_have_no_bound_but_time(&platform, "s");
    hints_come_before_the_answer(&platform, "s");
    websockets_pass_through(&platform, "s");
}

#[test]
fn streams_pass_through_between_processes() {
    let platform = Platform::start_apart();
    server(&platform, Engine::Sandbox, "s");
    events_arrive_one_by_one(&platform, "s");
    both_directions_flow_at_once(&platform, "s");
    uploads_have_no_bound_but_time(&platform, "s");
    hints_come_before_the_answer(&platform, "s");
    websockets_pass_through(&platform, "s");
    a_slow_reader_slows_the_function(&platform);
    a_broken_answer_breaks_the_connection(&platform, "s");
}

#[test]
fn streams_pass_through_on_docker() {
    let platform = Platform::start();
    server(&platform, Engine::Docker, "s");
    events_arrive_one_by_one(&platform, "s");
    both_directions_flow_at_once(&platform, "s");
    websockets_pass_through(&platform, "s");
}

fn hints_come_before_the_answer(platform: &Platform, name: &str) {
    let request = |target: &str| format!("GET {target}\r\nHost: {name}.localhost\r\n\r\n");
    let mut hints = Connection::send(platform, &request("/hints HTTP/1.1"));
    let early = hints.head();
    assert!(early.starts_with("HTTP/1.1 103 Early Hints\r\n") && early.contains("Link: </style.css>"), "{early}");
    go(platform, name);
    assert!(hints.head().starts_with("HTTP/1.1 200"));
    hints.until(b"done");
    // A client of HTTP/1.0 gets none, and neither does one on the origin of the API.
    let mut old = Connection::send(platform, &request("/hints?now HTTP/1.0"));
    assert!(old.head().contains(" 200 "));
    let mut by_path = Connection::get(platform, &format!("/f/{name}/hints?now"), "");
    assert!(by_path.head().contains(" 200 "));
}

fn a_slow_reader_slows_the_function(platform: &Platform) {
    let mut large = Connection::get(platform, "/f/s/large", "");
    large.head();
    let written = || platform.get("/f/s/written").text().parse::<usize>().expect("a number");
    // The same number twice: the function waits.
    let mut before = 0;
    let held = eventually(LONG, "the function waits for its reader", || {
        let now = written();
        if now == std::mem::replace(&mut before, now) && now > 0 { Ok(now) } else { Err(now) }
    });
    // What sockets of the kernel hold, ours and the function's, and no more.
    assert!(held < 24 * 1024 * 1024, "{held} bytes were written while nobody read");
    large.bytes(64 * 1024 * 1024);
}

#[test]
fn a_slow_reader_slows_the_function_in_one_process() {
    a_slow_reader_slows_the_function(&started());
}

fn a_broken_answer_breaks_the_connection(platform: &Platform, name: &str) {
    for (path, begins) in [("short", "xxxx"), ("die", "the beginning")] {
        let mut broken = Connection::get(platform, &format!("/f/{name}/{path}"), "");
        let head = broken.head();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        broken.until(begins.as_bytes());
        go(platform, name);
        let rest = broken.rest();
        assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 99_000, "it looks whole: {} bytes", rest.len());
        let call = record(platform, &head);
        assert_eq!((&call["status"], &call["responseStatus"]), (&json!("FAILED"), &json!(200)), "{call}");
        assert!(call["result"].as_str().is_some_and(|result| result.starts_with(begins)), "{call}");
    }
}

#[test]
fn a_function_that_dies_after_its_head_breaks_the_connection() {
    a_broken_answer_breaks_the_connection(&started(), "s");
}

#[test]
fn trailers_pass_both_ways() {
    let platform = started();
    let mut answer = Connection::get(&platform, "/f/s/trailers", "TE: trailers\r\n");
    let head = answer.head().to_lowercase();
    assert!(head.contains("trailer: x-sum"), "{head}");
    assert!(answer.until(b"\r\n\r\n").to_lowercase().contains("x-sum: 42"));

    let head = "POST /f/s/count HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\nTrailer: X-Mine\r\n\r\n";
    let mut request = Connection::send(&platform, head);
    request.chunk(b"body");
    request.write(b"0\r\nX-Mine: yes\r\n\r\n");
    let head = request.head();
    request.until(b"\"trailers\":{\"x-mine\":\"yes\"}");
    assert_eq!(record(&platform, &head)["streamed"]["requestCut"], Value::Null);
}

#[test]
fn a_client_that_asks_first_is_told_to_go_on() {
    let platform = started();
    let size = 100_000;
    let head = format!(
        "POST /f/s/count HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n"
    );
    let mut upload = Connection::send(&platform, &head);
    assert!(upload.head().starts_with("HTTP/1.1 100"));
    upload.write(&vec![7; size]);
    assert!(upload.head().starts_with("HTTP/1.1 200"));
}

#[test]
fn a_function_may_refuse_a_body_before_it_has_come() {
    let platform = started();
    let head = "POST /f/s/refuse HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50000000\r\n\r\n";
    let mut upload = Connection::send(&platform, head);
    upload.write(&[7; 100_000]);
    let answer = upload.head();
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    // The rest of the body affects no other call, and the record tells that the body had not ended.
    assert_eq!(platform.get("/f/s/written").status, 200);
    let call = record(&platform, &answer);
    assert_eq!(call["streamed"]["requestCut"], true, "{call}");
    assert_eq!(platform.post(&format!("/call/{}/replay", number(&answer)), &json!({})).problem(409), "not_replayable");
}

#[test]
fn a_client_that_leaves_in_the_middle_of_its_body_is_noticed() {
    let platform = started();
    let head = "POST /f/s/echo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut echo = Connection::send(&platform, head);
    echo.chunk(b"one");
    let answer = echo.head();
    echo.until(b"one\r\n");
    let shown = platform.get(&format!("/call/{}", number(&answer))).json();
    assert_eq!(shown["status"], "RUNNING", "{shown}");
    assert_eq!(shown["streamed"], json!({"requestBytes": 3, "responseBytes": 3, "requestCut": true}), "{shown}");
    drop(echo);
    let call = record(&platform, &answer);
    assert_eq!((&call["status"], &call["error"]["kind"]), (&json!("CANCELLED"), &json!("cancelled")), "{call}");
    assert_eq!(platform.get("/f/s/written").status, 200, "the instance serves on");

    // One whose answer had not begun: the function waits for all of the body.
    let head = "POST /f/s/count HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut upload = Connection::send(&platform, head);
    upload.chunk(b"one");
    eventually(LONG, "the function waits", || {
        let pool = platform.get("/workers").json()[0]["pool"].clone();
        if pool["working"] == 1 { Ok(()) } else { Err(pool) }
    });
    drop(upload);
    eventually(LONG, "the call is recorded", || {
        let calls = platform.get("/calls?funcName=s&status=CANCELLED&limit=1").json();
        let call = calls.as_object().and_then(|calls| calls.values().next()).cloned().unwrap_or_default();
        if call["request"]["path"] == "/count" { Ok(()) } else { Err(calls) }
    });
}

#[test]
fn a_stream_without_bytes_is_ended_and_the_record_says_why() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "stream_idle = \"200ms\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    server(&platform, Engine::Sandbox, "s");
    let mut events = Connection::get(&platform, "/f/s/events", "");
    let head = events.head();
    events.until(b"data: 0\n\n");
    assert!(!events.rest().ends_with(b"0\r\n\r\n"));
    let call = record(&platform, &head);
    assert_eq!((&call["status"], &call["error"]["kind"]), (&json!("TIMEOUT"), &json!("timeout")), "{call}");
    assert!(call["error"]["message"].as_str().is_some_and(|message| message.contains("stream_idle")), "{call}");
}

/// A masked frame of a client (RFC 6455, 5.3).
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [1, 2, 3, 4];
    let length = u8::try_from(payload.len()).expect("a short payload");
    let masked = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [0x80 | opcode, 0x80 | length].into_iter().chain(mask).chain(masked).collect()
}

fn websockets_pass_through(platform: &Platform, name: &str) {
    let more = format!("{HANDSHAKE}Sec-WebSocket-Extensions: permessage-deflate\r\n");
    let mut socket = Connection::get(platform, &format!("/f/{name}/chat"), &more);
    let head = socket.head();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    let lower = head.to_lowercase();
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") && lower.contains("upgrade: websocket"), "{head}");
    assert!(lower.contains("x-extensions: permessage-deflate"), "extensions are the two sides' business: {head}");
    for text in ["hello", "again"] {
        socket.write(&frame(1, text.as_bytes()));
        assert_eq!(&socket.bytes(2 + text.len())[2..], text.as_bytes());
    }
    socket.write(&frame(8, &[3, 232]));
    assert_eq!(socket.bytes(4), [0x88, 2, 3, 232]);
    assert!(socket.rest().is_empty());
    let call = record(platform, &head);
    assert_eq!((&call["status"], &call["responseStatus"]), (&json!("DONE"), &json!(101)), "{call}");
    assert_eq!(call["streamed"], json!({"requestBytes": 30, "responseBytes": 18}), "{call}");

    assert_eq!(platform.post(&format!("/call/{}/replay", number(&head)), &json!({})).problem(409), "not_replayable");

    // One whose client only goes away.
    let mut socket = Connection::get(platform, &format!("/f/{name}/chat"), HANDSHAKE);
    let head = socket.head();
    drop(socket);
    assert_eq!(record(platform, &head)["status"], "DONE");
}

#[test]
fn a_handshake_that_is_none_is_refused() {
    let platform = started();
    let without_key = HANDSHAKE.lines().filter(|line| !line.contains("Key")).collect::<Vec<_>>().join("\r\n") + "\r\n";
    for (headers, status, code) in [
        (without_key, "400", "invalid_handshake"),
        (HANDSHAKE.replace("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ="), "400", "invalid_handshake"),
        (format!("{HANDSHAKE}Origin: http://evil.example\r\n"), "403", "foreign_origin"),
    ] {
        let mut refused = Connection::get(&platform, "/f/s/chat", &headers);
        let head = refused.head();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{head}");
        refused.until(code.as_bytes());
    }
    // A path that takes no WebSockets is the function's to answer.
    assert!(
        Connection::get(&platform, "/f/s/head", "Upgrade: h2c\r\nConnection: Upgrade\r\n").head().contains(" 200 ")
    );
}

#[test]
fn streams_end_on_the_version_that_they_began_on() {
    let platform = started();
    let mut events = Connection::get(&platform, "/f/s/events", "");
    let old = number(&events.head());
    events.until(b"data: 0\n\n");
    let second = SERVER.replace("data: ${number}", "new: ${number}");
    let toml: &[u8] = b"contract = \"http\"\nparallel = 16\n";
    let reply = platform.upload("streams", "s", &zip(&[("server.mjs", second.as_bytes()), ("faena.toml", toml)]));
    assert_eq!(reply.status, 200, "{}", reply.text());
    eventually(LONG, "the new version answers", || {
        let mut new = Connection::get(&platform, "/f/s/events", "");
        let head = new.head();
        if new.until(b"\n\n").contains("new: 0") { Ok(()) } else { Err(head) }
    });
    let call = platform.get(&format!("/call/{old}")).json();
    assert_eq!((&call["status"], &call["version"]), (&json!("RUNNING"), &json!(1)), "it is not cut: {call}");
}

fn a_drain_ends_streams(mut platform: Platform) {
    server(&platform, Engine::Sandbox, "s");
    let mut events = Connection::get(&platform, "/f/s/events", "");
    events.head();
    events.until(b"data: 0\n\n");
    let mut socket = Connection::get(&platform, "/f/s/chat", HANDSHAKE);
    socket.head();
    socket.write(&frame(1, b"hello"));
    socket.bytes(7);
    let stopping = std::thread::spawn(move || platform.stop());
    assert!(events.rest().ends_with(b"0\r\n\r\n"), "a stream of events ends whole");
    assert_eq!(socket.bytes(4), [0x88, 2, 3, 0xe9], "1001, going away");
    socket.write(&frame(8, &[3, 0xe9]));
    drop(socket);
    assert!(stopping.join().expect("a thread"));
}

#[test]
fn a_drain_tells_websockets_and_ends_events() {
    a_drain_ends_streams(Platform::start());
}

#[test]
fn a_drain_tells_websockets_and_ends_events_between_processes() {
    a_drain_ends_streams(Platform::start_apart());
}
