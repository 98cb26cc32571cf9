//! Functions that are HTTP servers: requests and answers pass as they were written.

use std::io::{Read, Write};
use std::net::TcpStream;

use faena_test_support::{Platform, zip};
use serde_json::json;

/// A server that answers with the names of the headers it got, and with odd names of its own.
const NAMES: &str = r#"
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = " ".join(self.headers.keys()).encode()
        self.wfile.write(b"HTTP/1.1 200 OK\r\neTag: \"1\"\r\nX-ODD: a\r\nx-low: b\r\nX-Plain: c\r\ncontent-type: text/plain\r\n")
        self.wfile.write(b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

/// Registers a server in Python and waits for its build.
fn server(platform: &Platform, name: &str, code: &str) {
    let runtime =
        json!({"name": name, "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 server.py"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let archive = zip(&[("server.py", code.as_bytes()), ("faena.toml", b"contract = \"http\"\n")]);
    let reply = platform.upload(name, name, &archive);
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(platform.built(name)["status"], "READY");
}

/// What is answered to the bytes of a request.
fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).expect("sent");
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut chunk).expect("an answer");
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if length == Some(body.len()) {
                return text.into_owned();
            }
        }
    }
}

fn names_keep_their_case(mut platform: Platform) {
    server(&platform, "names", NAMES);
    let mut stream = TcpStream::connect(("127.0.0.1", platform.port)).expect("a connection");
    // On one connection each head has names of its own, and with a key the call takes the way by the database.
    for (names, key) in [(["X-REQUEST-ID", "x-lower", "X-Plain"], ""), (["x-request-id", "X-Lower", "X-PLAIN"], "k")] {
        let [first, second, third] = names;
        let key = if key.is_empty() { String::new() } else { format!("Idempotency-Key: {key}\r\n") };
        let request =
            format!("GET /f/names HTTP/1.1\r\nHost: localhost\r\n{first}: 1\r\n{key}{second}: 2\r\n{third}: 3\r\n\r\n");
        let answer = exchange(&mut stream, &request);
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let got: Vec<&str> = body.split(' ').collect();
        assert!(names.iter().all(|name| got.contains(name)), "{names:?} became {got:?}");
        for line in ["eTag: \"1\"", "X-ODD: a", "x-low: b", "X-Plain: c", "content-type: text/plain"] {
            assert!(head.lines().any(|told| told == line), "{line} is not in {head}");
        }
    }
    assert!(platform.stop());
}

#[test]
fn header_names_keep_their_case() {
    names_keep_their_case(Platform::start());
}

#[test]
fn header_names_keep_their_case_between_processes() {
    names_keep_their_case(Platform::start_apart());
}

/// A server that redirects, and tells what it knows of the way to it.
const REDIRECTS: &str = r#"
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/":
            self.send_response(302)
            self.send_header("Location", "/cart?full=1")
            self.end_headers()
        else:
            told = [self.headers["X-Forwarded-" + name] for name in ("Prefix", "Proto", "Host", "For")]
            body = " ".join([self.path] + told).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[test]
fn a_redirection_leads_to_the_function_again() {
    let mut platform = Platform::start();
    server(&platform, "shop", REDIRECTS);
    for headers in [&[("Accept", "*/*")][..], &[("Accept", "text/html"), ("Idempotency-Key", "a")]] {
        let reply = platform.send("GET", "/f/shop", headers, b"");
        assert_eq!((reply.status, reply.header("location")), (302, Some("/f/shop/cart?full=1")));
    }
    let reply = platform.send("GET", "/f/shop", &[], b"");
    assert_eq!((reply.status, reply.header("location")), (302, Some("/cart?full=1")));
    // What comes by a proxy is not open to the user of this machine.
    let forwarded = [("X-Forwarded-For", "192.0.2.7")];
    assert_eq!(platform.send("GET", "/f/shop/cart", &forwarded, b"").problem(401), "unauthenticated");
    platform.lock();
    let reply = platform.send("GET", "/f/shop/cart?full=1", &forwarded, b"");
    assert_eq!(reply.text(), "/cart?full=1 /f/shop http localhost 127.0.0.1");
    assert!(platform.stop());
}

/// A server that answers with the request that it got.
const ECHO: &str = r#"
import http.server, json, os

class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0)).decode()
        told = json.dumps([self.command, self.path, self.headers["X-MINE"], self.headers["Content-Type"], body], separators=(",", ":")).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_PUT = do_POST = answer

http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[test]
fn an_invocation_carries_a_request_and_so_does_its_replay() {
    let mut platform = Platform::start();
    server(&platform, "echo", ECHO);
    let json_type = "application/json";
    for (request, params, told) in [
        (
            json!({"method": "PUT", "path": "/a%20b", "query": "x=1", "headers": {"X-Mine": "v"}}),
            json!([1]),
            json!(["PUT", "/a%20b?x=1", "v", json_type, "[1]"]),
        ),
        (json!({"method": "GET", "path": "/list"}), json!({}), json!(["GET", "/list", null, null, ""])),
        (json!({}), json!({"a": 1}), json!(["POST", "/", null, json_type, "{\"a\":1}"])),
    ] {
        let invocation = json!({"funcName": "echo", "params": params, "request": request});
        let wait = [("Content-Type", json_type), ("Prefer", "wait=30")];
        let waited = platform.send("POST", "/invokeFunction", &wait, invocation.to_string().as_bytes());
        assert_eq!(
            (waited.status, waited.json()["result"].as_str()),
            (200, Some(told.to_string().as_str())),
            "{}",
            waited.text()
        );
        let call = platform.ended(platform.invoke(&invocation));
        assert_eq!(call["result"], told.to_string(), "{call}");
        let again = platform.post(&format!("/call/{}/replay", call["callNum"]), &json!({}));
        let again = platform.ended(again.json()["callNum"].as_i64().expect("a number"));
        assert_eq!(again["result"], told.to_string(), "{again}");
    }
    let wrong = json!({"funcName": "echo", "params": {}, "request": {"path": "nowhere"}});
    assert_eq!(platform.post("/invokeFunction", &wrong).problem(400), "invalid_request");
    assert!(platform.stop());
}
