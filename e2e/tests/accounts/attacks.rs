//! Ways past accounts that were tried, and what is right.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use faena_test_support::{Engine, Platform, SECRET, eventually, zip};
use serde_json::{Value, json};

use super::configuration::put;
use super::{SOON, account, as_stranger, as_who, key, locked, root, team};

/// Denies something to everybody who has a scope.
fn denies(platform: &Platform, id: &str, scope: &str, kind: &str, name: &str) {
    let resource = json!({"type": kind, "name": name, "endpoint": "*"});
    let rule = json!({"id": id, "scope": scope, "resource": resource, "access": "DENIED", "priority": 5});
    assert_eq!(platform.post("/rule", &rule).status, 201, "{rule}");
}

#[test]
fn strangers_cannot_spoil_the_audit() {
    let platform = locked();
    for number in 0..120 {
        let method = format!("{number}{}", "X".repeat(20_000));
        let reply = as_stranger(&platform, &method, "/x", &[("Faena-Namespace", &format!("n{number}"))]);
        assert_eq!(reply.status, 401);
    }
    let lines = platform.get("/audit").json();
    let counted =
        lines.as_array().expect("lines").iter().find(|line| line["action"] == "OTHER none").expect("one line");
    assert_eq!((&counted["count"], &counted["namespace"]), (&json!(120), &json!("default")));
    assert!(platform.get("/audit").text().len() < 10_000);
}

#[test]
fn a_body_that_ends_after_its_credential_does_nothing() {
    let platform = locked();
    let (key, id) = key(&platform, &root(&platform), "stolen", &["admin"]);
    let body = json!({"name": "late", "type": "user", "scopes": ["admin"]}).to_string();
    let (early, last) = body.split_at(body.len() - 1);
    let mut stream = TcpStream::connect(("127.0.0.1", platform.port)).expect("the platform listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let head = format!(
        "POST /account HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{early}",
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("a request");
    assert_eq!(platform.send("DELETE", &format!("/key/{id}"), &[], b"").status, 204);
    stream.write_all(last.as_bytes()).expect("the rest");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("a reply");
    // Refused at its end, or at once where its head came late.
    assert!(reply.starts_with("HTTP/1.1 400") || reply.starts_with("HTTP/1.1 401"), "{reply}");
    assert_eq!(platform.get("/account/late").problem(404), "unknown_account");
}

#[test]
fn a_change_is_recorded_also_where_its_client_leaves() {
    let platform = locked();
    for number in 0..20 {
        let body = json!({"name": format!("n{number}")}).to_string();
        let head = format!(
            "POST /namespace HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            root(&platform),
            body.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", platform.port)).expect("the platform listens");
        stream.write_all(head.as_bytes()).expect("a request");
        drop(stream);
    }
    eventually(SOON, "each namespace has its line", || {
        let made = platform.get("/namespaces").json().as_array().map_or(0, Vec::len) - 1;
        let told = platform.get("/audit?action=POST%20%2Fnamespace").json().as_array().map_or(0, Vec::len);
        if made == told { Ok(()) } else { Err((made, told)) }
    });
}

#[test]
fn what_concerns_an_account_is_recorded_in_its_namespace() {
    let platform = locked();
    let lead = team(&platform, "red");
    let bearer = format!("Bearer {lead}");
    let headers =
        [("Authorization", bearer.as_str()), ("Faena-Namespace", "default"), ("Content-Type", "application/json")];
    assert_eq!(platform.send("POST", "/key", &headers, br#"{"name": "k"}"#).status, 201);
    let wrong = json!({"name": "lead", "secret": "wrong wrong wrong", "namespace": "red"});
    assert_eq!(platform.post("/token", &wrong).problem(401), "bad_credentials");
    let lines = as_who(&platform, &lead, "GET", "/audit", None).json();
    let has = |action: &str, outcome: i64| {
        lines.as_array().expect("lines").iter().any(|line| line["action"] == action && line["outcome"] == outcome)
    };
    assert!(
        has("POST /key", 201) && has("POST /token", 201) && has("POST /token", 401) && has("POST /account", 201),
        "{lines}"
    );
    // The header tells nothing about which namespaces there are.
    for namespace in ["default", "nowhere"] {
        let headers = [("Authorization", bearer.as_str()), ("Faena-Namespace", namespace)];
        assert_eq!(platform.send("GET", "/whoami", &headers, b"").json()["namespace"], "red");
        assert_eq!(platform.send("GET", "/workers", &headers, b"").problem(404), "unknown_namespace");
    }
}

#[test]
fn a_rule_about_a_thing_covers_every_way_to_it() {
    let platform = locked();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    let junior = account(&platform, "default", "junior", &["admin", "juniors"]);
    let ann = platform.get("/whoami").json()["account"].clone();
    assert_eq!(ann, "root");
    denies(&platform, "pay", "juniors", "deployment", "pay");
    denies(&platform, "kept", "juniors", "rule", "pay");
    denies(&platform, "owner", "juniors", "account", "root");
    denies(&platform, "shell", "juniors", "runtime", "shell");
    let refused = |method: &str, path: &str, body: Value| {
        let reply = as_who(&platform, &junior, method, path, Some(&body));
        assert_eq!(reply.problem(403), "forbidden", "{method} {path}: {}", reply.text());
    };
    refused("POST", "/registerFunction/shell/pay", json!({}));
    let open = json!({"id": "PAY", "scope": "", "resource": {"type": "*", "name": "*", "endpoint": "*"}, "access": "GRANTED", "priority": 1});
    refused("POST", "/rule", open);
    let id = platform.get("/account/root").json()["id"].as_str().expect("an id").to_owned();
    for path in ["/account/root".to_owned(), format!("/account/{id}")] {
        refused("DELETE", &path, json!({}));
        refused("POST", &format!("{path}/secret"), json!({"new": SECRET}));
    }
    refused(
        "POST",
        "/registerRuntime",
        json!({"name": "shell", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "x"}),
    );
    // Its own secret is everyone's.
    let own = json!({"old": SECRET, "new": "another secret"});
    assert_eq!(as_who(&platform, &junior, "POST", "/account/junior/secret", Some(&own)).status, 204);
}

#[test]
fn a_value_that_is_denied_is_not_bound_by_what_it_lies_in() {
    let platform = locked();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    assert_eq!(put(&platform, "db", &json!({"host": "one", "password": "hidden"})).status, 201);
    let deployer = account(&platform, "default", "dev", &["deploy", "devs"]);
    denies(&platform, "one", "devs", "config", "db.password");
    denies(&platform, "tree", "devs", "config", "prod/*");
    let mut as_deployer = Platform::stopped();
    (as_deployer.port, as_deployer.credential) = (platform.port, Some(deployer));
    let upload = |path: &str| {
        let toml = format!("[env]\nX = {{ config = \"{path}\" }}\n");
        as_deployer.upload("shell", "f", &zip(&[("run.sh", b"true"), ("faena.toml", toml.as_bytes())])).status
    };
    for path in ["db.password", "db", "DB.Password", "db.password.inner", "prod.key", "prod"] {
        assert_eq!(upload(path), 403, "{path}");
    }
    assert_eq!(upload("db.host"), 201);
}

#[test]
fn a_key_that_ends_makes_none_that_outlives_it() {
    let platform = locked();
    let asked = json!({"name": "short", "expiresAt": "2999-01-01T00:00:00Z"});
    let short = as_who(&platform, &root(&platform), "POST", "/key", Some(&asked)).json();
    let short = short["key"].as_str().expect("a key");
    let made = as_who(&platform, short, "POST", "/key", Some(&json!({"name": "long"}))).json();
    assert_eq!(made["expiresAt"], "2999-01-01T00:00:00.000Z", "{made}");
}

#[test]
fn a_name_of_a_namespace_is_not_used_again() {
    let platform = locked();
    let lead = team(&platform, "red");
    assert_eq!(platform.send("DELETE", "/namespace/red", &[], b"").status, 204);
    assert_eq!(as_who(&platform, &lead, "GET", "/whoami", None).problem(401), "unauthenticated");
    assert_eq!(platform.post("/namespace", &json!({"name": "red"})).problem(409), "conflict");
    let into_red = json!({"name": "spy", "type": "user", "namespace": "red"});
    assert_eq!(platform.post("/account", &into_red).problem(404), "unknown_namespace");
}

#[test]
fn a_namespace_lets_its_functions_ask_for_what_it_was_given() {
    let platform = locked();
    let lead = team(&platform, "red");
    let runtime = |allow: Option<Value>| {
        let mut runtime = json!({"name": "r", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "bash run.sh", "engine": "sandbox"});
        allow.into_iter().for_each(|allow| runtime["allow"] = allow);
        as_who(&platform, &lead, "POST", "/registerRuntime", Some(&runtime))
    };
    assert_eq!(runtime(Some(json!({"egress": true}))).problem(403), "forbidden");
    assert_eq!(runtime(Some(json!({"networks": ["10.0.0.0/8"]}))).problem(403), "forbidden");
    assert_eq!(runtime(None).status, 201);
    let mut as_lead = Platform::stopped();
    (as_lead.port, as_lead.credential) = (platform.port, Some(lead.clone()));
    let archive = zip(&[("run.sh", b"true"), ("faena.toml", b"network = \"egress\"\n")]);
    assert_eq!(as_lead.upload("r", "f", &archive).problem(422), "egress_not_allowed");
    let patch = json!({"allow": {"egress": true}}).to_string();
    let kind = [("Content-Type", "application/json")];
    assert_eq!(as_lead.send("PATCH", "/namespace/red", &kind, patch.as_bytes()).problem(403), "forbidden");
    let patched = platform.send("PATCH", "/namespace/red", &kind, patch.as_bytes()).json();
    assert_eq!(patched["allow"], json!({"egress": true, "minimum": false, "preload": false, "public": false}));
    assert_eq!(runtime(None).status, 200);
    assert_eq!(as_lead.upload("r", "f", &archive).status, 201);
}

#[test]
fn what_makes_a_request_the_same_call_is_its_accounts_own() {
    let platform = locked();
    super::with_echo(&platform);
    let invoke = |name: &str| {
        let bearer = format!("Bearer {}", account(&platform, "default", name, &["invoke"]));
        let headers =
            [("Authorization", bearer.as_str()), ("Idempotency-Key", "same"), ("Content-Type", "application/json")];
        let again = || {
            platform.send("POST", "/invokeFunction", &headers, br#"{"funcName": "echo", "params": {}}"#).json()["callNum"].clone()
        };
        let (first, second) = (again(), again());
        assert_eq!(first, second);
        first
    };
    assert_ne!(invoke("ann"), invoke("bob"));
}

#[test]
fn a_record_keeps_no_header_that_is_a_secret_by_its_name() {
    let platform = locked();
    super::with_echo(&platform);
    let headers = [("X-Api-Key", "canary"), ("X_Hub_Signature", "canary"), ("X-Mine", "kept")];
    assert_eq!(platform.send("POST", "/f/echo", &headers, b"{}").status, 200);
    let calls = eventually(SOON, "the call is on record", || {
        let calls = platform.get("/calls").text();
        if calls.contains("kept") { Ok(calls) } else { Err(calls) }
    });
    assert!(!calls.contains("canary"), "{calls}");
}

#[test]
fn a_namespace_has_what_its_quota_permits() {
    let platform = locked();
    let lead = team(&platform, "red");
    let mut as_lead = Platform::stopped();
    (as_lead.port, as_lead.credential) = (platform.port, Some(lead.clone()));
    as_lead.shell_runtime(Engine::Sandbox, &json!({}));
    as_lead.script("one", "echo one");
    let kind = [("Content-Type", "application/json")];
    let quota = json!({"quota": {"functions": 1, "callsPerMinute": 4}}).to_string();
    let patched = platform.send("PATCH", "/namespace/red", &kind, quota.as_bytes()).json();
    assert_eq!((&patched["quota"]["functions"], &patched["usage"]["functions"]), (&json!(1), &json!(1)), "{patched}");
    let second = as_lead.upload("shell", "two", &zip(&[("run.sh", b"true")]));
    assert_eq!(second.problem(403), "quota_exceeded");
    as_lead.script("one", "echo another version");
    assert_eq!(as_lead.built("one")["status"], "READY");
    let open = json!({"id": "open", "scope": "", "resource": {"type": "function", "name": "one", "endpoint": "*"}, "access": "GRANTED", "priority": 1});
    assert_eq!(as_lead.post("/rule", &open).status, 201);
    let stranger = || as_stranger(&platform, "POST", "/f/one", &[("Faena-Namespace", "red")]);
    // A minute may end in between: then as many are permitted again.
    let permitted = (0..5).filter(|_| stranger().status == 200).count();
    assert!((2..=4).contains(&permitted), "{permitted}");
    let refused = stranger();
    assert_eq!(refused.problem(429), "rate_limited");
    assert!(refused.header("retry-after").is_some());
    let own = (0..9).filter(|_| as_who(&platform, &lead, "POST", "/f/one", None).status == 200).count();
    assert!((2..=6).contains(&own), "{own}");
    // Other namespaces are not concerned.
    assert_eq!(platform.get("/functions").status, 200);
}

#[test]
fn a_function_is_public_where_its_runtime_allows_that() {
    let platform = locked();
    let archive = |toml: &str| zip(&[("run.sh", b"echo hello"), ("faena.toml", toml.as_bytes())]);
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    assert_eq!(platform.upload("shell", "hook", &archive("access = \"public\"\n")).problem(422), "public_not_allowed");
    platform.shell_runtime(Engine::Sandbox, &json!({"allow": {"public": true}}));
    let call = || as_stranger(&platform, "POST", "/f/hook", &[]).status;
    assert_eq!(platform.upload("shell", "hook", &archive("access = \"public\"\n")).status, 201);
    assert_eq!(platform.built("hook")["status"], "READY");
    eventually(SOON, "everyone may call it", || if call() == 200 { Ok(()) } else { Err(call()) });
    assert!(platform.get("/rules").text().contains("public.hook"));
    // A rule denies it, and so does the next version that says nothing.
    denies(&platform, "shut", "", "function", "hook");
    eventually(SOON, "nobody may", || if call() == 401 { Ok(()) } else { Err(call()) });
    assert_eq!(platform.send("DELETE", "/rule/shut", &[], b"").status, 204);
    eventually(SOON, "everyone may again", || if call() == 200 { Ok(()) } else { Err(call()) });
    assert_eq!(platform.upload("shell", "hook", &archive("")).status, 200);
    eventually(SOON, "the next version is not public", || if call() == 401 { Ok(()) } else { Err(call()) });
}
