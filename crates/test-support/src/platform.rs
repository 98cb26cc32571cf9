//! A running platform.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Reply, request, try_get};
use crate::{eventually, multipart};

/// Long enough for anything on a busy machine.
const LONG: Duration = Duration::from_secs(120);

/// What makes instances in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The built-in sandbox.
    Sandbox,
    /// The Docker daemon.
    Docker,
}

impl Engine {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Sandbox, Self::Docker];

    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Docker => "docker",
        }
    }
}

/// A process of the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// All in one.
    Up,
    /// The database service.
    Db,
    /// The HTTP edge.
    Api,
    /// A worker.
    Worker,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Db => "db",
            Self::Api => "api",
            Self::Worker => "worker",
        }
    }
}

/// The binary under test: `FAENA_BIN`, else the one beside the tests in cargo's target directory.
pub fn binary() -> PathBuf {
    std::env::var_os("FAENA_BIN").map_or_else(
        || {
            let tests = std::env::current_exe().expect("this program");
            tests.parent().and_then(|deps| deps.parent()).expect("a target directory").join("faena")
        },
        PathBuf::from,
    )
}

/// The secret of accounts that tests make.
pub const SECRET: &str = "correct horse battery staple";

/// A platform on folders and a port of its own; everything of it ends when it is dropped.
#[derive(Debug)]
pub struct Platform {
    folder: TempDir,
    /// Where it listens.
    pub port: u16,
    /// Sent with every request that has no other, where there is one.
    pub credential: Option<String>,
    /// Variables of the processes that start from now on.
    pub variables: Vec<(&'static str, String)>,
    roles: Vec<(Role, Child)>,
}

/// A port that nothing listens on, below the range that the kernel gives to clients (32,768 and above), and never the
/// same twice in one process: a platform that found its port taken would leave its test talking to a neighbour's.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let start = u16::try_from(std::process::id() % 10_000).unwrap_or(0);
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Platform {
    /// Starts `faena up` and waits until it is ready.
    pub fn start() -> Self {
        let mut platform = Self::stopped();
        platform.start_role(Role::Up);
        platform.ready();
        platform
    }

    /// Starts db, api and a worker as processes of their own.
    pub fn start_apart() -> Self {
        let mut platform = Self::stopped();
        for role in [Role::Db, Role::Api, Role::Worker] {
            platform.start_role(role);
        }
        platform.ready();
        platform
    }

    /// Folders and a port, and nothing running.
    pub fn stopped() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            port: free_port(),
            credential: None,
            variables: Vec::new(),
            roles: Vec::new(),
        }
    }

    /// A command of the binary with this platform's folders and port.
    pub fn command(&self, role: Role) -> Command {
        let mut command = Command::new(binary());
        let listen = format!("127.0.0.1:{}", self.port);
        command.args([role.word(), "--listen", &listen, "--data"]).arg(self.data());
        if self.settings_file().is_file() {
            command.arg("--config").arg(self.settings_file());
        }
        command.envs(self.variables.iter().cloned()).stdin(Stdio::null());
        command
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Read by roles that are started from now on, where it is there.
    pub fn settings_file(&self) -> PathBuf {
        self.folder.path().join("faena.toml")
    }

    /// Starts one role.
    pub fn start_role(&mut self, role: Role) {
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("a log");
        let errors = log.try_clone().expect("a log");
        let child =
            self.command(role).stdout(log).stderr(errors).process_group(0).spawn().expect("the binary is built");
        self.roles.push((role, child));
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What the roles have logged.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Waits until calls can run.
    pub fn ready(&self) {
        eventually(Duration::from_secs(30), "the platform is ready", || match try_get(self.port, "/readyz") {
            Some(reply) if reply.status == 200 => Ok(()),
            Some(reply) => Err(format!("{}\n{}", reply.text(), self.logged())),
            None => Err(self.logged()),
        });
    }

    /// Kills a role with SIGKILL.
    pub fn kill(&mut self, role: Role) {
        for (_, child) in self.roles.iter_mut().filter(|(running, _)| *running == role) {
            let _ = child.kill();
            let _ = child.wait();
        }
        self.roles.retain(|(running, _)| *running != role);
    }

    /// Stops everything with SIGTERM and waits; returns whether each role ended well.
    pub fn stop(&mut self) -> bool {
        self.signal_all("-TERM", "")
    }

    /// Stops everything as a terminal does: each role and all processes of its group are sent SIGINT.
    pub fn interrupt(&mut self) -> bool {
        self.signal_all("-INT", "-")
    }

    fn signal_all(&mut self, signal: &str, prefix: &str) -> bool {
        let mut well = true;
        for (_, mut child) in self.roles.drain(..).rev() {
            let target = format!("{prefix}{}", child.id());
            let _ = Command::new("kill").args([signal, "--", &target]).status();
            well &= child.wait().is_ok_and(|status| status.success());
        }
        well
    }

    /// The process of a role.
    pub fn pid(&self, role: Role) -> u32 {
        self.roles.iter().find(|(running, _)| *running == role).expect("it runs").1.id()
    }

    /// GET.
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[], b"")
    }

    /// Any request.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let bearer = self.credential.as_ref().map(|credential| format!("Bearer {credential}"));
        let has_own = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        let own = bearer.as_deref().filter(|_| !has_own).map(|bearer| ("Authorization", bearer));
        request(self.port, method, path, &[headers, own.as_slice()].concat(), body)
    }

    /// Makes the first account, an administrator whose key is sent from now on. A platform that cannot be open has told the
    /// token for it in its log.
    pub fn lock(&mut self) {
        let made = if self.get("/whoami").status == 200 {
            let account = json!({"name": "root", "type": "user", "secret": SECRET, "scopes": ["admin"]});
            self.post("/account", &account)
        } else {
            let token = self.setup_token();
            self.post("/setup", &json!({"token": token, "name": "root", "secret": SECRET}))
        };
        assert_eq!(made.status, 201, "{}", made.text());
        self.credential = Some(self.signed_in("root", SECRET, "default"));
    }

    /// The token with which the first account of a platform that cannot be open is made.
    pub fn setup_token(&self) -> String {
        eventually(LONG, "the token of the set-up", || {
            let log = self.logged();
            let token =
                log.lines().find_map(|line| line.split_once("token=\"")?.1.split_once('"')).map(|(token, _)| token);
            token.map(str::to_owned).ok_or(log)
        })
    }

    /// The access token of an account.
    pub fn signed_in(&self, name: &str, secret: &str, namespace: &str) -> String {
        let reply = self.post("/token", &json!({"name": name, "secret": secret, "namespace": namespace}));
        assert_eq!(reply.status, 201, "{}", reply.text());
        reply.json()["accessToken"].as_str().expect("a token").to_owned()
    }

    /// POST of JSON.
    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.send("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Uploads an archive as a version of a function.
    pub fn upload(&self, runtime: &str, function: &str, archive: &[u8]) -> Reply {
        let (body, kind) = multipart("module", archive);
        self.send("POST", &format!("/registerFunction/{runtime}/{function}"), &[("Content-Type", &kind)], &body)
    }

    /// Registers a runtime of an engine that runs a shell script called `run.sh`.
    pub fn shell_runtime(&self, engine: Engine, changes: &Value) {
        let mut runtime = json!({
            "name": "shell", "image": "bashruntime", "path": "/ws", "dependencies": "", "run": "bash run.sh", "engine": engine.name()
        });
        for (key, value) in changes.as_object().into_iter().flatten() {
            runtime[key] = value.clone();
        }
        let reply = self.post("/registerRuntime", &runtime);
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
    }

    /// Makes a function of a shell script.
    pub fn script(&self, function: &str, script: &str) {
        let reply = self.upload("shell", function, &crate::zip(&[("run.sh", script.as_bytes())]));
        assert!(matches!(reply.status, 200 | 201), "{}", reply.text());
    }

    /// Waits until the newest version of a function is built, or could not be; returns the function.
    pub fn built(&self, function: &str) -> Value {
        eventually(LONG, &format!("{function} is built"), || {
            let found = self.get(&format!("/function/{function}")).json();
            if matches!(found["status"].as_str(), Some("READY" | "ERROR")) { Ok(found) } else { Err(found) }
        })
    }

    /// Accepts a call and returns its number.
    pub fn invoke(&self, body: &Value) -> i64 {
        let reply = self.post("/invokeFunction", body);
        assert_eq!(reply.status, 202, "{}", reply.text());
        reply.json()["callNum"].as_i64().expect("a number")
    }

    /// Waits until a call has ended.
    pub fn ended(&self, num: i64) -> Value {
        eventually(LONG, &format!("call {num} ends"), || {
            let call = self.get(&format!("/call/{num}")).json();
            if matches!(call["status"].as_str(), Some("PENDING" | "RUNNING")) { Err(call) } else { Ok(call) }
        })
    }

    /// Calls a function once, without retries, and waits for its end.
    pub fn call(&self, function: &str, params: &Value) -> Value {
        self.ended(self.invoke(&json!({"funcName": function, "params": params, "retries": 0})))
    }

    /// Waits until a call runs.
    pub fn running(&self, num: i64) {
        eventually(LONG, &format!("call {num} runs"), || {
            let call = self.get(&format!("/call/{num}")).json();
            if call["status"] == "RUNNING" { Ok(()) } else { Err(call) }
        });
    }
}

impl Drop for Platform {
    /// Stops what still runs as a user would, so that nothing is left on the machine.
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            let log = self.logged();
            eprintln!("the end of the platform's log:\n{}", &log[log.len().saturating_sub(2000)..]);
        }
    }
}
