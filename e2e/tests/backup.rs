//! A backup of a platform that works, restored beside it.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use faena_test_support::{Engine, Platform, Role, binary};
use serde_json::json;

fn faena(word: &str, file: &std::path::Path, data: &std::path::Path) -> Output {
    Command::new(binary()).arg(word).arg(file).arg("--data").arg(data).output().expect("the binary is built")
}

#[test]
fn a_backup_under_load_is_restored_whole() {
    let mut original = Platform::start();
    original.shell_runtime(Engine::Sandbox, &json!({}));
    original.script("echo", "cat");
    original.built("echo");
    let large = "x".repeat(200_000);
    let before: Vec<i64> = (0..5)
        .map(|n| {
            let num = original.invoke(&json!({"funcName": "echo", "params": [n, large]}));
            original.ended(num);
            num
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("platform.tar");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = || {
            while !is_over.load(Ordering::Relaxed) {
                original.invoke(&json!({"funcName": "echo", "params": 1}));
            }
        };
        scope.spawn(load);
        scope.spawn(load);
        let written = faena("backup", &file, &original.data());
        is_over.store(true, Ordering::Relaxed);
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    });
    assert!(!faena("backup", &file, &original.data()).status.success(), "a file that is there stays");

    let mut copy = Platform::stopped();
    let restored = faena("restore", &file, &copy.data());
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(!faena("restore", &file, &copy.data()).status.success(), "a folder that holds something stays");
    copy.start_role(Role::Up);
    copy.ready();
    assert_eq!(copy.get("/functions").json(), json!(["echo"]));
    for (n, num) in before.iter().enumerate() {
        let call = copy.get(&format!("/call/{num}")).json();
        assert_eq!((&call["status"], &call["params"][0]), (&json!("DONE"), &json!(n)), "{call}");
        assert_eq!(call["params"][1], json!(large));
    }
    assert_eq!(copy.call("echo", &json!({"again": 1}))["status"], "DONE");
    assert_eq!(original.call("echo", &json!({"still": 1}))["status"], "DONE", "the original goes on");
    let ids = [&original, &copy].map(|platform| std::fs::read(platform.data().join("platform-id")).expect("an id"));
    assert_ne!(ids[0], ids[1]);
    assert!(copy.stop() && original.stop());
}

#[test]
fn keys_of_secrets_are_in_a_backup_on_request_alone() {
    let mut original = Platform::start();
    let put = |platform: &Platform, path: &str| {
        platform.send("PUT", path, &[("Content-Type", "application/json")], b"\"canary\"").status
    };
    assert_eq!(put(&original, "/config/a?secret=true"), 201);
    let folder = tempfile::tempdir().expect("a folder");
    let keys = std::fs::read_to_string(original.data().join("secret.key")).expect("keys");
    let holds = |file: &std::path::Path| {
        let bytes = std::fs::read(file).expect("a file");
        bytes.windows(64).any(|window| window == &keys.as_bytes()[..64])
    };
    let plain = folder.path().join("plain.tar");
    assert!(faena("backup", &plain, &original.data()).status.success());
    assert!(!holds(&plain));
    let with_keys = folder.path().join("keys.tar");
    let written = Command::new(binary())
        .args(["backup", "--with-keys"])
        .arg(&with_keys)
        .arg("--data")
        .arg(original.data())
        .output()
        .expect("the binary is built");
    assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
    assert!(holds(&with_keys));
    let mut copy = Platform::stopped();
    assert!(faena("restore", &with_keys, &copy.data()).status.success());
    copy.start_role(Role::Up);
    copy.ready();
    assert_eq!(copy.send("POST", "/secrets/rotate", &[], b"").json()["secrets"], 1);
    assert!(copy.stop() && original.stop());
}
