//! Callbacks to a receiver in a network of its own: a public address that leads nowhere but to it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use faena_test_support::{Engine, Platform, eventually};
use serde_json::{Value, json};

/// Documentation addresses (RFC 5737): global to the judge, and nobody's.
const OURS: &str = "203.0.113.1";
const THEIRS: &str = "203.0.113.2";

fn ip(words: &str) {
    let status = Command::new("ip").args(words.split(' ')).status().expect("iproute2");
    assert!(status.success(), "ip {words}");
}

/// A network namespace at the other end of a cable; it goes with this.
struct Network(String);

impl Network {
    fn new() -> Self {
        let name = format!("faena{}", std::process::id());
        ip(&format!("netns add {name}"));
        let network = Self(name.clone());
        ip(&format!("link add {name} type veth peer name {name}p netns {name}"));
        ip(&format!("addr add {OURS}/30 dev {name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("-n {name} addr add {THEIRS}/30 dev {name}p"));
        ip(&format!("-n {name} link set {name}p up"));
        network
    }

    /// A listener in there, which answers each request with the next status and tells what it was.
    fn receiver(&self, statuses: &'static [u16]) -> Receiver<(Vec<String>, Value)> {
        let path = format!("/run/netns/{}", self.0);
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).expect("the namespace");
            let kind = Some(rustix::thread::LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).expect("root");
            let listener = TcpListener::bind((THEIRS, 80)).expect("a port");
            for status in statuses {
                let (mut stream, _) = listener.accept().expect("a connection");
                let (headers, body) = read(&mut stream);
                write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\nLocation: http://a.example/\r\n\r\n")
                    .expect("a reply");
                tell.send((headers, body)).expect("the test");
            }
        });
        told
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn read(stream: &mut impl Read) -> (Vec<String>, Value) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = stream.read(&mut chunk).expect("a request");
        bytes.extend_from_slice(&chunk[..read]);
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let lines: Vec<String> = head.lines().map(str::to_owned).collect();
        let length = lines.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            return (lines, serde_json::from_slice(&bytes[end + 4..]).expect("JSON"));
        }
    }
}

fn header<'a>(headers: &'a [String], name: &str) -> &'a str {
    headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).unwrap_or_default()
}

#[test]
fn a_callback_is_signed_tried_again_and_on_record() {
    let network = Network::new();
    let told = network.receiver(&[302, 503, 204]);
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    let made = platform.upload("shell", "tells", &faena_test_support::zip(&[("run.sh", b"cat")])).json();
    assert!(made["callbackSecret"].as_str().is_some_and(|secret| secret.starts_with("whsec_")), "{made}");
    assert!(platform.get("/function/tells").json()["callbackSecret"].is_null(), "it is shown once");
    platform.built("tells");
    let callback = format!("http://{THEIRS}/hook?x=1");
    let num = platform.invoke(&json!({"funcName": "tells", "params": 7, "callback": callback}));
    let tries: Vec<_> = (0..3).map(|_| told.recv_timeout(Duration::from_secs(60)).expect("a try")).collect();
    for (headers, body) in &tries {
        assert_eq!(headers[0], "post /hook?x=1 http/1.1");
        assert_eq!((body["type"].as_str(), body["data"]["result"].as_str()), (Some("call.ended"), Some("7")), "{body}");
        assert_eq!(header(headers, "webhook-id"), header(&tries[0].0, "webhook-id"), "the same for every try");
        assert!(header(headers, "webhook-signature").starts_with("v1,"));
        assert_eq!(header(headers, "faena-depth"), "1");
    }
    eventually(Duration::from_secs(20), "it is on record", || {
        let call = platform.get(&format!("/call/{num}")).json();
        if call["callback"] == json!({"status": "DELIVERED", "tries": 3}) { Ok(()) } else { Err(call) }
    });
}

#[test]
fn a_callback_that_leads_inside_is_refused_or_never_connected() {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("tells", "cat");
    platform.built("tells");
    let port = platform.port;
    for url in [format!("http://127.0.0.1:{port}/"), "http://[::1]/".to_owned(), "file:///etc/passwd".to_owned()] {
        let reply = platform.post("/invokeFunction", &json!({"funcName": "tells", "params": 1, "callback": url}));
        assert_eq!(reply.json()["code"], "invalid_callback", "{url}");
    }
    let named = json!({"funcName": "tells", "params": 1, "callback": "http://localhost/"});
    let num = platform.invoke(&named);
    eventually(Duration::from_secs(20), "the address is judged", || {
        let call = platform.get(&format!("/call/{num}")).json();
        let error = call["callback"]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("may not be reached: an address of this platform") { Ok(()) } else { Err(call) }
    });
}
