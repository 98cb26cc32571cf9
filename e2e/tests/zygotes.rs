//! Processes that are forks: of an interpreter held ready, and of one that has loaded a version.

use std::time::Duration;

use faena_test_support::{Engine, Platform, Role, eventually, request, zip};
use serde_json::{Value, json};

/// Tells all that confines a process, and what it was given.
const REPORT: &str = r#"
import os, resource, signal, sys

def fields(path, names):
    lines = (line.split(":", 1) for line in open(path) if ":" in line)
    return {name: value.strip() for name, value in lines if name in names}

def groups():
    return sorted(":".join(line.strip().split(":")[:2]) + line.strip().rsplit("/", 1)[-1] for line in open("/proc/self/cgroup"))

def opened():
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.append(fd + " " + os.readlink("/proc/self/fd/" + fd).split(":")[0])
        except OSError:
            pass
    return sorted(found)

def refused(act):
    try:
        act()
    except OSError as error:
        return error.errno

def handle(params, context):
    names = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
             "SigBlk", "SigIgn", "SigCgt", "NSpid", "Threads")
    return {
        "is_clone": "ctypes" in sys.modules,
        "status": fields("/proc/self/status", names),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")},
        "mounts": sorted(" ".join(line.split()[3:5]) for line in open("/proc/self/mountinfo") if " /ws " not in line),
        "groups": groups(),
        "env": {name: value for name, value in os.environ.items() if name != "FAENA_FUNCTION"},
        "opened": opened(),
        "oom": open("/proc/self/oom_score_adj").read(),
        "policy": os.sched_getscheduler(0),
        "session": os.getsid(0) == os.getpid(),
        "cwd": os.getcwd(),
        "argv": sys.argv,
        "path": sys.path,
        "umask": os.umask(0o022),
        "agent": refused(lambda: open("/proc/1/mem", "rb")),
        "host": [os.uname().nodename, sorted(os.listdir("/")), os.path.exists("/sys/fs")],
        "mount": refused(lambda: os.mkdir("/x")),
        "mine": os.path.exists("/ws/handler.py") and __name__ == "handler",
    }
"#;

const SHADOW: &str = "import json\n\ndef handle(params, context):\n    return json.WHOSE\n";

/// State of the module, of the file system and of other processes, where a call can leave any.
const FORKED: &str = r#"
import os, random, subprocess, sys, time
loaded, calls = os.getpid(), 0

def handle(params, context):
    global calls
    calls += 1
    if "exit" in params:
        os._exit(params["exit"])
    if "raise" in params:
        raise ValueError("as told")
    if "sleep" in params:
        time.sleep(params["sleep"])
    if "eat" in params:
        return len(b"x" * params["eat"])
    left = sorted(os.listdir("/tmp")) + [name for name in os.listdir("/ws") if name not in ("handler.py", "faena.toml")]
    others = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, loaded, os.getpid())]
    open("/tmp/left", "w").write("x")
    open("/ws/left", "w").write("x")
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    memory = None
    try:
        open(f"/proc/{loaded}/mem", "r+b")
    except OSError as error:
        memory = error.errno
    print("said")
    return {"calls": calls, "loaded": loaded, "pid": os.getpid(), "left": left, "others": others, "memory": memory,
            "random": random.random(), "cwd": os.getcwd()}
"#;

/// Does to the process that it was forked from, and to the socket that they share, what can be done; `n` comes back.
const HOSTILE: &str = r#"
import ctypes, os, threading, time
loaded, socket = os.getpid(), 3

def frame(kind, number, body, length=None):
    return (len(body) if length is None else length).to_bytes(4, "little") + bytes((kind, 0, 0, 0)) + number.to_bytes(8, "little") + body

def hide():
    if os.fork() == 0:
        threading.Thread(target=lambda: time.sleep(1000)).start()
        ctypes.CDLL(None).syscall(60, 0)

def handle(params, context):
    seen = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) not in (1, loaded, os.getpid())]
    act = params["act"]
    if act == "hide":
        hide()
    elif act == "renice":
        os.setpriority(os.PRIO_PROCESS, loaded, 19)
    elif act == "half":
        os.write(socket, frame(0x81, 1, b"-1") + frame(0x81, 2, b'{"n":-1}', 100))
    elif act == "next":
        os.write(socket, frame(0x81, 2, b'{"n":-1}'))
    elif act == "ended":
        os.write(socket, frame(0x83, 1, bytes(4)) + frame(0x83, 2, bytes(4)))
    elif act == "stop":
        os.kill(loaded, 19)
    return {"n": params["n"], "seen": seen, "nice": os.getpriority(os.PRIO_PROCESS, 0)}
"#;

fn function(platform: &Platform, engine: Engine, name: &str, files: &[(&str, &str)], toml: &str) {
    let runtime = json!({"name": name, "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 handler.py", "engine": engine.name()});
    assert!([200, 201].contains(&platform.post("/registerRuntime", &runtime).status));
    let toml = format!("contract = \"handler\"\n{toml}[limits]\ntimeout = \"3s\"\nmemory = \"96 MB\"\n");
    let mut entries: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
    entries.push(("faena.toml", toml.as_bytes()));
    let reply = platform.upload(name, name, &zip(&entries));
    assert!([200, 201].contains(&reply.status), "{}", reply.text());
    let built = platform.built(name);
    assert_eq!(built["status"], "READY", "{built}");
}

fn called(platform: &Platform, name: &str, params: &Value) -> Value {
    let reply = platform.post(&format!("/f/{name}"), params);
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// Waits until an interpreter is held ready, and a start takes it.
fn cloned(platform: &Platform, name: &str) -> Value {
    eventually(Duration::from_secs(20), "a clone", || {
        let report = called(platform, name, &json!({}));
        if report["is_clone"] == true { Ok(report) } else { Err(report["is_clone"].clone()) }
    })
}

#[test]
fn a_clone_is_confined_as_a_process_that_was_started() {
    let platform = Platform::start();
    function(
        &platform,
        Engine::Sandbox,
        "started",
        &[("handler.py", REPORT)],
        "reuse = \"never\"\npreload = \"none\"\n",
    );
    function(&platform, Engine::Sandbox, "cloned", &[("handler.py", REPORT)], "reuse = \"never\"\n");
    let started = called(&platform, "started", &json!({}));
    assert_eq!(started["is_clone"], false, "{started}");
    let same = |clone: &Value| {
        for (name, value) in started.as_object().expect("an object").iter().filter(|(name, _)| *name != "is_clone") {
            assert_eq!(&clone[name], value, "{name}");
        }
        assert_eq!(clone["mine"], true);
        assert!(!clone["agent"].is_null(), "the agent's memory can be opened");
    };
    same(&cloned(&platform, "cloned"));
    // One that waited for its code is no other.
    eventually(Duration::from_secs(10), "an interpreter that waits", || {
        let pool = platform.get("/workers").json()[0]["pool"].clone();
        if pool["interpreters"] == 1 && pool["prewarmed"].as_u64() > Some(0) { Ok(()) } else { Err(pool) }
    });
    same(&called(&platform, "cloned", &json!({})));
}

#[test]
fn what_a_version_names_as_the_standard_library_does_is_its_own() {
    let platform = Platform::start();
    function(&platform, Engine::Sandbox, "held", &[("handler.py", REPORT)], "reuse = \"never\"\n");
    cloned(&platform, "held");
    let files = [("handler.py", SHADOW), ("json.py", "WHOSE = 'the version\\'s'\n")];
    function(&platform, Engine::Sandbox, "shadow", &files, "");
    let reply = platform.post("/f/shadow", &json!({}));
    assert_eq!((reply.status, reply.text().as_str()), (200, "the version's"));
}

#[test]
fn an_interpreter_that_is_killed_is_replaced() {
    let platform = Platform::start();
    function(&platform, Engine::Sandbox, "held", &[("handler.py", REPORT)], "reuse = \"never\"\n");
    cloned(&platform, "held");
    let own = platform.pid(Role::Up).to_string();
    let held = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
        (command.contains("--hold") && parent == own).then_some(pid)
    });
    let held: Vec<i32> = held.collect();
    assert_eq!(held.len(), 1, "{held:?}");
    assert!(std::process::Command::new("kill").args(["-9", &held[0].to_string()]).status().expect("kill").success());
    // Nobody notices: without one, interpreters are started anew.
    for _ in 0..5 {
        called(&platform, "held", &json!({}));
    }
}

#[test]
fn as_many_clones_wait_as_were_asked_for_at_once() {
    const CALLS: u64 = 12;
    let mut platform = Platform::start();
    function(
        &platform,
        Engine::Sandbox,
        "once",
        &[("handler.py", "def handle(params, context):\n    return params[\"n\"]\n")],
        "reuse = \"never\"\n",
    );
    let pool = || platform.get("/workers").json()[0]["pool"].clone();
    eventually(Duration::from_secs(20), "a clone that waits", || {
        if pool()["prewarmed"].as_u64() > Some(0) { Ok(()) } else { Err(pool()) }
    });
    let burst = || {
        std::thread::scope(|scope| {
            let call = |n: u64| (platform.post("/f/once", &json!({"n": n})).text(), n.to_string());
            let calls: Vec<_> = (0..CALLS).map(|n| scope.spawn(move || call(n))).collect();
            for (found, wanted) in calls.into_iter().map(|call| call.join().expect("a call")) {
                assert_eq!(found, wanted);
            }
        });
    };
    burst();
    // A burst that crosses the border of a second counts as two.
    eventually(Duration::from_secs(20), "clones for the next burst", || {
        if pool()["prewarmed"].as_u64() >= Some(CALLS / 2) { Ok(()) } else { Err(pool()) }
    });
    burst();
    // What the calls left is taken apart: those that wait are all there is.
    eventually(Duration::from_secs(20), "the end of what is done with", || {
        let (waiting, there) = (pool()["prewarmed"].as_u64(), instances(&platform));
        if waiting == Some(there) { Ok(()) } else { Err((waiting, there)) }
    });
    assert!(platform.stop());
}

/// Agents among what a platform has started, and what that has started.
fn instances(platform: &Platform) -> u64 {
    let processes = std::fs::read_dir("/proc").expect("/proc").filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, (parent, command)))
    });
    let processes: std::collections::HashMap<u32, (u32, String)> = processes.collect();
    let own = platform.pid(Role::Up);
    let is_own = |pid: u32| {
        let mut parents = std::iter::successors(Some(pid), |pid| processes.get(pid).map(|(parent, _)| *parent));
        parents.any(|pid| pid == own)
    };
    let agents = processes.iter().filter(|(pid, (_, command))| command.starts_with("faena-agent") && is_own(**pid));
    agents.count() as u64
}

/// With one slot a call waits until the instance is as new.
fn with_one_slot() -> Platform {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "slots = 1\n").expect("writing the settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform
}

/// How many instances were made because a call waited.
fn made(platform: &Platform) -> u64 {
    let metrics = platform.get("/metrics").text();
    let line = metrics.lines().find(|line| line.starts_with("faena_pool_misses_total")).expect("the metric");
    line.rsplit_once(' ').and_then(|(_, count)| count.parse().ok()).expect("a number")
}

fn nothing_is_left_between_forks(engine: Engine) {
    let platform = with_one_slot();
    function(&platform, engine, "forked", &[("handler.py", FORKED)], "reuse = \"fork\"\n");
    let first = called(&platform, "forked", &json!({}));
    let mut drawn = vec![first["random"].clone()];
    for _ in 0..5 {
        let next = called(&platform, "forked", &json!({}));
        assert_eq!((&next["calls"], &next["loaded"]), (&json!(1), &first["loaded"]), "{next}");
        assert_ne!(next["pid"], first["pid"], "{next}");
        assert_eq!((&next["left"], &next["others"]), (&json!([]), &json!([])), "{next}");
        assert_eq!((&next["memory"], &next["cwd"]), (&json!(13), &json!("/ws")), "{next}");
        assert!(!drawn.contains(&next["random"]), "{next}");
        drawn.push(next["random"].clone());
    }
    // Whatever becomes of a call's process, the one that has loaded the version lives on.
    let failed = |params: Value| {
        let reply = platform.post("/f/forked", &params);
        assert!(reply.status >= 500, "{}", reply.text());
        reply.text()
    };
    assert!(failed(json!({"exit": 3})).contains("ended with code 3"));
    assert!(failed(json!({"raise": 1})).contains("as told"));
    assert!(failed(json!({"sleep": 60})).contains("took longer"));
    assert_eq!(called(&platform, "forked", &json!({}))["calls"], 1);
    assert_eq!(made(&platform), 1);
    assert!(failed(json!({"eat": 400_000_000})).contains("memory"));
    let call = platform.call("forked", &json!({}));
    assert_eq!(call["status"], "DONE", "{call}");
    assert_eq!(platform.get(&format!("/call/{}/logs", call["callNum"])).text(), "said\n");
}

#[test]
fn nothing_is_left_between_forks_in_the_sandbox() {
    nothing_is_left_between_forks(Engine::Sandbox);
}

#[test]
fn nothing_is_left_between_forks_in_docker() {
    nothing_is_left_between_forks(Engine::Docker);
}

/// Whatever a call does to the process that it was forked from: the next one is answered with its own answer.
fn a_hostile_call_harms_itself_alone(reuse: &str, acts: &[&str]) {
    let mut platform = with_one_slot();
    function(&platform, Engine::Sandbox, "hostile", &[("handler.py", HOSTILE)], &format!("reuse = \"{reuse}\"\n"));
    let port = platform.port;
    for (n, act) in acts.iter().enumerate() {
        // It may be refused, or have the answer that it forged for itself; what follows it may not.
        let body = json!({"n": n, "act": act}).to_string();
        request(port, "POST", "/f/hostile", &[("content-type", "application/json")], body.as_bytes());
        for again in [100, 200] {
            let next = called(&platform, "hostile", &json!({"n": n + again, "act": "none"}));
            assert_eq!((&next["n"], &next["nice"]), (&json!(n + again), &json!(0)), "{act}: {next}");
            if reuse == "fork" {
                assert_eq!(next["seen"], json!([]), "{act}: {next}");
            }
        }
    }
    assert!(platform.stop());
}

#[test]
fn a_hostile_fork_harms_itself_alone() {
    a_hostile_call_harms_itself_alone("fork", &["half", "next", "ended", "renice", "hide", "stop"]);
}

#[test]
fn a_process_that_claims_to_fork_harms_itself_alone() {
    a_hostile_call_harms_itself_alone("version", &["ended", "ended", "ended"]);
}

#[test]
fn forks_of_what_cannot_fork_are_refused() {
    let platform = Platform::start();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    let files: [(&str, &[u8]); 2] = [("run.sh", b"true"), ("faena.toml", b"reuse = \"fork\"\n")];
    let reply = platform.upload("shell", "command", &zip(&files));
    assert!(reply.status == 400 && reply.text().contains("for the contract"), "{}", reply.text());
    let node = "export const handle = () => 1;\n";
    let runtime = json!({"name": "node", "image": "noderuntime", "path": "/ws", "dependencies": "", "run": "node handler.mjs", "engine": "sandbox"});
    assert!([200, 201].contains(&platform.post("/registerRuntime", &runtime).status));
    let toml = "contract = \"handler\"\nreuse = \"fork\"\n";
    assert!(
        [200, 201].contains(
            &platform
                .upload("node", "node", &zip(&[("handler.mjs", node.as_bytes()), ("faena.toml", toml.as_bytes())]))
                .status
        )
    );
    assert_eq!(platform.built("node")["status"], "READY");
    let reply = request(platform.port, "POST", "/f/node", &[("content-type", "application/json")], b"{}");
    assert!(reply.text().contains("fork for each call"), "{} {}", reply.status, reply.text());
}
