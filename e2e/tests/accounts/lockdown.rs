//! A platform that becomes stricter while it is used.

use faena_test_support::{Engine, Platform, SECRET, eventually};
use serde_json::{Value, json};

use super::{SOON, account, as_stranger, as_who, key, locked, root, team};

fn rule(platform: &Platform, id: &str, scope: &str, name: &str, access: &str, priority: i32) {
    let resource = json!({"type": "function", "name": name, "endpoint": "*"});
    let rule = json!({"id": id, "scope": scope, "resource": resource, "access": access, "priority": priority});
    let put = platform.post("/rule", &rule);
    assert!(matches!(put.status, 200 | 201), "{}", put.text());
}

fn token(platform: &Platform, name: &str, secret: &str) -> Result<Value, u16> {
    let body = json!({"name": name, "secret": secret}).to_string();
    let headers = [("Content-Type", "application/json")];
    let reply = faena_test_support::request(platform.port, "POST", "/token", &headers, body.as_bytes());
    if reply.status == 201 { Ok(reply.json()) } else { Err(reply.status) }
}

#[test]
fn what_was_public_becomes_private_and_secrets_change() {
    let platform = locked();
    super::with_echo(&platform);
    let root = root(&platform);
    let stranger = || as_stranger(&platform, "POST", "/f/echo", &[]).status;
    assert_eq!(stranger(), 401);
    rule(&platform, "open", "", "echo", "GRANTED", 1);
    assert_eq!(stranger(), 200);
    // Public off, and a word in its place.
    assert_eq!(platform.send("DELETE", "/rule/open", &[], b"").status, 204);
    assert_eq!(stranger(), 401);
    let bob = account(&platform, "default", "bob", &["invoke"]);
    let robot = account(&platform, "default", "robot", &["robots"]);
    let call = |credential: &str| as_who(&platform, credential, "POST", "/f/echo", Some(&json!({}))).status;
    assert_eq!((call(&bob), call(&robot)), (200, 403));
    rule(&platform, "words", "robots", "echo", "GRANTED", 5);
    rule(&platform, "shut", "*", "echo", "DENIED", 4);
    assert_eq!((call(&bob), call(&robot), call(&root)), (403, 200, 403));

    // Signing out, and in again: with a wrong secret, an old one, and the new one.
    let (kept, _) = key(&platform, &robot, "kept", &["robots"]);
    assert_eq!(as_who(&platform, &robot, "DELETE", "/token", None).status, 204);
    assert_eq!((call(&robot), call(&kept)), (401, 200), "a key goes on");
    assert_eq!(token(&platform, "robot", "a wrong secret").err(), Some(401));
    let robot = token(&platform, "robot", SECRET).expect("a token");
    let access = robot["accessToken"].as_str().expect("a token").to_owned();
    let changed = json!({"old": SECRET, "new": "another secret of the robot"});
    assert_eq!(as_who(&platform, &access, "POST", "/account/robot/secret", Some(&changed)).status, 204);
    assert_eq!(call(&access), 401, "its sessions have ended");
    let refresh = json!({"refreshToken": robot["refreshToken"]});
    assert_eq!(as_stranger_with(&platform, &refresh), 401);
    assert_eq!(token(&platform, "robot", SECRET).err(), Some(401));
    assert!(token(&platform, "robot", "another secret of the robot").is_ok());
    assert_eq!(call(&kept), 200, "keys are not sessions");
    let all = json!({"new": "a third secret of the robot"});
    assert_eq!(platform.post("/account/robot/secret?keys=true", &all).status, 204);
    assert_eq!(call(&kept), 401);

    // A rule that would lock out its author needs force; an administrator of another namespace is none here.
    let resource = json!({"type": "*", "name": "*", "endpoint": "*"});
    let everything = json!({"id": "all", "scope": "*", "resource": resource, "access": "DENIED", "priority": 9});
    assert_eq!(platform.post("/rule", &everything).problem(409), "locked_out");
    // Nor may an administrator of the platform lock out those of a namespace by mistake, and what never applies is no rule.
    let lead = team(&platform, "red");
    let in_red = [("Faena-Namespace", "red")];
    assert_eq!(platform.send("DELETE", "/rule/default", &in_red, b"").problem(409), "locked_out");
    for (kind, endpoint, id) in [("functions", "*", "a"), ("function", "hook/*", "a"), ("function", "*", "public.a")] {
        let resource = json!({"type": kind, "name": "*", "endpoint": endpoint});
        let rule = json!({"id": id, "scope": "", "resource": resource, "access": "DENIED", "priority": 1});
        assert_eq!(platform.post("/rule", &rule).problem(400), "invalid_rule", "{kind} {endpoint} {id}");
    }
    let elsewhere = [("Authorization", format!("Bearer {lead}")), ("Faena-Namespace", "default".to_owned())];
    let elsewhere = elsewhere.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(as_stranger(&platform, "GET", "/rules", &elsewhere).problem(404), "unknown_namespace");
}

fn as_stranger_with(platform: &Platform, body: &Value) -> u16 {
    let headers = [("Content-Type", "application/json")];
    faena_test_support::request(platform.port, "POST", "/token", &headers, body.to_string().as_bytes()).status
}

#[test]
fn a_namespace_is_deleted_with_all_that_is_in_it_where_that_is_said() {
    let platform = locked();
    let lead = team(&platform, "red");
    let mut as_lead = Platform::stopped();
    (as_lead.port, as_lead.credential) = (platform.port, Some(lead.clone()));
    as_lead.shell_runtime(Engine::Sandbox, &json!({}));
    as_lead.script("sleeps", "sleep 3600");
    assert_eq!(as_lead.built("sleeps")["status"], "READY");
    assert_eq!(as_who(&platform, &lead, "PUT", "/config/a", Some(&json!(1))).status, 201);
    let nums: Vec<i64> = (0..2).map(|_| as_lead.invoke(&json!({"funcName": "sleeps", "params": {}}))).collect();
    as_lead.running(nums[0]);
    assert_eq!(platform.send("DELETE", "/namespace/red", &[], b"").problem(409), "conflict");
    assert_eq!(platform.get("/namespace/red?force=true").problem(400), "invalid_query");
    assert_eq!(platform.send("DELETE", "/namespace/red?force=true", &[], b"").status, 204);
    assert_eq!(platform.send("DELETE", "/namespace/red?force=true", &[], b"").problem(404), "unknown_namespace");
    assert_eq!(platform.get("/namespaces").json(), json!(["default"]));
    assert_eq!(as_who(&platform, &lead, "GET", "/functions", None).problem(401), "unauthenticated");
    eventually(SOON, "its calls end", || {
        let workers = platform.get("/workers").json();
        let calls = workers[0]["busy"].clone();
        if calls == 0 { Ok(()) } else { Err(workers) }
    });
    assert_eq!(platform.post("/namespace", &json!({"name": "red"})).problem(409), "conflict");
    // `default` is no namespace that can be deleted.
    assert_eq!(platform.send("DELETE", "/namespace/default?force=true", &[], b"").problem(409), "conflict");
}

#[test]
fn a_list_of_values_lacks_those_that_rules_deny() {
    let platform = locked();
    let put = |path: &str, value: Value| {
        let kind = [("Content-Type", "application/json")];
        assert_eq!(platform.send("PUT", path, &kind, value.to_string().as_bytes()).status, 201);
    };
    put("/config/db", json!({"host": "h", "password": "p", "inner": {"token": "t", "name": "n"}}));
    let second = account(&platform, "default", "second", &["admin", "juniors"]);
    for (id, name) in [("one", "db.password"), ("two", "db/inner/token")] {
        let resource = json!({"type": "config", "name": name, "endpoint": "*"});
        let rule = json!({"id": id, "scope": "juniors", "resource": resource, "access": "DENIED", "priority": 5});
        assert_eq!(platform.post("/rule", &rule).status, 201);
    }
    let shown = json!({"host": "h", "inner": {"name": "n"}});
    assert_eq!(as_who(&platform, &second, "GET", "/config", None).json(), json!({"db": shown}));
    assert_eq!(as_who(&platform, &second, "GET", "/config/db", None).json(), shown);
    assert_eq!(as_who(&platform, &second, "GET", "/config/db.password", None).problem(403), "forbidden");
    let of = |method: &str, path: &str, body: Option<&Value>| as_who(&platform, &second, method, path, body).status;
    assert_eq!(of("PUT", "/config/db", Some(&json!({"password": "evil"}))), 403);
    assert_eq!(of("PUT", "/config/db", Some(&json!("scalar"))), 403);
    assert_eq!(of("PUT", "/config/db.password.x", Some(&json!(1))), 403);
    assert_eq!((of("DELETE", "/config/db", None), of("DELETE", "/config/db.host", None)), (403, 204));
    let history = as_who(&platform, &second, "GET", "/config/db?history=true", None);
    assert!(history.status == 200 && !history.text().contains("password"), "{}", history.text());
    assert_eq!(platform.get("/config/db.password").json(), "p");
}
