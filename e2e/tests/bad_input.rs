//! Everything wrong at the edge gets a problem document with a stable code, and nothing is half done afterwards.

use faena_test_support::{Engine, Platform, multipart, raw, tar_gz, zip};
use serde_json::{Value, json};

const JSON: (&str, &str) = ("Content-Type", "application/json");

fn runtime() -> Value {
    json!({"image": "pythonruntime", "path": "/ws", "dependencies": "true", "run": "true"})
}

fn with(key: &str, value: Value) -> Value {
    let mut runtime = runtime();
    runtime[key] = value;
    runtime
}

#[test]
fn runtimes_that_are_none() {
    let platform = Platform::start();
    let without = |key: &str| {
        let mut runtime = runtime();
        runtime.as_object_mut().expect("an object").remove(key);
        runtime
    };
    let mut cases: Vec<(Value, u16, &str)> = vec![
        (json!([]), 400, "malformed_json"),
        (json!("x"), 400, "malformed_json"),
        (Value::Null, 400, "malformed_json"),
        (with("imagee", json!("x")), 400, "unknown_field"),
        (with("engine", json!("teleport")), 400, "unknown_engine"),
        (with("run", json!("")), 400, "invalid_command"),
        (with("run", json!("echo 'open")), 400, "invalid_command"),
        (with("image", json!("A B")), 400, "name_needed"),
        (with("image", json!("f".repeat(64))), 400, "name_needed"),
        (with("env", json!({"LD_PRELOAD": "x"})), 400, "invalid_env"),
        (with("limits", json!({"memory": "64 GB"})), 422, "limit_exceeded"),
        (with("limits", json!({"memroy": "64 MB"})), 400, "malformed_json"),
        (with("allow", json!({"teleport": true})), 400, "malformed_json"),
    ];
    for key in ["image", "path", "dependencies", "run"] {
        cases.push((without(key), 400, "missing_field"));
        cases.push((with(key, json!(7)), 400, "malformed_json"));
    }
    for path in ["ws", "/", "/ws/../etc", "/etc", "/usr/lib/x", "/tmp", "/ws,x", "/a//b"] {
        cases.push((with("path", json!(path)), 400, "invalid_path"));
    }
    for name in ["", "..", "a/b", "a b", "ⓝame", "-a", "a;rm", "a\nb", &"x".repeat(64)] {
        cases.push((with("name", json!(name)), 400, "invalid_name"));
    }
    for (body, status, code) in cases {
        let reply = platform.post("/registerRuntime", &body);
        assert_eq!(reply.problem(status), code, "{body}");
    }
    let deep = [b"[".repeat(10_000), b"]".repeat(10_000)].concat();
    for (body, code) in [
        (b"{".as_slice(), "malformed_json"),
        (b"", "malformed_json"),
        (b"{\"image\":\"\xff\"}", "malformed_json"),
        (&deep, "too_deep"),
    ] {
        assert_eq!(platform.send("POST", "/registerRuntime", &[JSON], body).problem(400), code);
    }
    let plain =
        platform.send("POST", "/registerRuntime", &[("Content-Type", "text/plain")], runtime().to_string().as_bytes());
    assert_eq!(plain.problem(415), "not_json");
    assert_eq!(platform.get("/runtimes").json(), json!([]));
}

#[test]
fn uploads_that_are_none() {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({"limits": {"memory": "128 MB"}, "allow": {"egress": false}}));
    let good = zip(&[("run.sh", b"echo ok")]);
    let manifest = |text: &str| zip(&[("run.sh", b"echo ok"), ("faena.toml", text.as_bytes())]);
    let whole = tar_gz(&[("a", &(0..20_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())]);
    let cases: Vec<(Vec<u8>, u16, &str)> = vec![
        (Vec::new(), 400, "empty_archive"),
        (zip(&[]), 400, "empty_archive"),
        (b"echo hello".repeat(100), 415, "no_archive"),
        (good[..good.len() / 2].to_vec(), 400, "damaged_archive"),
        (whole[..whole.len() / 2].to_vec(), 400, "damaged_archive"),
        (zip(&[("../canary", b"x")]), 400, "unsafe_archive"),
        (zip(&[("a", b"x"), ("a/b", b"y")]), 400, "unsafe_archive"),
        (zip(&[("zeros", &vec![0; 200_000_000])]), 413, "too_large"),
        (manifest("contract = \"handler\""), 400, "missing_handler"),
        (manifest("contract = \"handler\"\nhandler = \"app.py:handle\""), 400, "missing_handler"),
        (manifest("contract = \"handler\"\nhandler = \"run.sh:handle\""), 400, "missing_handler"),
        (
            zip(&[("handler.py", b"def main(p): pass"), ("faena.toml", b"contract = \"handler\"")]),
            400,
            "missing_handler",
        ),
        (manifest("retires = 1"), 400, "unknown_key"),
        (manifest("retries = "), 400, "malformed_manifest"),
        (manifest("preload = \"everything\""), 400, "malformed_manifest"),
        (manifest("contract = \"soap\""), 400, "malformed_manifest"),
        (manifest("handler = \"../x.py:handle\"\ncontract = \"handler\""), 400, "malformed_manifest"),
        (manifest("parallel = 4"), 400, "malformed_manifest"),
        (manifest("contract = \"handler\"\nparallel = 0"), 422, "limit_exceeded"),
        (manifest("minimum = 1000"), 422, "limit_exceeded"),
        (manifest("[limits]\nmemory = \"256 MB\""), 422, "limit_exceeded"),
        (manifest("network = \"egress\""), 422, "egress_not_allowed"),
    ];
    for (archive, status, code) in cases {
        let reply = platform.upload("shell", "fresh", &archive);
        assert_eq!(reply.problem(status), code, "{}", reply.text());
    }
    assert_eq!(platform.upload("nosuch", "fresh", &good).problem(404), "unknown_runtime");
    for name in ["%2e%2e", "a%2fb", "a%00b", "a%20b", "%F0%9F%92%A9"] {
        assert_eq!(platform.upload("shell", name, &good).problem(400), "invalid_name", "{name}");
    }
    let send = |field: &str, data: &[u8]| {
        let (body, kind) = multipart(field, data);
        platform.send("POST", "/registerFunction/shell/fresh", &[("Content-Type", &kind)], &body)
    };
    assert_eq!(send("modul", &good).problem(400), "unknown_field");
    let raw = platform.send("POST", "/registerFunction/shell/fresh", &[("Content-Type", "application/zip")], &good);
    assert_eq!(raw.problem(415), "not_multipart");
    let edge = "multipart/form-data; boundary=x";
    let none = platform.send("POST", "/registerFunction/shell/fresh", &[("Content-Type", edge)], b"--x--\r\n");
    assert_eq!(none.problem(400), "missing_field");
    let part = "--x\r\nContent-Disposition: form-data; name=\"module\"; filename=\"a\"\r\n\r\nabc\r\n";
    let twice = platform.send(
        "POST",
        "/registerFunction/shell/fresh",
        &[("Content-Type", edge)],
        format!("{part}{part}--x--\r\n").as_bytes(),
    );
    assert_eq!(twice.problem(400), "repeated_field");
    assert_eq!(platform.get("/functions").json(), json!([]));
}

#[test]
fn names_that_differ_only_by_case_are_one() {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("dice", "echo 1");
    let twin = platform.upload("shell", "DICE", &zip(&[("run.sh", b"echo 2")]));
    assert_eq!(twin.problem(409), "conflict");
    assert_eq!(
        platform
            .post(
                "/registerRuntime",
                &json!({"name": "SHELL", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "true"})
            )
            .problem(409),
        "conflict"
    );
    assert_eq!(platform.get("/runtime/Shell").json()["name"], "shell");
}

#[test]
fn invocations_that_are_none_start_no_call() {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("plain", "echo ok");
    let cases = [
        (json!({}), 400, "missing_field"),
        (json!({"funcName": "plain"}), 400, "missing_field"),
        (json!({"funcName": 3, "params": {}}), 400, "malformed_json"),
        (json!({"funcName": "..", "params": {}}), 400, "invalid_name"),
        (json!({"funcName": "plan", "params": {}}), 404, "unknown_function"),
        (json!({"funcName": "plain", "params": {}, "version": 77}), 404, "unknown_version"),
        (json!({"funcName": "plain", "params": {}, "tiemoutMs": 3}), 400, "unknown_field"),
        (json!({"funcName": "plain", "params": {}, "timeoutMs": 0}), 400, "invalid_timeout"),
        (json!({"funcName": "plain", "params": {}, "timeoutMs": 90_000_000}), 422, "limit_exceeded"),
        (json!({"funcName": "plain", "params": {}, "retries": 1000}), 422, "limit_exceeded"),
        (json!({"funcName": "plain", "params": {}, "runAt": "soon"}), 400, "invalid_instant"),
    ];
    for (body, status, code) in cases {
        assert_eq!(platform.post("/invokeFunction", &body).problem(status), code, "{body}");
    }
    let deep =
        [b"{\"funcName\":\"plain\",\"params\":".to_vec(), b"[".repeat(10_000), b"]".repeat(10_000), b"}".to_vec()]
            .concat();
    assert_eq!(platform.send("POST", "/invokeFunction", &[JSON], &deep).problem(400), "too_deep");
    let keyed = platform.send(
        "POST",
        "/invokeFunction",
        &[JSON, ("Idempotency-Key", "two words")],
        br#"{"funcName":"plain","params":{}}"#,
    );
    assert_eq!(keyed.problem(400), "invalid_key");
    let large = format!("{{\"funcName\":\"plain\",\"params\":\"{}\"}}", "x".repeat(7_000_000));
    assert_eq!(platform.send("POST", "/invokeFunction", &[JSON], large.as_bytes()).problem(413), "too_large");
    assert_eq!(platform.send("POST", "/f/plain", &[JSON], b"{").problem(400), "malformed_json");
    assert_eq!(platform.get("/calls").json(), json!({}));
}

#[test]
fn paths_that_lead_nowhere() {
    let platform = Platform::start();
    for (path, status, code) in [
        ("/nosuch", 404, "unknown_route"),
        ("/runtime/nosuch", 404, "unknown_runtime"),
        ("/function/nosuch", 404, "unknown_function"),
        ("/function/nosuch/versions", 404, "unknown_function"),
        ("/function/nosuch/build", 404, "unknown_function"),
        ("/f/nosuch", 404, "unknown_function"),
        ("/call/999999", 404, "unknown_call"),
        ("/call/999999/logs", 404, "unknown_call"),
        ("/call/abc", 400, "invalid_call_number"),
        ("/call/-1", 400, "invalid_call_number"),
        ("/call/99999999999999999999999", 400, "invalid_call_number"),
        ("/calls?limit=many", 400, "invalid_query"),
        ("/calls?limit=0", 400, "invalid_query"),
        ("/calls?status=ASLEEP", 400, "invalid_query"),
        ("/calls?stauts=DONE", 400, "invalid_query"),
    ] {
        assert_eq!(platform.get(path).problem(status), code, "{path}");
    }
    let wrong = platform.send("DELETE", "/runtimes", &[], b"");
    assert_eq!(wrong.problem(405), "method_not_allowed");
    assert!(wrong.headers["allow"].contains("GET"));
}

#[test]
fn a_page_of_another_site_reaches_nothing() {
    let platform = Platform::start();
    for (header, status, code) in [
        (("Host", "evil.example"), 421, "foreign_host"),
        (("Origin", "http://evil.example"), 403, "foreign_origin"),
        (("Origin", "null"), 403, "foreign_origin"),
        (("Sec-Fetch-Site", "cross-site"), 403, "foreign_origin"),
        (("Sec-Fetch-Site", "same-site"), 403, "foreign_origin"),
    ] {
        for (method, path) in
            [("GET", "/calls"), ("POST", "/f/plain"), ("POST", "/registerRuntime"), ("OPTIONS", "/calls")]
        {
            let reply = platform.send(method, path, &[header], b"");
            assert_eq!(reply.problem(status), code, "{header:?} {method} {path}");
            assert!(!reply.headers.contains_key("access-control-allow-origin"));
        }
    }
    let own = [("Host", "localhost:3000"), ("Origin", "http://localhost:3000"), ("Sec-Fetch-Site", "same-origin")];
    assert_eq!(platform.send("GET", "/runtimes", &own, b"").status, 200);
}

#[test]
fn bodies_without_end_are_cut_off() {
    let platform = Platform::start();
    let head = "POST /invokeFunction HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let declared = raw(platform.port, format!("{head}Content-Length: 10000000000\r\n\r\n").as_bytes());
    assert!(declared.starts_with(b"HTTP/1.1 413"), "{:?}", String::from_utf8_lossy(&declared));
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(65_536));
    let chunked =
        raw(platform.port, format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(200)).as_bytes());
    assert!(chunked.is_empty() || chunked.starts_with(b"HTTP/1.1 413"));
    let many: String = (0..200).map(|n| format!("X-{n}: y\r\n")).collect();
    let headers = raw(platform.port, format!("GET /runtimes HTTP/1.1\r\nHost: localhost\r\n{many}\r\n").as_bytes());
    assert!(headers.starts_with(b"HTTP/1.1 431"), "{:?}", String::from_utf8_lossy(&headers));
    assert_eq!(platform.get("/healthz").status, 200);
}

#[test]
fn an_image_that_is_nowhere_says_what_each_engine_lacks() {
    let platform = Platform::start();
    let runtime =
        json!({"name": "nowhere", "image": "no-such-image-anywhere", "path": "/ws", "dependencies": "", "run": "true"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    platform.upload("nowhere", "lost", &zip(&[("a", b"b")]));
    let call = platform.call("lost", &json!({}));
    let message = call["error"]["message"].as_str().unwrap_or_default();
    assert_eq!(call["error"]["kind"], "image", "{call}");
    assert!(
        message.contains("no-such-image-anywhere") && message.contains("sandbox") && message.contains("Docker"),
        "{message}"
    );
}
