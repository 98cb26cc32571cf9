//! What was answered 202 survives a power cut: the database runs on a disk that loses whatever was not synced.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use faena_test_support::{Engine, Platform, Role, eventually, request};
use serde_json::json;

/// The shim, compiled into a folder.
fn shim(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/unsynced.c");
    let library = folder.join("unsynced.so");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(source)
        .args(["-ldl", "-lpthread"])
        .status();
    assert!(compiled.expect("a C compiler").success());
    library
}

struct Disk {
    folder: tempfile::TempDir,
    lies: bool,
}

impl Disk {
    fn new(lies: bool) -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), lies }
    }

    fn synced(&self) -> PathBuf {
        self.folder.path().join("synced")
    }

    /// A database service on this disk.
    fn start(&self, platform: &Platform) -> Child {
        std::fs::create_dir_all(self.synced()).expect("a folder");
        let mut command = platform.command(Role::Db);
        command.env("LD_PRELOAD", shim(self.folder.path())).env("UNSYNCED_FROM", platform.data());
        command
            .env("UNSYNCED_TO", self.synced())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        if self.lies {
            command.env("UNSYNCED_LIE", "1");
        }
        command.spawn().expect("the binary is built")
    }

    /// The power goes, and comes back: only what was synced is there.
    fn cut(&self, platform: &Platform, mut db: Child) -> Child {
        db.kill().expect("it runs");
        db.wait().expect("it ends");
        for name in ["faena.db", "faena.db-wal", "faena.db-shm"] {
            let (kept, place) = (self.synced().join(name), platform.data().join(name));
            let _ = std::fs::remove_file(&place);
            if kept.is_file() {
                std::fs::copy(kept, place).expect("a copy");
            }
        }
        self.start(platform)
    }
}

/// How many of the calls that were promised are gone after the power was cut in the middle of accepting them.
fn lost_over_a_cut(lies: bool) -> usize {
    let mut platform = Platform::stopped();
    let disk = Disk::new(lies);
    let db = disk.start(&platform);
    platform.start_role(Role::Api);
    platform.start_role(Role::Worker);
    platform.ready();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("plain", "cat");
    platform.built("plain");
    let (cut, count, port) = (AtomicBool::new(false), AtomicUsize::new(0), platform.port);
    let promise = || {
        let mut promised = Vec::new();
        let body = json!({"funcName": "plain", "params": 1, "runAt": "2099-01-01T00:00:00Z"}).to_string();
        while !cut.load(Ordering::SeqCst) {
            let reply =
                request(port, "POST", "/invokeFunction", &[("Content-Type", "application/json")], body.as_bytes());
            if reply.status != 202 {
                break;
            }
            promised.push(reply.json()["callNum"].as_i64().expect("a number"));
            count.fetch_add(1, Ordering::SeqCst);
        }
        promised
    };
    let (promised, mut db) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(promise)).collect();
        eventually(Duration::from_secs(30), "clients are being answered", || match count.load(Ordering::SeqCst) {
            count if count > 100 => Ok(()),
            count => Err(count),
        });
        let db = disk.cut(&platform, db);
        cut.store(true, Ordering::SeqCst);
        let promised: Vec<i64> = clients.into_iter().flat_map(|client| client.join().expect("a client")).collect();
        (promised, db)
    });
    eventually(Duration::from_secs(30), "the database is back", || {
        let ready = platform.get("/readyz").json();
        if ready["database"] == true { Ok(()) } else { Err(ready) }
    });
    let lost = promised.iter().filter(|num| platform.get(&format!("/call/{num}")).status == 404).count();
    platform.stop();
    let _ = Command::new("kill").args(["-TERM", &db.id().to_string()]).status();
    db.wait().expect("it ends");
    lost
}

#[test]
fn no_promised_call_is_lost_with_the_power() {
    assert_eq!(lost_over_a_cut(false), 0);
}

#[test]
fn a_disk_that_lies_loses_calls_so_the_test_can_tell() {
    assert!(lost_over_a_cut(true) > 0);
}
