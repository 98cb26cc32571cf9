//! Machines of a test: network namespaces, each with one link to the machine of the platform, and a worker in it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use faena_test_support::{Platform, binary, eventually};
use serde_json::{Value, json};

/// Long enough for a lease to end, and what follows.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// Where Debian has libfaketime; the loader puts the machine's own folder of libraries for `$LIB`.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketime.so.1";

/// The command that joins prints this port too: it is fixed for one platform.
static NEXT: AtomicU16 = AtomicU16::new(0);

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {error}");
}

/// A machine: a namespace whose only link leads to the machine of the platform.
pub(crate) struct Host {
    namespace: String,
    link: String,
    /// The platform's address on that link.
    gateway: String,
    folder: tempfile::TempDir,
    pub(crate) name: String,
    /// Its clock, where that is one of the test's.
    pub(crate) clock: Option<Clock>,
    worker: Option<Child>,
}

/// A clock that jumps when it is told to, for processes that are started with its variables. Timers go on as they were, as
/// those of a machine do whose clock is set.
pub(crate) struct Clock(tempfile::TempDir);

impl Clock {
    pub(crate) fn new() -> Self {
        let clock = Self(tempfile::tempdir().expect("a folder"));
        clock.shift("+800d");
        let year = |variables: Vec<(&str, String)>| {
            let output = Command::new("date").arg("+%Y").envs(variables).output().expect("date");
            String::from_utf8_lossy(&output.stdout).trim().parse::<i32>().expect("a year")
        };
        assert!(year(clock.variables()) >= year(Vec::new()) + 2, "libfaketime has no effect");
        clock.shift("+0");
        clock
    }

    /// Whether a process has this clock.
    pub(crate) fn is_of(process: u32) -> bool {
        std::fs::read_to_string(format!("/proc/{process}/maps")).is_ok_and(|maps| maps.contains("libfaketime"))
    }

    /// From now on it shows so much more than the machine's, as in `+1d` or `-2h`.
    pub(crate) fn shift(&self, by: &str) {
        let passing = self.0.path().join("passing");
        std::fs::write(&passing, by).expect("a file");
        std::fs::rename(passing, self.0.path().join("shift")).expect("a file");
    }

    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LD_PRELOAD", FAKETIME.to_owned()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.path().join("shift").display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
    }
}

impl Host {
    /// A machine with a link of its own.
    pub(crate) fn new(name: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) + 1;
        // Tests of one process have numbers; of two processes the blocks of addresses differ.
        let block = std::process::id() % 200 + 20;
        let (namespace, link) = (format!("fae{block}n{number}"), format!("fae{block}l{number}"));
        let (gateway, own) =
            (format!("10.213.{block}.{}", number * 4 + 1), format!("10.213.{block}.{}", number * 4 + 2));
        run("ip", &["netns", "add", &namespace]);
        let host = Self {
            namespace: namespace.clone(),
            link: link.clone(),
            gateway: gateway.clone(),
            folder: tempfile::tempdir().expect("a folder"),
            name: name.to_owned(),
            clock: None,
            worker: None,
        };
        run("ip", &["link", "add", &link, "type", "veth", "peer", "name", "up0", "netns", &namespace]);
        run("ip", &["addr", "add", &format!("{gateway}/30"), "dev", &link]);
        run("ip", &["link", "set", &link, "up"]);
        host.inside("ip", &["addr", "add", &format!("{own}/30"), "dev", "up0"]);
        host.inside("ip", &["link", "set", "up0", "up"]);
        host.inside("ip", &["link", "set", "lo", "up"]);
        host
    }

    /// Runs a program on it.
    pub(crate) fn inside(&self, program: &str, arguments: &[&str]) {
        run("ip", &[&["netns", "exec", &self.namespace, program], arguments].concat());
    }

    /// Joins the platform and starts; `address` is where the platform takes nodes in, seen from here.
    pub(crate) fn join(&mut self, cluster: &Cluster, address: Option<&str>) {
        let made = cluster.platform.post("/node/token", &json!({"labels": {"host": self.name}}));
        assert_eq!(made.status, 201, "{}", made.text());
        let token = made.json()["token"].as_str().expect("a token").to_owned();
        let file = self.folder.path().join("token");
        std::fs::write(&file, token).expect("a file");
        self.start(&address.map_or_else(|| format!("{}:{}", self.gateway, cluster.front), str::to_owned));
        cluster.is(&self.name, "READY");
    }

    /// Starts its worker, which has joined or is to.
    pub(crate) fn start(&mut self, address: &str) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        let errors = log.try_clone().expect("a log");
        let token = format!("@{}", self.folder.path().join("token").display());
        // `ip netns exec` would mount another /sys, without control groups.
        let worker = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg(binary())
            .args(["worker", "--name", &self.name, "--slots", "4", "--api", address, "--join", &token, "--data"])
            .arg(self.folder.path().join("data"))
            .arg("--run")
            .arg(self.folder.path().join("run"))
            .envs(self.clock.iter().flat_map(Clock::variables))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .process_group(0)
            .spawn();
        self.worker = Some(worker.expect("nsenter"));
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What its worker has logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Its worker's process.
    pub(crate) fn pid(&self) -> u32 {
        self.worker.as_ref().expect("a worker").id()
    }

    /// Sends its worker a signal; `nsenter` becomes the worker.
    pub(crate) fn signal(&self, name: &str) {
        run("kill", &[name, &self.pid().to_string()]);
    }

    /// Kills its worker as a machine without power is.
    pub(crate) fn kill(&mut self) {
        let mut worker = self.worker.take().expect("a worker");
        worker.kill().expect("kill");
        worker.wait().expect("its end");
    }

    /// Waits until its worker has ended by itself, and tells whether well.
    pub(crate) fn ended(&mut self) -> bool {
        let worker = self.worker.as_mut().expect("a worker");
        eventually(LONG, "the worker ends", || match worker.try_wait().expect("a process") {
            Some(status) => Ok(status.success()),
            None => Err(()),
        })
    }

    /// From now on its packets are judged by these statements of nftables: `in` and `out` are their chains.
    pub(crate) fn filter(&self, chain: &str, statement: &str) {
        let hook = if chain == "in" { "input" } else { "output" };
        self.inside("nft", &["add", "table", "inet", "faults"]);
        let chain_is = format!("{{ type filter hook {hook} priority 0; policy accept; }}");
        self.inside("nft", &["add", "chain", "inet", "faults", chain, &chain_is]);
        self.inside(
            "nft",
            &[
                "add",
                "rule",
                "inet",
                "faults",
                chain,
                &format!("oifname up0 {statement}")
                    .replace("oifname", if chain == "in" { "iifname" } else { "oifname" }),
            ],
        );
    }

    /// Its link works again.
    pub(crate) fn heal(&self) {
        self.inside("nft", &["delete", "table", "inet", "faults"]);
    }

    /// The platform's address on its link.
    pub(crate) fn gateway(&self) -> &str {
        &self.gateway
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            let pid = worker.id().to_string();
            let _ = Command::new("kill").args(["-CONT", &pid]).status();
            let _ = Command::new("kill").args(["-TERM", &pid]).status();
            let _ = worker.wait();
        }
        if std::thread::panicking() {
            let log = self.logged();
            eprintln!("the end of the log of {}:\n{}", self.name, &log[log.len().saturating_sub(1500)..]);
        }
        let _ = Command::new("ip").args(["link", "delete", &self.link]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

/// A platform that takes nodes in.
pub(crate) struct Cluster {
    pub(crate) platform: Platform,
    pub(crate) front: u16,
}

impl Cluster {
    /// A platform whose own worker takes no work.
    pub(crate) fn start() -> Self {
        Self::start_with(Vec::new())
    }

    /// The same, with variables for its process.
    pub(crate) fn start_with(variables: Vec<(&'static str, String)>) -> Self {
        let mut platform = Platform::stopped();
        platform.variables = variables;
        // Ports from 32,768 on are those of clients.
        let front = platform.port - 12_000;
        std::fs::write(platform.settings_file(), format!("nodes = \"0.0.0.0:{front}\"\nname = \"control\"\n"))
            .expect("settings");
        platform.start_role(faena_test_support::Role::Up);
        platform.ready();
        let cluster = Self { platform, front };
        assert_eq!(cluster.platform.post("/node/control/cordon", &json!({})).status, 200);
        cluster.is("control", "CORDONED");
        cluster
    }

    /// A node as it stands.
    pub(crate) fn node(&self, name: &str) -> Value {
        let reply = self.platform.get(&format!("/node/{name}"));
        if reply.status == 200 { reply.json() } else { Value::Null }
    }

    /// Waits until a node is in a state.
    pub(crate) fn is(&self, name: &str, state: &str) {
        eventually(LONG, &format!("{name} is {state}"), || {
            let node = self.node(name);
            if node["state"] == state { Ok(()) } else { Err(node) }
        });
    }

    /// Waits until a call runs on a node.
    pub(crate) fn runs_on(&self, num: i64, name: &str) {
        eventually(LONG, &format!("call {num} runs on {name}"), || {
            let call = self.platform.get(&format!("/call/{num}")).json();
            if call["status"] == "RUNNING" && self.node(name)["calls"] != 0 { Ok(()) } else { Err(call) }
        });
    }
}

/// Which node ran each attempt of a call.
pub(crate) fn workers(call: &Value) -> Vec<String> {
    let attempts = call["attempts"].as_array().cloned().unwrap_or_default();
    attempts.iter().map(|attempt| attempt["worker"].as_str().unwrap_or_default().to_owned()).collect()
}

/// Passes connections on, slowly: so many bytes a second each way, after a delay.
pub(crate) fn slow_link(listen: &str, to: String, bytes_per_second: usize, delay: Duration) -> String {
    let listener = TcpListener::bind((listen, 0)).expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        for from in listener.incoming().flatten() {
            let Ok(to) = TcpStream::connect(&to) else { continue };
            let pairs = [(from.try_clone(), to.try_clone()), (Ok(to), Ok(from))];
            for (from, to) in pairs {
                let (Ok(from), Ok(to)) = (from, to) else { continue };
                std::thread::spawn(move || trickle(from, to, bytes_per_second, delay));
            }
        }
    });
    address
}

fn trickle(mut from: TcpStream, mut to: TcpStream, bytes_per_second: usize, delay: Duration) {
    let mut piece = [0; 4096];
    // Each piece is forwarded after the delay, and no faster than the rate permits.
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let pause = Duration::from_secs_f64(length as f64 / bytes_per_second as f64);
        std::thread::park_timeout(pause.max(delay));
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
