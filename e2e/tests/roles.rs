//! Roles that are killed while they work: calls end and are never left hanging.

use std::time::Duration;

use faena_test_support::{Engine, Platform, Role, eventually};
use serde_json::json;

fn sleeper(platform: &Platform, engine: Engine) -> i64 {
    platform.shell_runtime(engine, &json!({}));
    platform.script("sleeps", "sleep $(cat)");
    platform.built("sleeps");
    let num = platform.invoke(&json!({"funcName": "sleeps", "params": 600, "retries": 0}));
    platform.running(num);
    num
}

#[test]
fn roles_apart_serve_like_all_in_one() {
    let mut platform = Platform::start_apart();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("plain", "cat");
    assert_eq!(platform.call("plain", &json!([1, 2]))["result"], "[1,2]");
    let reply = platform.send("POST", "/f/plain", &[("Content-Type", "text/plain")], b"raw \xff bytes");
    assert_eq!((reply.status, reply.body.as_slice()), (200, b"raw \xff bytes".as_slice()));
    assert!(platform.stop());
}

#[test]
fn a_worker_that_dies_fails_its_calls_when_it_comes_back() {
    let mut platform = Platform::start_apart();
    let num = sleeper(&platform, Engine::Sandbox);
    platform.kill(Role::Worker);
    platform.start_role(Role::Worker);
    let call = platform.ended(num);
    assert_eq!(
        (call["status"].as_str(), call["error"]["kind"].as_str()),
        (Some("FAILED"), Some("infrastructure")),
        "{call}"
    );
    platform.ready();
    assert_eq!(platform.call("sleeps", &json!(0))["status"], "DONE");
}

#[test]
fn a_database_that_dies_and_comes_back_loses_nothing() {
    let mut platform = Platform::start_apart();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("naps", "sleep 2; echo done");
    platform.built("naps");
    let num = platform.invoke(&json!({"funcName": "naps", "params": {}}));
    platform.running(num);
    platform.kill(Role::Db);
    assert_eq!(platform.get("/readyz").status, 503);
    platform.start_role(Role::Db);
    assert_eq!(platform.ended(num)["result"], "done");
}

#[test]
fn an_api_that_dies_and_comes_back_finds_its_worker_and_its_calls() {
    let mut platform = Platform::start_apart();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("naps", "sleep 1; echo done");
    platform.built("naps");
    let num = platform.invoke(&json!({"funcName": "naps", "params": {}}));
    platform.running(num);
    platform.kill(Role::Api);
    platform.start_role(Role::Api);
    platform.ready();
    assert_eq!(platform.ended(num)["result"], "done");
}

#[test]
fn a_platform_killed_with_everything_goes_on_after_a_restart() {
    let mut platform = Platform::start();
    let running = sleeper(&platform, Engine::Sandbox);
    platform.shell_runtime(Engine::Sandbox, &json!({"name": "slow", "dependencies": "sleep 600"}));
    platform.upload("slow", "slow", &faena_test_support::zip(&[("run.sh", b"echo ok")]));
    eventually(Duration::from_secs(20), "the build runs", || {
        let function = platform.get("/function/slow").json();
        if function["status"] == "BUILDING" { Ok(()) } else { Err(function) }
    });
    platform.kill(Role::Up);
    platform.start_role(Role::Up);
    platform.ready();
    let call = platform.ended(running);
    assert_eq!(call["error"]["kind"], "infrastructure", "{call}");
    eventually(Duration::from_secs(20), "the build begins anew", || {
        let function = platform.get("/function/slow").json();
        if function["status"] == "BUILDING" { Ok(()) } else { Err(function) }
    });
}

#[test]
fn a_drained_call_waits_for_the_next_start() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "grace = \"200ms\"\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("first", "sleep 3; echo attempt $FAENA_ATTEMPT");
    platform.built("first");
    let num = platform.invoke(&json!({"funcName": "first", "params": {}, "retries": 0}));
    platform.running(num);
    assert!(platform.stop());
    platform.start_role(Role::Up);
    platform.ready();
    assert_eq!(platform.ended(num)["result"], "attempt 1", "the drained attempt is not spent");
}

#[test]
fn a_container_that_is_removed_under_a_call_fails_it() {
    let platform = Platform::start();
    let num = sleeper(&platform, Engine::Docker);
    let id = std::fs::read_to_string(platform.data().join("platform-id")).expect("an id");
    let filter = format!("label=faena={}", id.trim());
    let docker = |arguments: &[&str]| std::process::Command::new("docker").args(arguments).output().expect("docker");
    let container = eventually(Duration::from_secs(20), "the container is there", || {
        let listed = docker(&["ps", "-q", "--filter", &filter]);
        let id = String::from_utf8_lossy(&listed.stdout).trim().to_owned();
        if id.is_empty() { Err(id) } else { Ok(id) }
    });
    assert!(docker(&["rm", "-f", &container]).status.success());
    let call = platform.ended(num);
    assert_eq!(
        (call["status"].as_str(), call["error"]["kind"].as_str()),
        (Some("FAILED"), Some("infrastructure")),
        "{call}"
    );
}

#[test]
fn a_second_platform_on_the_same_folder_is_refused_with_a_sentence() {
    let platform = Platform::start();
    let output = platform.command(Role::Up).output().expect("the binary");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("uses the data folder"), "{said}");
}

#[test]
fn a_long_data_path_works() {
    let mut platform = Platform::stopped();
    let deep = platform.data().join("x".repeat(100)).join("y".repeat(100));
    std::fs::write(platform.settings_file(), format!("blobs = {:?}\n", deep.display().to_string())).expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform.shell_runtime(Engine::Docker, &json!({}));
    platform.script("plain", "echo ok");
    assert_eq!(platform.call("plain", &json!({}))["result"], "ok");
}
