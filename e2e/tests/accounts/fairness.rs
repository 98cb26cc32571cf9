//! Namespaces that call much, and others beside them.

use std::process::Command;

use faena_test_support::{Platform, Reply, Role, eventually, multipart, zip};
use serde_json::{Value, json};

use super::{SOON, as_who, key, root, team};

/// Ends when its call is cancelled.
const ENDLESS: &str = "sleep 3600";

/// A platform with four slots, and a key for each of two teams, which have functions of the same names.
fn two_teams() -> (Platform, [String; 2]) {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "slots = 4\ncreations = 4\npreload = \"none\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform.lock();
    let keys = ["loud", "quiet"].map(|name| {
        let lead = team(&platform, name);
        let (key, _) = key(&platform, &lead, "tests", &["admin"]);
        let runtime = json!({"name": "sh", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "sh run.sh", "engine": "sandbox"});
        assert_eq!(as_who(&platform, &key, "POST", "/registerRuntime", Some(&runtime)).status, 201);
        for function in ["a", "b", "c"] {
            upload(&platform, &key, function, ENDLESS);
        }
        upload(&platform, &key, "short", "cat input.json");
        key
    });
    (platform, keys)
}

fn upload(platform: &Platform, key: &str, function: &str, script: &str) {
    let (body, kind) = multipart("module", &zip(&[("run.sh", script.as_bytes())]));
    let headers = [("Authorization", format!("Bearer {key}")), ("Content-Type", kind)];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    let uploaded = platform.send("POST", &format!("/registerFunction/sh/{function}"), &headers, &body);
    assert_eq!(uploaded.status, 201, "{}", uploaded.text());
    eventually(SOON, "the version is built", || {
        let status = as_who(platform, key, "GET", &format!("/function/{function}"), None).json()["status"].clone();
        if status == "READY" { Ok(()) } else { Err(status) }
    });
}

fn queue(platform: &Platform, key: &str, function: &str) -> i64 {
    let call = json!({"funcName": function, "params": {"of": function}});
    let accepted = as_who(platform, key, "POST", "/invokeFunction", Some(&call));
    assert_eq!(accepted.status, 202, "{}", accepted.text());
    accepted.json()["callNum"].as_i64().expect("a number")
}

fn status(platform: &Platform, key: &str, num: i64) -> Value {
    as_who(platform, key, "GET", &format!("/call/{num}"), None).json()["status"].clone()
}

fn is_running(platform: &Platform, key: &str, nums: &[i64]) -> bool {
    nums.iter().all(|num| status(platform, key, *num) == "RUNNING")
}

#[test]
fn a_namespace_that_holds_every_slot_and_a_long_queue_delays_no_other() {
    let (platform, [loud, quiet]) = two_teams();
    let calls: Vec<i64> = (0..40).map(|n| queue(&platform, &loud, ["a", "b", "c"][n % 3])).collect();
    let running = eventually(SOON, "four of its calls run", || {
        let running: Vec<i64> =
            calls.iter().copied().filter(|num| status(&platform, &loud, *num) == "RUNNING").collect();
        if running.len() == 4 { Ok(running) } else { Err(running) }
    });
    // Nothing of it ends, so what the other one gets is the reserve, on every call path.
    for _ in 0..5 {
        let called = as_who(&platform, &quiet, "POST", "/f/short", Some(&json!({"n": 1})));
        assert_eq!((called.status, called.json()), (200, json!({"n": 1})));
        let num = queue(&platform, &quiet, "short");
        eventually(SOON, "a queued call ends", || match status(&platform, &quiet, num) {
            Value::String(status) if status == "DONE" => Ok(()),
            status => Err(status),
        });
    }
    assert!(is_running(&platform, &loud, &running));
    // With more to do it gets half of the slots as those of the other one become free.
    let own: Vec<i64> = (0..4).map(|n| queue(&platform, &quiet, ["a", "b", "c"][n % 3])).collect();
    running.iter().for_each(|num| {
        assert_eq!(as_who(&platform, &loud, "DELETE", &format!("/call/{num}"), None).status, 200);
    });
    eventually(SOON, "each has half of the slots", || {
        let held =
            |key: &str, calls: &[i64]| calls.iter().filter(|num| status(&platform, key, **num) == "RUNNING").count();
        let held = (held(&loud, &calls), held(&quiet, &own));
        if matches!(held, (2 | 3, 2 | 3)) { Ok(()) } else { Err(held) }
    });
}

#[test]
fn no_more_calls_are_under_way_than_the_quota_says() {
    let (platform, [loud, quiet]) = two_teams();
    let root = root(&platform);
    let quota = json!({"quota": {"concurrentCalls": 1}, "weight": 2});
    let patched = as_who(&platform, &root, "PATCH", "/namespace/loud", Some(&quota)).json();
    assert_eq!((&patched["weight"], &patched["quota"]["concurrentCalls"]), (&json!(2), &json!(1)), "{patched}");
    let too_heavy = as_who(&platform, &root, "PATCH", "/namespace/loud", Some(&json!({"weight": 101})));
    assert_eq!(too_heavy.problem(422), "limit_exceeded");
    let waits = Command::new("curl")
        .args(["-s", "-m", "60", "-X", "POST", "-d", "{}", "-H", "Content-Type: application/json"])
        .args(["-H", &format!("Authorization: Bearer {loud}"), &format!("http://localhost:{}/f/a", platform.port)])
        .spawn();
    let mut waits = waits.expect("curl");
    eventually(SOON, "the call is under way", || {
        let usage = as_who(&platform, &root, "GET", "/namespace/loud", None).json()["usage"].clone();
        if usage["concurrentCalls"] == 1 { Ok(()) } else { Err(usage) }
    });
    let refused = |reply: Reply| {
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.problem(429), "rate_limited");
    };
    refused(as_who(&platform, &loud, "POST", "/f/short", Some(&json!({}))));
    assert_eq!(as_who(&platform, &quiet, "POST", "/f/short", Some(&json!({}))).status, 200);
    // What is queued waits for its turn.
    let nums = [queue(&platform, &loud, "b"), queue(&platform, &loud, "c")];
    eventually(SOON, "one of them runs", || {
        let running = nums.iter().filter(|num| status(&platform, &loud, **num) == "RUNNING").count();
        if running == 1 { Ok(()) } else { Err(running) }
    });
    waits.kill().expect("curl ends");
    let _ = waits.wait();
    eventually(SOON, "the place is free again", || {
        let reply = as_who(&platform, &loud, "POST", "/f/short", Some(&json!({})));
        if reply.status == 200 { Ok(()) } else { Err(reply.status) }
    });
}
