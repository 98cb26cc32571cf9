//! Functions on origins of their own: requests and answers pass unchanged, and no route of the API exists there.

use faena_test_support::{Platform, Role, zip};
use serde_json::{Value, json};

const SERVER: &str = include_str!("streams/server.mjs");

fn server(platform: &Platform, name: &str, toml: &str) {
    let runtime =
        json!({"name": "node", "image": "noderuntime", "path": "/ws", "dependencies": "", "run": "node server.mjs"});
    assert!([200, 201].contains(&platform.post("/registerRuntime", &runtime).status));
    let archive = zip(&[("server.mjs", SERVER.as_bytes()), ("faena.toml", toml.as_bytes())]);
    let reply = platform.upload("node", name, &archive);
    assert_eq!(reply.status, 201, "{}", reply.text());
    assert_eq!(platform.built(name)["status"], "READY");
}

fn started() -> Platform {
    let platform = Platform::start();
    server(&platform, "shop", "contract = \"http\"\n");
    platform
}

/// What the function saw of a request.
fn seen(platform: &Platform, headers: &[(&str, &str)], path: &str) -> Value {
    let reply = platform.send("GET", path, headers, b"");
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[test]
fn a_request_reaches_its_function_as_it_came() {
    let platform = started();
    let host = format!("shop.localhost:{}", platform.port);
    let headers = [("Host", host.as_str()), ("Cookie", "a=b"), ("Authorization", "Basic dTpw"), ("X-Mine", "yes")];
    let request = seen(&platform, &headers, "/head?x=1");
    assert_eq!((&request["method"], &request["url"]), (&json!("GET"), &json!("/head?x=1")));
    let got = &request["headers"];
    let expected = [
        ("host", host.as_str()),
        ("cookie", "a=b"),
        ("authorization", "Basic dTpw"),
        ("x-mine", "yes"),
        ("x-forwarded-host", host.as_str()),
        ("x-forwarded-proto", "http"),
    ];
    for (name, value) in expected {
        assert_eq!(got[name], value, "{got}");
    }
    assert_eq!(got["x-forwarded-prefix"], Value::Null, "{got}");
    let platforms = seen(&platform, &[("Host", &host), ("Authorization", "Bearer fna_secret")], "/head");
    assert_eq!(platforms["headers"]["authorization"], Value::Null, "{platforms}");
    // The same function by its path gets neither, and learns where it is.
    let by_path = seen(&platform, &headers[1..], "/f/shop/head");
    assert_eq!(by_path["headers"]["cookie"], Value::Null, "{by_path}");
    assert_eq!(by_path["headers"]["x-forwarded-prefix"], "/f/shop", "{by_path}");
}

#[test]
fn an_answer_is_the_functions_own() {
    let platform = started();
    let head = |host: &str, path: &str| {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\nConnection: close\r\n\r\n");
        let reply = faena_test_support::raw(platform.port, bytes.as_bytes());
        String::from_utf8_lossy(&reply).into_owned()
    };
    let own = head("shop.localhost", "/cookie");
    let lower = own.to_lowercase();
    assert!(own.starts_with("HTTP/1.1 303") && own.contains("Location: /next\r\n"), "{own}");
    assert!(own.contains("Set-Cookie: a=1; Path=/; HttpOnly\r\n") && own.contains("Set-Cookie: b=2\r\n"), "{own}");
    assert!(lower.contains("access-control-allow-origin: *") && lower.contains("faena-call: "), "{own}");
    assert!(!lower.contains("content-security-policy"), "{own}");
    let by_path = head("localhost", "/f/shop/cookie");
    let lower = by_path.to_lowercase();
    assert!(by_path.contains("Location: /f/shop/next\r\n") && lower.contains("content-security-policy: sandbox"));
    assert!(!lower.contains("set-cookie") && !lower.contains("access-control-allow-origin"), "{by_path}");
}

#[test]
fn nothing_of_the_api_is_on_an_own_origin() {
    let platform = started();
    for path in ["/functions", "/f/shop/head", "/openapi.json", "/healthz", "/metrics"] {
        let reply = platform.send("GET", path, &[("Host", "shop.localhost")], b"");
        assert_eq!((reply.status, reply.text().as_str()), (404, "nothing here"), "{path}");
    }
    for host in ["nobody.localhost", "a_b.localhost", "shop.other.localhost", "x.shop.localhost"] {
        let reply = platform.send("GET", "/functions", &[("Host", host)], b"");
        assert_eq!(reply.problem(404), "unknown_function", "{host}");
    }
    assert_eq!(platform.send("GET", "/functions", &[("Host", "shop.example")], b"").problem(421), "foreign_host");
    // Without regard to case, and with the namespace.
    for host in ["SHOP.localhost", "shop.default.localhost"] {
        assert_eq!(platform.send("GET", "/head", &[("Host", host)], b"").status, 200, "{host}");
    }
}

#[test]
fn pages_of_other_sites_may_follow_links_and_nothing_else() {
    let platform = started();
    let status = |method: &str, more: &[(&str, &str)]| {
        let headers = [&[("Host", "shop.localhost")], more].concat();
        platform.send(method, "/head", &headers, b"").status
    };
    let cross = ("Sec-Fetch-Site", "cross-site");
    let link = [cross, ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
    assert_eq!(status("GET", &link), 200);
    assert_eq!(status("POST", &link), 403);
    assert_eq!(status("GET", &[cross, ("Sec-Fetch-Mode", "no-cors")]), 403);
    assert_eq!(status("POST", &[("Origin", "http://evil.localhost")]), 403);
    assert_eq!(status("POST", &[("Sec-Fetch-Site", "same-origin"), ("Origin", "http://shop.localhost")]), 200);
}

#[test]
fn what_a_record_keeps_has_no_credentials() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "private_headers = [\"X-Api-Key\"]\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    server(&platform, "shop", "contract = \"http\"\n");
    // One that is queued has a row before it runs.
    server(&platform, "queued", "contract = \"http\"\n[limits]\nconcurrency = 1\n");
    for function in ["shop", "queued"] {
        let host = format!("{function}.localhost");
        let headers = [("Host", host.as_str()), ("Cookie", "sid=secret"), ("X-Api-Key", "secret"), ("X-Mine", "yes")];
        let reply = platform.send("GET", "/head", &headers, b"");
        let got = reply.json()["headers"].clone();
        assert_eq!((&got["cookie"], &got["x-api-key"]), (&json!("sid=secret"), &json!("secret")), "{got}");
        let num: i64 = reply.header("faena-call").expect("a number").parse().expect("a number");
        let call = platform.ended(num);
        assert_eq!(call["request"]["headers"]["x-mine"], "yes", "{call}");
        assert!(!call["request"].to_string().contains("secret"), "{call}");
        let replay = platform.post(&format!("/call/{num}/replay"), &json!({})).json();
        let again = platform.ended(replay["callNum"].as_i64().expect("a number"));
        let got: Value = serde_json::from_str(again["result"].as_str().expect("a result")).expect("JSON");
        assert_eq!((&got["headers"]["cookie"], &got["headers"]["x-mine"]), (&Value::Null, &json!("yes")), "{got}");
    }
    platform.stop();
    let database = std::fs::read(platform.data().join("faena.db")).expect("the database");
    assert!(!database.windows(10).any(|window| window == b"sid=secret"), "a credential is left in the database");
}

#[test]
fn a_domain_of_functions_is_a_setting() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "functions_domain = \"fn.example.net\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    // A platform with names of its own is not open.
    platform.lock();
    server(&platform, "shop", "contract = \"http\"\n");
    for host in ["shop.fn.example.net", "shop.default.FN.example.net:443"] {
        assert_eq!(platform.send("GET", "/head", &[("Host", host)], b"").status, 200, "{host}");
    }
    assert_eq!(platform.send("GET", "/head", &[("Host", "fn.example.net")], b"").problem(421), "foreign_host");
    platform.stop();
    for (settings, why) in [
        ("functions_domain = \"fn.example.net\"\nhost_names = [\"faena.example.net\"]\n", "share a site"),
        ("functions_domain = \"net:443\"\n", "is no domain"),
    ] {
        std::fs::write(platform.settings_file(), settings).expect("settings");
        let output = platform.command(Role::Up).output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}
