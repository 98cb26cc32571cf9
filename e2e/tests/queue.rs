//! Asynchronous calls as their users see them: keys, cancelling, replays, dead letters, later.

use std::time::Duration;

use faena_test_support::{Engine, Platform, Reply, eventually};
use serde_json::{Value, json};

fn with_script(name: &str, script: &str) -> Platform {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script(name, script);
    platform.built(name);
    platform
}

fn keyed(platform: &Platform, key: &str, body: &Value) -> Reply {
    let headers = [("Content-Type", "application/json"), ("Idempotency-Key", key)];
    platform.send("POST", "/invokeFunction", &headers, body.to_string().as_bytes())
}

#[test]
fn one_key_is_one_call_on_both_routes_and_over_a_restart() {
    let mut platform = with_script("count", "echo $FAENA_CALL");
    let body = json!({"funcName": "count", "params": 1});
    let first = keyed(&platform, "k1", &body).json()["callNum"].clone();
    assert_eq!(keyed(&platform, "k1", &body).json()["callNum"], first);
    let other = keyed(&platform, "k1", &json!({"funcName": "count", "params": 2}));
    assert_eq!((other.status, other.json()["code"].as_str()), (422, Some("key_reused")));
    let direct = |body: &[u8]| platform.send("POST", "/f/count", &[("Idempotency-Key", "k2")], body);
    let (one, two) = (direct(b"x"), direct(b"x"));
    assert_eq!((one.status, one.text()), (200, two.text()));
    assert_eq!(direct(b"y").status, 422);
    let bad = keyed(&platform, "a b", &body);
    assert_eq!((bad.status, bad.json()["code"].as_str()), (400, Some("invalid_key")));
    assert!(platform.stop());
    platform.start_role(faena_test_support::Role::Up);
    platform.ready();
    assert_eq!(keyed(&platform, "k1", &body).json()["callNum"], first);
}

#[test]
fn a_waited_call_is_cancelled_like_any_other() {
    let platform = with_script("sleeps", "sleep 600");
    let waiting = std::thread::spawn({
        let port = platform.port;
        move || {
            let headers = [("Content-Type", "application/json"), ("Prefer", "wait=60")];
            let body = json!({"funcName": "sleeps", "params": 1}).to_string();
            faena_test_support::request(port, "POST", "/invokeFunction", &headers, body.as_bytes())
        }
    });
    platform.running(1);
    let cancelled = platform.send("DELETE", "/call/1", &[], b"");
    assert_eq!((cancelled.status, cancelled.json()["status"].as_str()), (200, Some("CANCELLED")));
    assert_eq!(waiting.join().expect("a reply").json()["status"], "CANCELLED");
    eventually(Duration::from_secs(10), "it is on record, and its slot free", || {
        let (call, workers) = (platform.get("/call/1").json(), platform.get("/workers").json());
        if call["status"] == "CANCELLED" && workers[0]["busy"] == 0 { Ok(()) } else { Err((call, workers)) }
    });
    assert_eq!(platform.send("DELETE", "/call/1", &[], b"").json()["code"], "already_ended");
    assert_eq!(platform.send("DELETE", "/call/999999", &[], b"").status, 404);
}

#[test]
fn dead_letters_are_replayed_one_by_one_and_together() {
    let platform = with_script("fails", "echo no >&2; exit 3");
    let nums: Vec<i64> =
        (0..3).map(|_| platform.invoke(&json!({"funcName": "fails", "params": 7, "retries": 0}))).collect();
    nums.iter().for_each(|num| drop(platform.ended(*num)));
    assert_eq!(platform.get("/deadLetters").json().as_object().map(serde_json::Map::len), Some(3));
    assert_eq!(platform.get("/deadLetters?funcName=other").json(), json!({}));
    platform.script("fails", "cat");
    platform.built("fails");
    let one = platform.send("POST", &format!("/call/{}/replay", nums[0]), &[], b"");
    assert_eq!((one.status, one.json()["replayOf"].as_i64()), (202, Some(nums[0])));
    assert_eq!(platform.ended(one.json()["callNum"].as_i64().expect("a number"))["result"], "7");
    let old = platform.post(&format!("/call/{}/replay", nums[0]), &json!({"version": 1}));
    assert_eq!(old.json()["version"], 1);
    // On the old version it fails again, and is a dead letter of its own.
    assert_eq!(platform.ended(old.json()["callNum"].as_i64().expect("a number"))["status"], "FAILED");
    let replay = || platform.post("/deadLetters/replay", &json!({"funcName": "fails"}));
    let many = replay();
    assert_eq!((many.status, many.json().as_object().map(serde_json::Map::len)), (202, Some(3)));
    assert_eq!(replay().json(), json!({}), "what was replayed is not replayed again");
    let named = platform.post("/deadLetters/replay", &json!({"callNums": [nums[1]]})).json();
    assert!(many.json().as_object().expect("calls").keys().any(|num| named.get(num).is_some()), "{named}");
    let letters = platform.get("/deadLetters").json();
    assert!(nums.iter().all(|num| letters[format!("c{num}")]["replayedAs"].is_i64()), "{letters}");
    let path = format!("/deadLetter/{}", nums[0]);
    assert_eq!(platform.send("DELETE", &path, &[], b"").status, 204);
    assert_eq!(platform.send("DELETE", &path, &[], b"").problem(404), "unknown_dead_letter");
    assert_eq!(platform.post("/deadLetters/replay", &json!({})).json()["code"], "invalid_selection");
    assert_eq!(platform.send("POST", "/call/999999/replay", &[], b"").status, 404);
}

#[test]
fn a_direct_call_is_replayed_with_its_body() {
    let platform = with_script("reads", "cat");
    let first = platform.send("POST", "/f/reads", &[("Content-Type", "text/plain")], b"the body");
    assert_eq!(first.text(), "the body");
    let num = first.headers["faena-call"].clone();
    let again = platform.send("POST", &format!("/call/{num}/replay"), &[], b"");
    assert_eq!(again.status, 202, "{}", again.text());
    assert_eq!(platform.ended(again.json()["callNum"].as_i64().expect("a number"))["result"], "the body");
}

#[test]
fn no_more_calls_of_a_function_run_at_once_than_it_says() {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    let files: [(&str, &[u8]); 2] =
        [("run.sh", b"sleep 0.3; date +%s%N"), ("faena.toml", b"[limits]\nconcurrency = 1\n")];
    assert_eq!(platform.upload("shell", "alone", &faena_test_support::zip(&files)).status, 201);
    platform.built("alone");
    let nums: Vec<i64> = (0..4).map(|_| platform.invoke(&json!({"funcName": "alone", "params": 1}))).collect();
    let mut ends: Vec<i64> = nums
        .iter()
        .map(|num| platform.ended(*num)["result"].as_str().and_then(|text| text.parse().ok()).expect("a time"))
        .collect();
    ends.sort_unstable();
    assert!(ends.windows(2).all(|pair| pair[1] - pair[0] > 290_000_000), "{ends:?}");
}

#[test]
fn what_is_asked_for_wrongly_is_told() {
    let platform = with_script("plain", "cat");
    for (field, code) in [
        (json!({"runAt": "tomorrow"}), "invalid_instant"),
        (json!({"maxAgeMs": 0}), "limit_exceeded"),
        (json!({"priority": 101}), "limit_exceeded"),
        (json!({"priority": "high"}), "malformed_json"),
        (json!({"callback": "http://10.0.0.1/"}), "invalid_callback"),
    ] {
        let mut body = json!({"funcName": "plain", "params": 1});
        body.as_object_mut().expect("an object").extend(field.as_object().cloned().unwrap_or_default());
        assert_eq!(platform.post("/invokeFunction", &body).json()["code"], code, "{body}");
    }
    assert_eq!(platform.get("/calls").json(), json!({}));
}
