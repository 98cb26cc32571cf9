//! Invalid answers of servers and invalid requests: each harms its own call alone.

use faena_test_support::{Platform, raw, zip};
use serde_json::json;

use crate::client::Connection;
use crate::{number, record};

/// A server that answers each path with bytes of its own.
const RAW: &str = r#"
import os, socket, threading

LONG = b"x" * 70_000
ANSWERS = {
    "/ok": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "/http10": b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold but good",
    "/http09": b"<html>no head at all</html>",
    "/nothing": b"",
    "/nonsense": b"\x00\x01\x02 this is no HTTP\r\n\r\n",
    "/many-headers": b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"v" * 100) for n in range(10_000)) + b"\r\n",
    "/two-lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nokayy",
    "/longer": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more than was promised",
    "/shorter": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
    "/shorter-stream": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + LONG,
    "/huge-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8000000000000000\r\nx",
    "/negative-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nx",
    "/no-last-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n",
    "/unasked-upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "/status-999": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    "/split": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen",
}

def endless(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X-More: " + b"v" * 1000 + b"\r\n")

def serve(connection):
    try:
        head = b""
        while b"\r\n\r\n" not in head:
            part = connection.recv(65536)
            if not part:
                return
            head += part
        path = head.split(b" ")[1].decode()
        if path == "/endless-head":
            endless(connection)
        elif path == "/seen":
            body = head
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        else:
            connection.sendall(ANSWERS[path])
    except OSError:
        pass
    finally:
        connection.close()

listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=64)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

fn started() -> Platform {
    let platform = Platform::start();
    let runtime =
        json!({"name": "raw", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 server.py"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let archive = zip(&[("server.py", RAW.as_bytes()), ("faena.toml", b"contract = \"http\"\n")]);
    assert_eq!(platform.upload("raw", "raw", &archive).status, 201);
    assert_eq!(platform.built("raw")["status"], "READY");
    platform
}

#[test]
fn a_server_that_answers_nonsense_harms_its_own_call_alone() {
    let platform = started();
    let get = |path: &str| platform.get(&format!("/f/raw/{path}"));
    for path in [
        "http09",
        "nothing",
        "nonsense",
        "many-headers",
        "endless-head",
        "two-lengths",
        "shorter",
        "unasked-upgrade",
        "status-999",
    ] {
        let reply = get(path);
        assert_eq!(reply.problem(502), "function_failed", "{path}");
        assert_eq!(get("ok").text(), "ok", "after {path}");
    }
    // An old server is a server, and what follows an answer is not the next one's.
    assert_eq!(get("http10").text(), "old but good");
    for path in ["longer", "split"] {
        assert_eq!(get(path).text(), "ok", "{path}");
        assert_eq!(get("ok").text(), "ok", "after {path}");
    }
    for path in ["shorter-stream", "huge-chunk", "negative-chunk", "no-last-chunk"] {
        let mut broken = Connection::get(&platform, &format!("/f/raw/{path}"), "");
        let head = broken.head();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(!broken.rest().ends_with(b"0\r\n\r\n"), "{path} looks whole");
        let call = record(&platform, &head);
        assert_eq!(
            (&call["status"], &call["error"]["kind"]),
            (&json!("FAILED"), &json!("exception")),
            "{path}: {call}"
        );
        assert_eq!(get("ok").text(), "ok", "after {path}");
    }
}

/// What the function saw of a request that was sent as these bytes, or the status that refused it.
fn seen(platform: &Platform, bytes: &str) -> Result<String, String> {
    let reply = String::from_utf8_lossy(&raw(platform.port, bytes.as_bytes())).into_owned();
    assert_eq!(
        reply.matches("HTTP/1.1 2").count(),
        usize::from(reply.starts_with("HTTP/1.1 2")),
        "one answer: {reply}"
    );
    match reply.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 2") => Ok(body.to_lowercase()),
        _ => Err(reply.split(' ').nth(1).unwrap_or_default().to_owned()),
    }
}

#[test]
fn no_request_is_smuggled_behind_another() {
    let platform = started();
    let smuggled = "GET /f/raw/stolen HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let request = |headers: &str, body: &str| {
        format!("POST /f/raw/seen HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n{body}")
    };
    // Both lengths: the chunks count, and the other length does not reach the function.
    let both = request(
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        &format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len()),
    );
    if let Ok(head) = seen(&platform, &both) {
        assert!(head.starts_with("post /seen ") && !head.contains("content-length: 4"), "{head}");
    }
    for (what, headers) in [
        ("two lengths", "Content-Length: 4\r\nContent-Length: 5\r\n"),
        ("a list of lengths", "Content-Length: 4, 5\r\n"),
        ("a signed length", "Content-Length: +4\r\n"),
        ("a length that is no number", "Content-Length: 4x\r\n"),
        ("an unknown coding", "Transfer-Encoding: xchunked\r\n"),
        ("chunked and something after it", "Transfer-Encoding: chunked, identity\r\n"),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n"),
        ("a line that goes on", "X-Folded: a\r\n b\r\n"),
        ("a bare CR", "X-Bare: a\rb\r\n"),
    ] {
        let answer = seen(&platform, &request(headers, &format!("0\r\n\r\n{smuggled}")));
        assert_eq!(answer.as_ref().map_err(String::as_str), Err("400"), "{what}: {answer:?}");
    }
    for (what, chunks) in [
        ("a chunk of 2^64", "10000000000000000\r\nx"),
        ("a negative chunk", "-1\r\nx"),
        ("a chunk with a sign", "+1\r\nx\r\n0\r\n\r\n"),
        ("a chunk in hexadecimal notation", "0x1\r\nx\r\n0\r\n\r\n"),
        ("no line after a chunk", "1\r\nxx0\r\n\r\n"),
    ] {
        let mut bytes = request("Transfer-Encoding: chunked\r\n", chunks);
        bytes.push_str(smuggled);
        let answer = raw(platform.port, bytes.as_bytes());
        let answer = String::from_utf8_lossy(&answer);
        assert!(!answer.contains("stolen") && answer.matches("HTTP/1.1 ").count() <= 1, "{what}: {answer}");
    }
    assert_eq!(platform.get("/f/raw/ok").text(), "ok");
}

#[test]
fn a_client_that_sends_slowly_has_the_time_of_its_function() {
    let platform = started();
    let head = "POST /f/raw/seen HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut slow = Connection::send(&platform, head);
    slow.chunk(b"a");
    // The server answers although the body has not come, and its answer is not held back.
    let answer = slow.head();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(slow);
    platform.ended(number(&answer));
}
