//! Functions reach real servers by the clients that people use, and nothing else.

mod far;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use faena_test_support::{Engine, Platform, Role, eventually, zip};
use far::Far;
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const CLIENTS: &[u8] = include_bytes!("clients.py");
const NODE_CLIENTS: &[u8] = include_bytes!("clients.mjs");
const ATTACKS: &[u8] = include_bytes!("attacks.py");

/// A platform whose functions may reach the servers.
fn platform(far: &Far, more: &str) -> Platform {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), far.settings(more)).expect("the settings");
    platform.start_role(Role::Up);
    platform.ready();
    platform
}

/// Makes a function of files, on a runtime of its own; `toml` is its `faena.toml`.
fn function(
    platform: &Platform,
    (name, engine): (&str, Engine),
    (image, dependencies, run): (&str, &str, &str),
    toml: &str,
    files: &[(&str, &[u8])],
) {
    let runtime = json!({
        "name": name, "image": image, "path": "/ws", "dependencies": dependencies, "run": run, "engine": engine.name()
    });
    let reply = platform.post("/registerRuntime", &runtime);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let reply = platform.upload(name, name, &zip(&[files, &[("faena.toml", toml.as_bytes())]].concat()));
    assert_eq!(reply.status, 201, "{}", reply.text());
    let built = platform.built(name);
    assert_eq!(built["status"], "READY", "{built}");
}

/// What a handler tells, by the names of what it tried.
fn told(platform: &Platform, name: &str, params: &Value) -> (BTreeMap<String, Value>, Value) {
    let call = platform.call(name, params);
    assert_eq!(call["status"], "DONE", "{call}");
    let result = serde_json::from_str(call["result"].as_str().expect("a result")).expect("an object");
    (result, call)
}

fn ordinary_clients_reach_their_servers(engine: Engine) {
    let far = Far::new(if engine == Engine::Docker { 1 } else { 0 });
    let platform = platform(&far, "");
    let ca = std::fs::read(far.file("ca.pem")).expect("a certificate");
    let toml = |handler: &str| {
        format!(
            "contract = \"handler\"\nhandler = \"{handler}\"\n[network]\negress = [\"*.far.test\"]\n\
             [limits]\ntimeout = \"2m\"\nmemory = \"512 MB\"\n"
        )
    };
    let packages = "pip install -r requirements.txt";
    let requirements = b"aiohttp\ngrpcio\nhttpx\npsycopg[binary]\nredis\nrequests\n";
    let files: [(&str, &[u8]); 3] = [("clients.py", CLIENTS), ("requirements.txt", requirements), ("ca.pem", &ca)];
    function(
        &platform,
        ("python", engine),
        ("pythonruntime", packages, "python3 clients.py"),
        &toml("clients.py:go"),
        &files,
    );
    let (found, call) = told(&platform, "python", &json!({}));
    let hello = json!("hello from far");
    for client in ["urllib_get", "requests_get", "httpx_get", "aiohttp_get"] {
        assert_eq!(found[client], hello, "{client} {found:?}");
    }
    let others = [
        ("postgres", "5050"),
        ("redis_get", "value"),
        ("mail", "sent"),
        ("words", "olleh"),
        ("big", "equal"),
        ("huge", "x"),
    ];
    for (client, got) in others {
        assert_eq!(found[client], got, "{client} {found:?}");
    }
    let egress = &call["attempts"][0]["egress"];
    let hosts = egress["hosts"].as_array().expect("hosts");
    for host in ["web", "db", "cache", "mail", "words", "echo"] {
        assert!(hosts.contains(&json!(format!("{host}.far.test"))), "{host} {egress}");
    }
    assert!(
        egress["sentBytes"].as_u64() > Some(4 << 20) && egress["receivedBytes"].as_u64() > Some(4 << 20),
        "{egress}"
    );
    assert!(egress["connections"].as_u64() >= Some(9), "{egress}");

    let files: [(&str, &[u8]); 3] = [
        ("clients.mjs", NODE_CLIENTS),
        ("package.json", br#"{"dependencies": {"pg": "^8", "undici": "^6"}, "type": "module"}"#),
        ("ca.pem", &ca),
    ];
    function(
        &platform,
        ("node", engine),
        ("noderuntime", "npm install", "node clients.mjs"),
        &toml("clients.mjs:go"),
        &files,
    );
    let (found, _) = told(&platform, "node", &json!({}));
    for client in ["fetch", "https", "undici"] {
        assert_eq!(found[client], hello, "{client} {found:?}");
    }
    assert_eq!((&found["pg"], &found["text"], &found["refused"]), (&json!("42"), &json!("1"), &json!("ECONNREFUSED")));

    let folder = tempfile::tempdir().expect("a folder");
    let client = go_client(folder.path());
    let network = "[network]\negress = [\"web.far.test:443\"]\n";
    let script = b"cp client /tmp && chmod 755 /tmp/client && exec /tmp/client";
    let files: [(&str, &[u8]); 3] = [("run.sh", script), ("client", &client), ("ca.pem", &ca)];
    function(&platform, ("go", engine), ("bashruntime", "", "bash run.sh"), network, &files);
    assert_eq!(platform.call("go", &json!({}))["result"], "hello from far");
}

fn go_client(folder: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/egress/client.go");
    let built = Command::new("go")
        .args(["build", "-o"])
        .arg(folder.join("client"))
        .arg(source)
        .env("CGO_ENABLED", "0")
        .status()
        .expect("go");
    assert!(built.success());
    std::fs::read(folder.join("client")).expect("a program")
}

/// Programs of the host, in the sandbox that maps them.
#[test]
fn programs_reach_their_servers() {
    let far = Far::new(2);
    let platform = platform(&far, "");
    let ca = std::fs::read(far.file("ca.pem")).expect("a certificate");
    let script = "unset HTTP_PROXY HTTPS_PROXY http_proxy https_proxy ALL_PROXY all_proxy
        curl -sS --cacert ca.pem https://web.far.test/hello.txt; echo
        git ls-remote http://web.far.test/git main | cut -f2
        curl -sS --max-time 20 http://web.far.test:1/ 2>&1 | grep -o 'Connection refused\\|Couldn.t connect'";
    let network = "network = \"egress\"\n";
    let files: [(&str, &[u8]); 2] = [("run.sh", script.as_bytes()), ("ca.pem", &ca)];
    function(&platform, ("shell", Engine::Sandbox), ("bashruntime", "", "bash run.sh"), network, &files);
    let call = platform.call("shell", &json!({}));
    let lines: Vec<&str> = call["result"].as_str().expect("a result").lines().collect();
    assert_eq!(lines[..2], ["hello from far", "refs/heads/main"], "{call}");
    assert_eq!(lines.len(), 3, "{call}");
}

fn what_may_not_be_reached_is_not(engine: Engine) {
    let far = Far::new(if engine == Engine::Docker { 4 } else { 3 });
    let platform = platform(&far, "");
    let toml =
        "contract = \"handler\"\nhandler = \"attacks.py:go\"\nnetwork = \"egress\"\n[limits]\ntimeout = \"2m\"\n";
    function(
        &platform,
        ("attacks", engine),
        ("pythonruntime", "", "python3 attacks.py"),
        toml,
        &[("attacks.py", ATTACKS)],
    );
    let params = json!({"far": far.address, "host": far.host, "port": platform.port});
    let (found, call) = told(&platform, "attacks", &params);
    let refused = json!(["ECONNREFUSED", true]);
    for attack in ["metadata", "decimal metadata", "private", "host", "docker", "mail", "closed", "udp"] {
        assert_eq!(found[attack], refused, "{attack} {found:?}");
    }
    for attack in ["private name", "own name", "chain", "no name"] {
        assert_eq!(
            found[attack][0].as_str().map(|got| got.contains("EAI") || got.contains("gaierror")),
            Some(true),
            "{attack} {found:?}"
        );
    }
    // Its first address was one that may be reached.
    assert_eq!(found["moves"], refused);
    assert_eq!(found["forgotten name"], json!(["EHOSTUNREACH", true]), "{found:?}");
    for attack in ["six", "mapped"] {
        assert!(
            matches!(found[attack][0].as_str(), Some("ENETUNREACH" | "ECONNREFUSED" | "EADDRNOTAVAIL")),
            "{attack} {found:?}"
        );
    }
    for attack in ["raw", "packet"] {
        assert_eq!(found[attack][0], "EPERM", "{attack} {found:?}");
    }
    for attack in ["device", "forged", "options"] {
        assert!(!matches!(found[attack][0].as_str(), Some("opened" | "connected")), "{attack} {found:?}");
    }
    assert_eq!(found["unread"][0], "bounded", "{found:?}");
    assert_eq!(
        found["many"][0].as_array().map(|many| many[0].as_u64() <= Some(64) && many[1].as_u64() >= Some(16)),
        Some(true),
        "{found:?}"
    );
    for flood in ["churn", "queries", "after"] {
        assert_eq!(found[flood][0], "connected", "{flood} {found:?}");
    }
    let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
    for line in [
        "egress to 169.254.169.254:80 refused: private network",
        "egress to 10.9.9.9:5432 refused: private network",
        "refused: an address of this platform",
        &format!("egress to {}:25 refused: port 25 is not permitted", far.address),
        "egress to private.test refused: private network",
        "egress to moves.test:80 refused: an address of this platform",
        "refused: UDP; only look-ups are passed on",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
    assert!(log.len() < 20_000, "{}", log.len());
}

/// A rule of the function permits what it names, and what it does not name is not even looked up.
#[test]
fn a_function_reaches_what_its_rules_name() {
    let far = Far::new(5);
    let platform = platform(&far, "");
    let script = format!(
        "try() {{ (exec 3<>/dev/tcp/$1/$2) 2>/dev/null && echo reached || echo refused; }}
         try web.far.test 80; try web.far.test 443; try db.far.test 5432; try {} 6379; try {0} 80",
        far.address
    );
    let network = format!("[network]\negress = [\"web.far.test:80\", \"{}/32:6379\"]\n", far.address);
    let files: [(&str, &[u8]); 1] = [("run.sh", script.as_bytes())];
    function(&platform, ("rules", Engine::Sandbox), ("bashruntime", "", "bash run.sh"), &network, &files);
    let call = platform.call("rules", &json!({}));
    assert_eq!(call["result"], "reached\nrefused\nrefused\nreached\nrefused", "{call}");
    let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
    for target in ["web.far.test:443", "db.far.test", &format!("{}:80", far.address)] {
        assert!(
            log.contains(&format!("egress to {target} refused: no rule of faena.toml permits it")),
            "{target}: {log}"
        );
    }
    // A name that shares the address is not reached by naming it in TLS.
    let ca = std::fs::read(far.file("ca.pem")).expect("a certificate");
    let script = "unset HTTPS_PROXY https_proxy ALL_PROXY all_proxy
        curl -sS --cacert ca.pem https://web.far.test/hello.txt; echo
        curl -sS --cacert ca.pem --connect-to db.far.test:443:web.far.test:443 https://db.far.test/hello.txt >&2; echo $?";
    let network = "[network]\negress = [\"web.far.test:443\"]\n";
    let fronting: [(&str, &[u8]); 2] = [("run.sh", script.as_bytes()), ("ca.pem", &ca)];
    function(&platform, ("fronting", Engine::Sandbox), ("bashruntime", "", "bash run.sh"), network, &fronting);
    let call = platform.call("fronting", &json!({}));
    assert_eq!(call["result"], "hello from far\n35", "{call}");
    let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
    assert!(log.contains("egress to web.far.test:443 refused: its client names a server"), "{log}");
    // Without egress there is no way, and no device.
    function(&platform, ("closed", Engine::Sandbox), ("bashruntime", "", "bash run.sh"), "", &files);
    let call = platform.call("closed", &json!({}));
    assert_eq!(call["result"], "refused\nrefused\nrefused\nrefused\nrefused", "{call}");
    let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
    assert!(log.contains("found no route: this function has no network"), "{log}");
}

/// Connections of a process that answers many calls outlive a call; those of a call's own process do not.
#[test]
fn connections_live_as_long_as_the_process_that_holds_them() {
    let far = Far::new(6);
    let platform = platform(&far, "egress_bytes = \"1 MB\"\nfreeze_after = \"200ms\"\n");
    let code = format!(
        "import socket\nheld = []\ndef go(params):\n    if not held:\n        held.append(socket.create_connection(('{}', 7), 10))\n    \
         body = b'x' * params['bytes']\n    held[0].sendall(body)\n    got = 0\n    while got < len(body):\n        got += len(held[0].recv(65536)) or 1 << 30\n    \
         return [got, held[0].getsockname()[1]]\n",
        far.address
    );
    let toml = |reuse: &str| {
        format!("contract = \"handler\"\nhandler = \"echo.py:go\"\nreuse = \"{reuse}\"\nnetwork = \"egress\"\n")
    };
    for reuse in ["version", "fork"] {
        let files: [(&str, &[u8]); 1] = [("echo.py", code.as_bytes())];
        function(&platform, (reuse, Engine::Sandbox), ("pythonruntime", "", "python3 echo.py"), &toml(reuse), &files);
    }
    let ask = |name: &str, bytes: u64| {
        let call = platform.call(name, &json!({"bytes": bytes}));
        let result: Value = serde_json::from_str(call["result"].as_str().unwrap_or_default()).unwrap_or_default();
        (result, call)
    };
    let (first, _) = ask("version", 300_000);
    eventually(LONG, "the instance is frozen", || {
        let workers = platform.get("/workers").json();
        if workers[0]["pool"]["frozen"].as_u64() > Some(0) { Ok(()) } else { Err(workers) }
    });
    // What is frozen keeps its connections.
    let (second, call) = ask("version", 300_000);
    assert_eq!((&first[0], &first), (&json!(300_000), &second), "one connection serves both calls");
    let egress = &call["attempts"][0]["egress"];
    assert_eq!(
        (&egress["connections"], &egress["sentBytes"], &egress["receivedBytes"]),
        (&json!(0), &json!(300_000), &json!(300_000))
    );
    // Each call has its own budget; more than that resets the connection.
    let (_, call) = ask("version", 600_000);
    assert_eq!(call["status"], "FAILED", "{call}");
    let log = platform.get(&format!("/call/{}/logs", call["callNum"])).text();
    assert!(log.contains("may pass in one call"), "{log}");
    let ((first, call), (second, _)) = (ask("fork", 1000), ask("fork", 1000));
    assert_eq!(call["attempts"][0]["egress"]["connections"], 1, "{call}");
    assert_eq!((&first[0], &second[0]), (&json!(1000), &json!(1000)));
}

/// The gateway may die at any time: connections are reset, and the next ones are served by another.
#[test]
fn a_gateway_that_dies_is_replaced() {
    let far = Far::new(7);
    let platform = platform(&far, "");
    let code = format!(
        "import socket\ndef go(params):\n    s = socket.create_connection(('{}', 7), 120)\n    s.sendall(b'x')\n    s.recv(1)\n    \
         print('connected', flush=True)\n    try:\n        return 'end' if params['wait'] and s.recv(1) == b'' else 'served'\n    except ConnectionResetError:\n        return 'reset'\n",
        far.address
    );
    let toml = "contract = \"handler\"\nhandler = \"waits.py:go\"\nnetwork = \"egress\"\n";
    let files: [(&str, &[u8]); 1] = [("waits.py", code.as_bytes())];
    function(&platform, ("waits", Engine::Sandbox), ("pythonruntime", "", "python3 waits.py"), toml, &files);
    let gateway = || gateway_of(platform.pid(Role::Up));
    assert_eq!(platform.call("waits", &json!({"wait": false}))["result"], "served");
    let first = gateway().expect("a gateway");
    assert_confined(first);
    let waiting = platform.invoke(&json!({"funcName": "waits", "params": {"wait": true}, "retries": 0}));
    platform.running(waiting);
    eventually(LONG, "the call has its connection", || {
        let log = platform.get(&format!("/call/{waiting}/logs")).text();
        if log.contains("connected") { Ok(()) } else { Err(log) }
    });
    let killed = Command::new("kill").args(["-KILL", &first.to_string()]).status().expect("kill");
    assert!(killed.success());
    // The program only reads: it learns of the loss because the next gateway resets what it finds.
    assert_eq!(platform.ended(waiting)["result"], "reset");
    eventually(LONG, "another gateway runs", || gateway().filter(|next| *next != first).ok_or("none"));
    eventually(LONG, "new connections are served", || {
        let call = platform.call("waits", &json!({"wait": false}));
        if call["result"] == "served" { Ok(()) } else { Err(call) }
    });
}

/// The process of the gateway, a child of the platform.
fn gateway_of(platform: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{platform}/task/{platform}/children")).unwrap_or_default();
    let all = std::fs::read_dir(format!("/proc/{platform}/task")).ok()?;
    let of_tasks = all.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids =
        of_tasks.chain([children]).flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let is_gateway =
        |pid: &String| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0net\0"));
    pids.filter(is_gateway).find_map(|pid| pid.parse().ok())
}

/// It has no privilege, and a list of system calls.
fn assert_confined(gateway: u32) {
    for task in std::fs::read_dir(format!("/proc/{gateway}/task")).expect("its threads").flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).expect("its status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim_start_matches(':').trim().to_owned()
        };
        for set in ["CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"));
        assert!(field("Uid").starts_with("65534\t65534"), "{}", field("Uid"));
    }
}

#[test]
fn ordinary_clients_reach_their_servers_in_the_sandbox() {
    ordinary_clients_reach_their_servers(Engine::Sandbox);
}

#[test]
fn ordinary_clients_reach_their_servers_in_docker() {
    ordinary_clients_reach_their_servers(Engine::Docker);
}

#[test]
fn what_may_not_be_reached_is_not_in_the_sandbox() {
    what_may_not_be_reached_is_not(Engine::Sandbox);
}

#[test]
fn what_may_not_be_reached_is_not_in_docker() {
    what_may_not_be_reached_is_not(Engine::Docker);
}
