//! Functions and builds that misbehave, on every engine: contained, named, forgotten.

use std::time::{Duration, Instant};

use faena_test_support::{Engine, Platform, eventually, zip};
use serde_json::{Value, json};

fn platform(engine: Engine) -> Platform {
    let platform = Platform::start();
    platform.shell_runtime(engine, &json!({}));
    platform
}

/// Kind and status of a call of a script.
fn fate(platform: &Platform, name: &str, script: &str, timeout_ms: u64) -> (String, String, Value) {
    platform.script(name, script);
    let call = json!({"funcName": name, "params": {}, "retries": 0, "timeoutMs": timeout_ms});
    let call = platform.ended(platform.invoke(&call));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&call["status"]), text(&call["error"]["kind"]), call)
}

fn expect(platform: &Platform, name: &str, script: &str, status: &str, kind: &str) -> Value {
    let (seen_status, seen_kind, call) = fate(platform, name, script, 20_000);
    assert_eq!((seen_status.as_str(), seen_kind.as_str()), (status, kind), "{name}: {call}");
    call
}

fn commands_that_misbehave(engine: Engine) {
    let platform = platform(engine);
    let call = expect(&platform, "three", "echo why >&2; exit 3", "FAILED", "exit");
    assert_eq!((call["error"]["exitCode"].as_i64(), call["error"]["stderrTail"].as_str()), (Some(3), Some("why\n")));
    let call = expect(&platform, "segv", "kill -11 $$", "FAILED", "signal");
    assert_eq!(call["error"]["signal"], 11);
    expect(&platform, "prints", "yes | head -c 1000000000", "FAILED", "output");
    expect(&platform, "binary", "printf '\\xff'", "FAILED", "output");
    expect(&platform, "nojson", "echo no > output.json", "FAILED", "output");
    expect(&platform, "memory", "x=$(head -c 900000000 /dev/zero | tr '\\0' x); exit 1", "FAILED", "oom");
    for (name, script) in [
        ("loops", "trap '' TERM; while :; do :; done"),
        ("closes", "exec >&- 2>&-; sleep 600"),
        ("forks", "f() { f | f & }; f; sleep 600"),
    ] {
        let begun = Instant::now();
        let (status, kind, call) = fate(&platform, name, script, 1500);
        assert_eq!((status.as_str(), kind.as_str()), ("TIMEOUT", "timeout"), "{name}: {call}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{name}");
    }
    platform.script("plain", "echo ok");
    assert_eq!(platform.call("plain", &json!({}))["result"], "ok");
}

fn a_program_that_is_not_there_is_named(engine: Engine) {
    let platform = platform(engine);
    platform.shell_runtime(engine, &json!({"name": "absent", "run": "no-such-program --flag"}));
    platform.upload("absent", "absent", &zip(&[("a", b"b")]));
    let call = platform.call("absent", &json!({}));
    assert_eq!(call["error"]["kind"], "start", "{call}");
    assert!(call["error"]["message"].as_str().is_some_and(|message| message.contains("no-such-program")));
}

fn nothing_is_left_behind(engine: Engine) {
    let mut platform = platform(engine);
    let mark = format!("7{:07}", platform.port);
    platform.script("daemon", &format!("setsid sleep {mark} </dev/null >/dev/null 2>&1 & echo started"));
    assert_eq!(platform.call("daemon", &json!({}))["result"], "started");
    let runs = |mark: &str| {
        let found = std::process::Command::new("pgrep").args(["-f", &format!("sleep {mark}")]).output().expect("pgrep");
        if found.stdout.is_empty() { Ok(()) } else { Err(String::from_utf8_lossy(&found.stdout).into_owned()) }
    };
    eventually(Duration::from_secs(10), "the daemon is gone", || runs(&mark));
    platform.script("sleeps", &format!("sleep {mark}"));
    platform.running(platform.invoke(&json!({"funcName": "sleeps", "params": {}})));
    assert!(platform.stop());
    eventually(Duration::from_secs(10), "the sleeper is gone", || runs(&mark));
}

fn builds_that_misbehave(engine: Engine) {
    let platform = platform(engine);
    let error = |name: &str, dependencies: &str| {
        platform.shell_runtime(engine, &json!({"name": name, "dependencies": dependencies}));
        let reply = platform.upload(name, name, &zip(&[("run.sh", b"echo ok")]));
        assert_eq!(reply.status, 201, "{}", reply.text());
        let num = platform.invoke(&json!({"funcName": name, "params": {}}));
        let function = platform.built(name);
        let call = platform.ended(num);
        assert_eq!(call["error"]["kind"], "build", "{name}: {call}");
        (function["error"]["message"].as_str().unwrap_or_default().to_owned(), function)
    };
    let (message, function) = error("fails", "bash -c 'echo what went wrong; exit 9'");
    assert!(message.contains("code 9") && message.contains("what went wrong"), "{function}");
    let (message, function) = error("absent", "no-such-builder");
    assert!(message.contains("no-such-builder"), "{function}");
    let (_, function) = error("fills", "bash -c 'head -c 3000000000 /dev/zero > big || exit 1'");
    assert!(function["logTail"].as_str().is_some_and(|log| log.contains("No space left")), "{function}");
    let log = platform.get("/function/fails/build").json();
    assert_eq!((log["status"].as_str(), log["log"].as_str()), (Some("ERROR"), Some("what went wrong\n")));
}

fn egress_reaches_the_world_and_no_neighbour(engine: Engine) {
    let platform = platform(engine);
    // Each answer of the proxy is a status line; the host's own API listens where the third one asks.
    let script = format!(
        "ask() {{ exec 3<>/dev/tcp/127.0.0.1/3128; printf 'CONNECT %s HTTP/1.1\\r\\n\\r\\n' $1 >&3; head -1 <&3 | cut -d' ' -f2; }}
         ask 169.254.169.254:80; ask 10.0.0.1:443; ask 127.0.0.1:{}; ask localhost:80; ask [::1]:80; ask [::ffff:10.0.0.1]:443",
        platform.port
    );
    let reply = platform.upload(
        "shell",
        "asks",
        &zip(&[("run.sh", script.as_bytes()), ("faena.toml", b"network = \"egress\"")]),
    );
    assert_eq!(reply.status, 201, "{}", reply.text());
    let call = platform.call("asks", &json!({}));
    assert_eq!(call["result"], "403\n403\n403\n403\n403\n403", "{call}");
    platform.script("closed", "exec 3<>/dev/tcp/127.0.0.1/3128 && echo open");
    assert_eq!(platform.call("closed", &json!({}))["status"], "FAILED");
}

/// Leaves all that the owner of a temporary folder can leave there; the second time it tells what it finds of that.
const LEAVES: &str = r#"
import os, struct
found = []
for folder in ("/tmp", "/dev/shm"):
    found += [folder + "/" + name for name in os.listdir(folder)]
    mode = os.stat(folder).st_mode & 0o7777
    if mode != 0o1777:
        found.append(f"{folder} {mode:o}")
    found += [folder + " " + name for name in os.listxattr(folder)]
print(found)
nobody_else = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, perm, 0xffffffff) for tag, perm in ((1, 7), (4, 0), (32, 0)))
for folder in ("/tmp", "/dev/shm"):
    for name, value in (("system.posix_acl_default", nobody_else), ("system.posix_acl_access", nobody_else), ("user.mark", b"x")):
        try:
            os.setxattr(folder, name, value)
        except OSError:
            pass  # Older kernels keep no attributes of users in memory.
    os.makedirs(folder + "/a/b")
    open(folder + "/a/b/c", "w").close()
    os.chmod(folder + "/a", 0)
    try:
        os.chmod(folder, 0o700)
    except OSError:
        pass  # In Docker it is another user's.
"#;

fn temporary_folders_are_as_new(engine: Engine) {
    let platform = platform(engine);
    let runtime = json!({"name": "py", "image": "pythonruntime", "run": "python3 leaves.py"});
    platform.shell_runtime(engine, &runtime);
    assert_eq!(platform.upload("py", "leaves", &zip(&[("leaves.py", LEAVES.as_bytes())])).status, 201);
    for start in ["cold", "warm"] {
        let call = platform.call("leaves", &json!({}));
        assert_eq!((&call["result"], &call["attempts"][0]["start"]), (&json!("[]"), &json!(start)), "{call}");
    }
}

macro_rules! on_both_engines {
    ($($case:ident => $sandbox:ident, $docker:ident;)*) => {$(
        #[test]
        fn $sandbox() {
            $case(Engine::Sandbox);
        }

        #[test]
        fn $docker() {
            $case(Engine::Docker);
        }
    )*};
}
on_both_engines! {
    commands_that_misbehave => commands_that_misbehave_in_the_sandbox, commands_that_misbehave_in_docker;
    a_program_that_is_not_there_is_named => a_missing_program_is_named_in_the_sandbox, a_missing_program_is_named_in_docker;
    nothing_is_left_behind => nothing_is_left_behind_in_the_sandbox, nothing_is_left_behind_in_docker;
    builds_that_misbehave => builds_that_misbehave_in_the_sandbox, builds_that_misbehave_in_docker;
    temporary_folders_are_as_new => temporary_folders_are_as_new_in_the_sandbox, temporary_folders_are_as_new_in_docker;
    egress_reaches_the_world_and_no_neighbour => egress_is_judged_in_the_sandbox, egress_is_judged_in_docker;
}

#[test]
fn a_build_that_hangs_is_ended_by_its_limit() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "[build]\ntimeout = \"1s\"\n").expect("settings");
    platform.start_role(faena_test_support::Role::Up);
    platform.ready();
    platform.shell_runtime(Engine::Sandbox, &json!({"dependencies": "sleep 600"}));
    platform.script("hangs", "echo ok");
    let function = platform.built("hangs");
    assert_eq!(function["status"], "ERROR", "{function}");
    assert!(
        function["error"]["message"].as_str().is_some_and(|message| message.contains("longer than the 1s")),
        "{function}"
    );
}
