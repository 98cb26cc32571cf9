//! Real servers in a network namespace of their own, at the other end of a cable.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use faena_test_support::{binary, eventually};

/// How long a server may take to begin.
const BEGIN: Duration = Duration::from_secs(60);

/// Runs a command to its end.
fn run(words: &str) {
    let mut words = words.split(' ');
    let program = words.next().expect("a program");
    let output = Command::new(program).args(words.clone()).output().expect(program);
    let (words, errors) = (words.collect::<Vec<_>>().join(" "), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {words}: {errors}");
}

/// The servers; they and their network go with this.
pub(crate) struct Far {
    name: String,
    folder: tempfile::TempDir,
    /// Where the servers are.
    pub(crate) address: String,
    /// This host's end of the cable, where the name server is.
    pub(crate) host: String,
    children: Vec<Child>,
}

impl Far {
    /// A namespace with its servers; `number` tells those of one test process apart.
    pub(crate) fn new(number: u32) -> Self {
        let process = std::process::id();
        let name = format!("far{number}-{process}");
        // A block of private addresses for each of them.
        let block = format!("10.213.{}", (process * 2 + number) % 250);
        let (host, address) = (format!("{block}.1"), format!("{block}.2"));
        let far = Self { name, folder: tempfile::tempdir().expect("a folder"), address, host, children: Vec::new() };
        far.network();
        far.files();
        far.with_servers()
    }

    fn network(&self) {
        let Self { name, host, address, .. } = self;
        let (here, there) = (format!("f{}", &name[3..]), format!("g{}", &name[3..]));
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add {here} type veth peer name {there} netns {name}"));
        run(&format!("ip addr add {host}/24 dev {here}"));
        run(&format!("ip link set {here} up"));
        run(&format!("ip -n {name} addr add {address}/24 dev {there}"));
        run(&format!("ip -n {name} link set {there} up"));
        run(&format!("ip -n {name} link set lo up"));
    }

    /// What the servers serve: a text, a certificate of an authority of its own, and a repository.
    fn files(&self) {
        let folder = self.folder.path().display().to_string();
        std::fs::write(self.folder.path().join("hello.txt"), "hello from far").expect("a file");
        let key = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
        run(&format!("{key} -subj /CN=far -keyout {folder}/ca.key -out {folder}/ca.pem"));
        let names = "subjectAltName=DNS:*.far.test";
        run(&format!(
            "{key} -subj /CN=web -addext {names} -addext basicConstraints=CA:FALSE -CA {folder}/ca.pem -CAkey {folder}/ca.key \
             -keyout {folder}/key.pem -out {folder}/cert.pem"
        ));
        let read = |file| std::fs::read(self.folder.path().join(file)).expect(file);
        let both = [read("cert.pem"), read("key.pem")].concat();
        std::fs::write(self.folder.path().join("server.pem"), both).expect("a file");
        let identity = "-c user.name=far -c user.email=far@far.test -c init.defaultBranch=main";
        run(&format!("git {identity} init -q {folder}/work"));
        run(&format!("git -C {folder}/work {identity} commit -q --allow-empty -m first"));
        run(&format!("git clone -q --bare {folder}/work {folder}/git"));
        run(&format!("git -C {folder}/git update-server-info"));
    }

    fn with_servers(mut self) -> Self {
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/egress");
        // `make e2e` names it; where it puts it is beside the profiles of cargo's output.
        let usual = || binary().parent().and_then(Path::parent).expect("a target directory").join("services-venv");
        let venv = std::env::var_os("SERVICES_VENV").map_or_else(usual, PathBuf::from);
        let script = |name: &str| scripts.join(name).display().to_string();
        let names = [script("names.py"), self.host.clone(), self.address.clone()];
        let mut named = Command::new("/usr/bin/python3");
        self.start(named.args(names), Some("ready"));
        let folder = self.folder.path().display().to_string();
        let mut served = self.inside(&venv.join("bin/python").display().to_string());
        served.args([script("servers.py"), self.address.clone(), folder]);
        self.start(&mut served, Some("ready"));
        self.postgres();
        let mut redis = self.inside("redis-server");
        redis.args(["--bind", &self.address, "--protected-mode", "no", "--save", "", "--dir"]).arg(self.folder.path());
        self.start(&mut redis, None);
        for port in [5432, 6379] {
            self.listens(port);
        }
        self
    }

    fn postgres(&mut self) {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL of Debian");
        let version = versions.flatten().next().expect("a version").path();
        let data = self.folder.path().join("postgres");
        std::fs::create_dir(&data).expect("a folder");
        // The folder above is its maker's alone.
        run(&format!("chmod 755 {}", self.folder.path().display()));
        run(&format!("chown postgres {}", data.display()));
        let bin = version.join("bin");
        run(&format!("runuser -u postgres -- {}/initdb -A trust -D {}", bin.display(), data.display()));
        let rules = data.join("pg_hba.conf");
        let text = std::fs::read_to_string(&rules).expect("its rules") + "host all all 10.213.0.0/16 trust\n";
        std::fs::write(rules, text).expect("its rules");
        let mut server = self.inside("runuser");
        server.args(["-u", "postgres", "--"]).arg(bin.join("postgres"));
        server.args(["-h", &self.address, "-k", "", "-D"]).arg(&data);
        self.start(&mut server, None);
    }

    /// A command in the namespace.
    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Starts a server, and waits for its word where it says one.
    fn start(&mut self, command: &mut Command, word: Option<&str>) {
        let output = if word.is_some() { Stdio::piped() } else { Stdio::null() };
        let mut child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn().expect("a server");
        if let (Some(word), Some(output)) = (word, child.stdout.take()) {
            let said = BufReader::new(output).lines().next().and_then(Result::ok);
            assert_eq!(said.as_deref(), Some(word), "{command:?}");
        }
        self.children.push(child);
    }

    fn listens(&self, port: u16) {
        eventually(BEGIN, &format!("a server listens on port {port}"), || {
            std::net::TcpStream::connect((self.address.as_str(), port)).map(drop).map_err(|error| error.to_string())
        });
    }

    /// A file that the servers have.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The settings of a platform whose functions may reach the servers.
    pub(crate) fn settings(&self, more: &str) -> String {
        let Self { host, address, .. } = self;
        format!("egress_networks = [\"{address}/32\"]\negress_resolvers = [\"{host}:53\"]\n{more}")
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What the servers have started of themselves.
        let _ = Command::new("ip").args(["netns", "pids", &self.name]).output().map(|output| {
            for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
        });
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}
