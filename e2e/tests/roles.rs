//! Roles that are killed, stopped and started while they work: calls end once, with their own result.

use std::time::Duration;

use faena_test_support::{Engine, Platform, Role, eventually};
use serde_json::json;

/// A call whose first delivery never ends by itself, and tells by the arguments of a process that it lives.
fn sleeper(platform: &Platform, engine: Engine, mark: u32) -> i64 {
    platform.shell_runtime(engine, &json!({"limits": {"timeout": "5m"}}));
    platform.script("sleeps", "[ $FAENA_ATTEMPT = 1 ] && sleep $(cat); echo attempt $FAENA_ATTEMPT");
    platform.built("sleeps");
    let num = platform.invoke(&json!({"funcName": "sleeps", "params": mark, "retries": 0}));
    eventually(Duration::from_secs(30), "the process runs", || if lives(mark) { Ok(()) } else { Err(num) });
    num
}

/// Whether a process `sleep MARK` runs anywhere on this machine.
fn lives(mark: u32) -> bool {
    let wanted = format!("sleep\0{mark}\0");
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    processes
        .map(|entry| entry.path().join("cmdline"))
        .any(|path| std::fs::read(path).is_ok_and(|line| line == wanted.as_bytes()))
}

/// A number that no other test waits with.
fn mark() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    1_000_000 + std::process::id() % 100_000 * 100 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

fn signal(pid: u32, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &pid.to_string()]).status();
    assert!(sent.expect("kill").success());
}

/// The call was lost once, delivered again, and its record says both.
fn delivered_again(call: &serde_json::Value) {
    assert_eq!((call["status"].as_str(), call["result"].as_str()), (Some("DONE"), Some("attempt 2")), "{call}");
    assert_eq!(call["attempts"][0]["error"]["kind"], "infrastructure", "{call}");
    assert_eq!(call["attempts"].as_array().map(Vec::len), Some(2), "{call}");
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
fn an_interrupt_from_the_terminal_is_a_stop_like_any_other() {
    let mut platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("plain", "cat");
    assert_eq!(platform.call("plain", &json!(1))["result"], "1");
    assert!(platform.interrupt());
    let logged = platform.logged();
    assert!(!logged.contains("has ended error="), "what makes instances was hit, too: {logged}");
}

#[test]
fn what_a_worker_held_when_it_died_is_delivered_again() {
    let mut platform = Platform::start_apart();
    let mark = mark();
    let num = sleeper(&platform, Engine::Sandbox, mark);
    platform.kill(Role::Worker);
    eventually(Duration::from_secs(10), "nothing of it is left", || if lives(mark) { Err(mark) } else { Ok(()) });
    platform.start_role(Role::Worker);
    delivered_again(&platform.ended(num));
}

#[test]
fn a_worker_that_is_stopped_beyond_its_lease_leaves_nothing_running() {
    let platform = Platform::start_apart();
    let mark = mark();
    let num = sleeper(&platform, Engine::Sandbox, mark);
    let worker = platform.pid(Role::Worker);
    signal(worker, "-STOP");
    // The agent ends it before db judges the lease: what is PENDING again runs nowhere.
    eventually(Duration::from_secs(60), "the lease is over", || {
        let call = platform.get(&format!("/call/{num}")).json();
        if call["status"] == "PENDING" { Ok(()) } else { Err(call) }
    });
    assert!(!lives(mark), "it ran beside its redelivery");
    signal(worker, "-CONT");
    delivered_again(&platform.ended(num));
}

#[test]
fn a_database_that_is_stopped_beyond_the_leases_loses_nothing() {
    let platform = Platform::start_apart();
    let mark = mark();
    let num = sleeper(&platform, Engine::Sandbox, mark);
    let db = platform.pid(Role::Db);
    signal(db, "-STOP");
    // Nobody can renew, so the agent ends what runs when its lease does.
    eventually(Duration::from_secs(60), "nothing of it is left", || if lives(mark) { Err(mark) } else { Ok(()) });
    signal(db, "-CONT");
    delivered_again(&platform.ended(num));
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
    let running = sleeper(&platform, Engine::Sandbox, mark());
    platform.shell_runtime(Engine::Sandbox, &json!({"name": "slow", "dependencies": "sleep 600"}));
    platform.upload("slow", "slow", &faena_test_support::zip(&[("run.sh", b"echo ok")]));
    eventually(Duration::from_secs(20), "the build runs", || {
        let function = platform.get("/function/slow").json();
        if function["status"] == "BUILDING" { Ok(()) } else { Err(function) }
    });
    platform.kill(Role::Up);
    platform.start_role(Role::Up);
    platform.ready();
    delivered_again(&platform.ended(running));
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
fn a_call_whose_container_is_removed_is_delivered_again() {
    let platform = Platform::start();
    let num = sleeper(&platform, Engine::Docker, mark());
    let id = std::fs::read_to_string(platform.data().join("platform-id")).expect("an id");
    let filter = format!("label=faena={}", id.trim());
    let docker = |arguments: &[&str]| std::process::Command::new("docker").args(arguments).output().expect("docker");
    let container = eventually(Duration::from_secs(20), "the container is there", || {
        let listed = docker(&["ps", "-q", "--filter", &filter]);
        let id = String::from_utf8_lossy(&listed.stdout).trim().to_owned();
        if id.is_empty() { Err(id) } else { Ok(id) }
    });
    assert!(docker(&["rm", "-f", &container]).status.success());
    delivered_again(&platform.ended(num));
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

/// The daemon's socket behind a door that can be shut.
struct Door(std::path::PathBuf);

impl Door {
    fn open(path: &std::path::Path) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(path).expect("a socket");
        std::thread::spawn(move || {
            for inside in listener.incoming().flatten() {
                let Ok(outside) = std::os::unix::net::UnixStream::connect("/var/run/docker.sock") else { return };
                for (mut from, mut to) in
                    [(inside.try_clone().expect("a socket"), outside.try_clone().expect("a socket")), (outside, inside)]
                {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Write);
                    });
                }
            }
        });
        Self(path.to_owned())
    }

    /// Nobody new gets in.
    fn shut(self) -> std::path::PathBuf {
        std::fs::remove_file(&self.0).expect("the socket");
        self.0
    }
}

#[test]
fn calls_wait_while_docker_is_away() {
    let mut platform = Platform::stopped();
    let folder = tempfile::tempdir().expect("a folder");
    let door = Door::open(&folder.path().join("docker.sock"));
    let setting = format!("docker = {:?}\n", door.0.display().to_string());
    std::fs::write(platform.settings_file(), setting).expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform.shell_runtime(Engine::Docker, &json!({}));
    platform.script("plain", "cat");
    assert_eq!(platform.call("plain", &json!(1))["status"], "DONE");
    let path = door.shut();
    let offers = |count: usize| {
        eventually(Duration::from_secs(30), "the worker says what it offers", || {
            let workers = platform.get("/workers").json();
            if workers[0]["engines"].as_array().map(Vec::len) == Some(count) { Ok(()) } else { Err(workers) }
        });
    };
    offers(1);
    let headers = [("Content-Type", "application/json"), ("Prefer", "wait=5")];
    let body = json!({"funcName": "plain", "params": 2});
    let waited = platform.send("POST", "/invokeFunction", &headers, body.to_string().as_bytes()).json();
    assert_eq!(waited["error"]["kind"], "unavailable", "{waited}");
    let num = platform.invoke(&json!({"funcName": "plain", "params": 3}));
    assert_eq!(platform.get(&format!("/call/{num}")).json()["status"], "PENDING");
    let _door = Door::open(&path);
    offers(2);
    assert_eq!(platform.ended(num)["result"], "3");
}
