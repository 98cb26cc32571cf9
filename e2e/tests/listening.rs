//! Where the platform listens, how it is spoken to there, and whom it believes; and the commands that ask it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use faena_test_support::{Platform, Role, SECRET, binary, eventually};
use serde_json::{Value, json};

/// A certificate is looked at every five seconds.
const LONG: Duration = Duration::from_secs(30);

fn settings(platform: &Platform, text: &str) {
    std::fs::write(platform.settings_file(), text).expect("settings");
}

/// A certificate for localhost, signed by itself.
fn certificate(folder: &Path, name: &str) {
    let words = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} -addext \
         subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem"
    );
    let made = Command::new("openssl").args(words.split(' ')).current_dir(folder).output().expect("openssl");
    assert!(made.status.success(), "{made:?}");
}

/// A command of the binary that asks a platform.
fn ask(address: &str, credential: Option<&str>, words: &str, input: &str) -> Output {
    let mut command = Command::new(binary());
    command.args(words.split(' ')).args(["--api", address]).env_remove("FAENA_CREDENTIAL");
    command.envs(credential.map(|credential| ("FAENA_CREDENTIAL", credential)));
    let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().expect("the binary is built");
    child.stdin.take().expect("its input").write_all(input.as_bytes()).expect("it reads");
    child.wait_with_output().expect("it ends")
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

#[test]
fn other_machines_are_let_in_by_tls_or_where_that_is_said() {
    let platform = Platform::stopped();
    let listen = format!("0.0.0.0:{}", platform.port);
    let mut command = Command::new(binary());
    let refused = command.args(["up", "--listen", &listen, "--data"]).arg(platform.data()).output().expect("it ends");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("tls_cert") && why.contains("--insecure-http"), "{why}");
    for (text, why) in [
        ("tls_cert = \"/x\"\n", "belong together"),
        ("trusted_proxies = [\"proxy\"]\n", "is no address"),
        ("operators = [\"nobody-of-this-name\"]\n", "has no user"),
    ] {
        settings(&platform, text);
        let output = platform.command(Role::Up).output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}

#[test]
fn plain_http_beyond_this_machine_is_never_open() {
    let mut platform = Platform::stopped();
    let mut command = Command::new(binary());
    let listen = format!("0.0.0.0:{}", platform.port);
    command.args(["up", "--insecure-http", "--listen", &listen, "--data"]).arg(platform.data());
    let log = std::fs::File::create(platform.data().with_file_name("log")).expect("a log");
    let mut child = command.stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("the binary is built");
    platform.ready();
    assert_eq!(platform.get("/functions").problem(401), "unauthenticated");
    platform.lock();
    // By its address there is no name that a page could take.
    let host = [("Host", "192.0.2.7:3000")];
    assert_eq!(platform.send("GET", "/functions", &host, b"").status, 200);
    assert_eq!(platform.send("GET", "/functions", &[("Host", "faena.test")], b"").problem(421), "foreign_host");
    let _ = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_certificate_is_read_again_when_it_changes() {
    let mut platform = Platform::stopped();
    let folder = tempfile::tempdir().expect("a folder");
    certificate(folder.path(), "first");
    let at = |name: &str| folder.path().join(name).display().to_string();
    settings(&platform, &format!("tls_cert = \"{}\"\ntls_key = \"{}\"\n", at("cert.pem"), at("key.pem")));
    platform.start_role(Role::Up);
    let address = format!("https://localhost:{}", platform.port);
    let whoami = |ca: &str| ask(&address, None, &format!("whoami --json --ca {ca}"), "");
    let first = at("first.pem");
    std::fs::copy(at("cert.pem"), &first).expect("a copy");
    let answer = eventually(LONG, "it answers", || {
        let output = whoami(&first);
        if output.status.success() { Ok(said(&output)) } else { Err(output) }
    });
    assert_eq!(serde_json::from_str::<Value>(&answer).expect("JSON")["type"], "operator");
    // Plain HTTP is not answered there.
    assert!(!ask(&format!("http://localhost:{}", platform.port), None, "whoami", "").status.success());
    certificate(folder.path(), "second");
    let second = at("cert.pem");
    eventually(LONG, "the new one is in use", || {
        let output = whoami(&second);
        if output.status.success() { Ok(()) } else { Err(output) }
    });
    assert!(!whoami(&first).status.success(), "the first one is not");
    // What is no certificate leaves the one that is in use.
    std::fs::write(at("key.pem"), "nonsense").expect("a file");
    eventually(LONG, "it is told", || {
        let log = platform.logged();
        if log.contains("cannot be used; the one before stays") { Ok(()) } else { Err(log) }
    });
    assert!(whoami(&second).status.success());
    assert!(platform.stop());
}

#[test]
fn an_open_platform_is_for_its_own_user() {
    let get = |platform: &Platform, uid: u32| {
        let url = format!("http://127.0.0.1:{}/whoami", platform.port);
        let output = Command::new("curl").args(["-s", &url]).uid(uid).gid(uid).output().expect("curl");
        serde_json::from_slice::<Value>(&output.stdout).expect("JSON")
    };
    let mut platform = Platform::start();
    assert_eq!(get(&platform, 0)["type"], "operator");
    assert_eq!(get(&platform, 65_534)["code"], "unauthenticated");
    platform.stop();
    settings(&platform, "operators = [\"nobody\"]\n");
    platform.start_role(Role::Up);
    platform.ready();
    assert_eq!(get(&platform, 65_534)["type"], "operator");
    assert_eq!(get(&platform, 65_533)["code"], "unauthenticated");
}

#[test]
fn a_proxy_that_is_trusted_tells_where_a_request_comes_from() {
    let mut platform = Platform::stopped();
    let file = platform.data().with_file_name("audit");
    settings(&platform, &format!("trusted_proxies = [\"127.0.0.1\"]\naudit_file = \"{}\"\n", file.display()));
    platform.start_role(Role::Up);
    platform.ready();
    assert_eq!(platform.get("/whoami").problem(401), "unauthenticated", "behind a proxy nothing is open");
    platform.lock();
    let namespace = json!({"name": "red"}).to_string();
    let headers = [("Content-Type", "application/json"), ("X-Forwarded-For", "203.0.113.9, 198.51.100.7")];
    assert_eq!(platform.send("POST", "/namespace", &headers, namespace.as_bytes()).status, 201);
    let lines = platform.get("/audit?action=POST%20%2Fnamespace").json();
    assert_eq!(lines[0]["address"], "198.51.100.7", "{lines}");
    let written = std::fs::read_to_string(file).expect("the audit file");
    let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(written.iter().any(|line| line["action"] == "POST /namespace" && line["target"] == "red"), "{written:?}");
}

#[test]
fn commands_do_what_an_operator_needs() {
    let mut platform = Platform::start();
    let address = format!("http://127.0.0.1:{}", platform.port);
    let made = ask(&address, None, "account make root --scope admin --secret", SECRET);
    assert!(said(&made).contains("name: root"), "{made:?}");
    let token = said(&ask(&address, None, "token make root", &format!("{SECRET}\n")));
    assert!(token.starts_with("fna_a_"), "{token}");
    let do_it = |words: &str, input: &str| said(&ask(&address, Some(&token), words, input));
    let key = do_it("key make ci --scope read", "");
    assert!(key.starts_with("fna_k_"), "{key}");
    assert!(do_it("namespace make red", "").contains("name: red"));
    assert_eq!(do_it("namespace list", ""), "default\nred");
    do_it("namespace change red", r#"{"weight":3,"quota":{"functions":5}}"#);
    let red: Value = serde_json::from_str(&do_it("namespace show red --json", "")).expect("JSON");
    assert_eq!(
        (&red["weight"], &red["quota"]["functions"], &red["usage"]["functions"]),
        (&json!(3), &json!(5), &json!(0))
    );
    do_it("account make lead --scope admin --in red", "");
    assert!(do_it("account list --in red", "").contains("name: lead"));
    do_it("config set db.port 5432", "");
    do_it("secret set db.password", "correct horse\n");
    assert_eq!(do_it("config get db --json", ""), r#"{"password":"[secret]","port":5432}"#);
    assert_eq!(do_it("secret rotate", ""), "1");
    let rule = r#"{"id":"open","scope":"","resource":{"type":"function","name":"x","endpoint":"*"},"access":"GRANTED","priority":1}"#;
    do_it("rule put", rule);
    assert!(do_it("rule list", "").contains("id: open"));
    assert!(do_it("audit --account root --json", "").contains("POST /rule"));
    assert!(do_it("whoami", "").contains("account: root"));
    let refused = ask(&address, Some(&key), "account list", "");
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && why.contains("lacks the scope admin") && why.contains("403"), "{why}");
    let nowhere = ask("http://127.0.0.1:1", None, "whoami", "");
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("127.0.0.1:1"), "{nowhere:?}");
    assert!(platform.stop());
}
