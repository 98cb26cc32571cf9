//! Accounts, credentials, rules and namespaces, over HTTP: who is let in, to what, and until when.

mod attacks;
mod configuration;
mod fairness;
mod lockdown;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use faena_test_support::{Engine, Platform, Reply, Role, SECRET, eventually, zip};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);
/// What prints its standard input.
const ECHO: &str = "cat input.json";

/// A platform that its first account has locked.
fn locked() -> Platform {
    let mut platform = Platform::start();
    platform.lock();
    platform
}

fn with_echo(platform: &Platform) {
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("echo", ECHO);
    assert_eq!(platform.built("echo")["status"], "READY");
}

/// A request with another credential than the platform's.
fn as_who(platform: &Platform, credential: &str, method: &str, path: &str, body: Option<&Value>) -> Reply {
    let bearer = format!("Bearer {credential}");
    let mut headers = vec![("Authorization", bearer.as_str())];
    headers.extend(body.map(|_| ("Content-Type", "application/json")));
    platform.send(method, path, &headers, body.map(Value::to_string).unwrap_or_default().as_bytes())
}

/// A request without a credential.
fn as_stranger(platform: &Platform, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
    faena_test_support::request(platform.port, method, path, headers, b"")
}

/// A key of the account that `credential` belongs to, and its id.
fn key(platform: &Platform, credential: &str, name: &str, scopes: &[&str]) -> (String, String) {
    let reply = as_who(platform, credential, "POST", "/key", Some(&json!({"name": name, "scopes": scopes})));
    assert_eq!(reply.status, 201, "{}", reply.text());
    let made = reply.json();
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let text = |field: &str| made[field].as_str().expect(field).to_owned();
    (text("key"), text("id"))
}

fn root(platform: &Platform) -> String {
    platform.credential.clone().expect("the administrator's token")
}

/// Makes an account in a namespace and signs it in.
fn account(platform: &Platform, namespace: &str, name: &str, scopes: &[&str]) -> String {
    let asked = json!({"name": name, "type": "user", "secret": SECRET, "scopes": scopes, "namespace": namespace});
    let reply = platform.post("/account", &asked);
    assert_eq!(reply.status, 201, "{}", reply.text());
    platform.signed_in(name, SECRET, namespace)
}

/// A namespace with an administrator, a runtime and a function `echo`; returns the administrator's token.
fn team(platform: &Platform, namespace: &str) -> String {
    assert_eq!(platform.post("/namespace", &json!({"name": namespace})).status, 201);
    account(platform, namespace, "lead", &["admin"])
}

/// Every operation that the platform describes, with names in place of parameters.
fn operations(platform: &Platform) -> Vec<(String, String)> {
    let document = as_stranger(platform, "GET", "/openapi.json", &[]).json();
    let paths = document["paths"].as_object().expect("paths").clone();
    let of_path = |(path, item): (String, Value)| {
        let methods: Vec<String> = item.as_object().expect("methods").keys().map(|name| name.to_uppercase()).collect();
        methods.into_iter().map(move |method| (method, path.clone()))
    };
    paths.into_iter().flat_map(of_path).collect()
}

/// Routes that need no credential.
const FOR_EVERYONE: [(&str, &str); 5] =
    [("POST", "/setup"), ("POST", "/token"), ("GET", "/login"), ("GET", "/healthz"), ("GET", "/readyz")];
/// Where browsers come back from an identity provider. Without one it is always 401.
const CALLBACK: (&str, &str) = ("GET", "/login/callback/{provider}");
/// Routes that need a credential, whatever its scopes.
const FOR_ACCOUNTS: [(&str, &str); 7] = [
    ("DELETE", "/token"),
    ("GET", "/whoami"),
    ("POST", "/key"),
    ("GET", "/keys"),
    ("DELETE", "/key/{id}"),
    // Judged by the function, and by the account whose secret it is.
    ("POST", "/invokeFunction"),
    ("POST", "/account/{account}/secret"),
];

#[test]
fn every_route_needs_a_credential_that_is_whole_alive_and_permitted() {
    let platform = locked();
    let root = root(&platform);
    let (whole, id) = key(&platform, &root, "revoked", &["admin"]);
    assert_eq!(as_who(&platform, &whole, "GET", "/whoami", None).status, 200);
    assert_eq!(as_who(&platform, &root, "DELETE", &format!("/key/{id}"), None).status, 204);
    let gone = account(&platform, "default", "gone", &["admin"]);
    let (of_gone, _) = key(&platform, &gone, "of gone".replace(' ', "-").as_str(), &["admin"]);
    assert_eq!(as_who(&platform, &root, "DELETE", "/account/gone", None).status, 204);
    let truncated = &root[..root.len() - 1];
    let (nothing, _) = key(&platform, &root, "nothing", &["nothing"]);
    let refresh = platform.post("/token", &json!({"name": "root", "secret": SECRET})).json();
    let refresh = refresh["refreshToken"].as_str().expect("a token");
    let as_access = refresh.replacen("fna_r_", "fna_a_", 1);
    let none = ["", "garbage", truncated, &whole, &gone, &of_gone, refresh, &as_access];
    let uploaded = [("Content-Type", "application/json")];
    for (method, route) in operations(&platform) {
        let operation = (method.as_str(), route.as_str());
        if operation == CALLBACK {
            assert_eq!(as_stranger(&platform, "GET", "/login/callback/x", &[]).problem(401), "sign_in_failed");
            continue;
        }
        let path = route.replace("{callNum}", "1").replace("/{path}", "/x").replace(['{', '}'], "");
        if FOR_EVERYONE.contains(&operation) {
            assert!(
                ![401, 403].contains(&as_stranger(&platform, &method, &path, &uploaded).status) || method == "POST"
            );
            continue;
        }
        let reply = as_stranger(&platform, &method, &path, &[]);
        assert_eq!(reply.problem(401), "unauthenticated", "{operation:?}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"), "{operation:?}");
        assert_eq!(as_stranger(&platform, &method, &format!("{path}?access_token={root}"), &[]).status, 401);
        for credential in none {
            let reply = as_who(&platform, credential, &method, &path, None);
            assert_eq!(reply.problem(401), "unauthenticated", "{operation:?} with {credential:?}");
        }
        let reply = as_who(&platform, &nothing, &method, &path, None);
        if FOR_ACCOUNTS.contains(&operation) {
            assert_ne!(reply.status, 401, "{operation:?}");
        } else {
            assert_eq!(reply.problem(403), "forbidden", "{operation:?} without a scope");
        }
    }
    let twice = [("Authorization", format!("Bearer {root}")), ("Authorization", format!("Bearer {root}"))];
    let twice = twice.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(as_stranger(&platform, "GET", "/whoami", &twice).problem(400), "repeated_header");
    let basic = [("Authorization", "Basic cm9vdDpzZWNyZXQ=")];
    assert_eq!(as_stranger(&platform, "GET", "/whoami", &basic).problem(401), "unauthenticated");
    // Nothing of the operations above was done.
    assert_eq!(platform.get("/accounts").json().as_array().map(Vec::len), Some(1));
}

#[test]
fn a_platform_with_names_of_its_own_is_never_open() {
    let mut platform = Platform::stopped();
    std::fs::write(platform.settings_file(), "host_names = [\"faena.test\"]\n").expect("settings");
    platform.start_role(Role::Up);
    platform.ready();
    assert_eq!(platform.get("/functions").problem(401), "unauthenticated");
    let account = json!({"name": "root", "type": "user", "secret": SECRET, "scopes": ["admin"]});
    assert_eq!(platform.post("/account", &account).problem(401), "unauthenticated");
    let token = platform.setup_token();
    let set_up =
        |token: &str, secret: &str| platform.post("/setup", &json!({"token": token, "name": "root", "secret": secret}));
    assert_eq!(set_up("wrong", SECRET).problem(401), "bad_credentials");
    assert_eq!(set_up(&token, "short").problem(422), "invalid_secret");
    let mut command = platform.command(Role::Up);
    let printed = {
        let mut setup = std::process::Command::new(command.get_program());
        setup.arg("setup").args(command.get_args().skip(3)).output().expect("faena setup")
    };
    let second = String::from_utf8_lossy(&printed.stdout).trim().to_owned();
    assert!(printed.status.success() && second.len() >= 32, "{printed:?}");
    assert_eq!(set_up(&token, SECRET).problem(401), "bad_credentials", "another took its place");
    assert_eq!(set_up(&second, SECRET).status, 201);
    assert_eq!(set_up(&second, SECRET).problem(401), "bad_credentials", "it works once");
    let root = platform.signed_in("root", SECRET, "default");
    assert_eq!(as_who(&platform, &root, "GET", "/functions", None).status, 200);
    command.args(["--log", "info"]);
    let mut setup = std::process::Command::new(command.get_program());
    let refused = setup.arg("setup").args(command.get_args().skip(3)).output().expect("faena setup");
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("has accounts already"), "{refused:?}");
}

#[test]
fn an_open_platform_is_the_operators_and_its_first_account_locks_it_for_ever() {
    let mut platform = Platform::start();
    assert_eq!(platform.get("/whoami").json()["type"], "operator");
    for header in ["X-Forwarded-For", "Forwarded", "Via", "X-Real-IP"] {
        let reply = as_stranger(&platform, "GET", "/whoami", &[(header, "192.0.2.1")]);
        assert_eq!(reply.problem(401), "unauthenticated", "{header}");
    }
    let user = json!({"name": "ann", "type": "user", "secret": SECRET});
    assert_eq!(platform.post("/account", &user).problem(422), "administrator_needed");
    with_echo(&platform);
    platform.lock();
    assert_eq!(as_stranger(&platform, "GET", "/functions", &[]).problem(401), "unauthenticated");
    let (key, _) = key(&platform, &root(&platform), "stays", &["admin"]);
    assert!(platform.stop());
    platform.start_role(Role::Up);
    platform.ready();
    assert_eq!(as_stranger(&platform, "GET", "/functions", &[]).problem(401), "unauthenticated");
    // What was there before belongs to the namespace `default`, and credentials outlive a restart.
    assert_eq!(as_who(&platform, &key, "GET", "/functions", None).json(), json!(["echo"]));
    let last = as_who(&platform, &key, "DELETE", "/account/root", None);
    assert_eq!(last.problem(409), "conflict");
}

#[test]
fn an_account_is_named_once_and_signs_in_by_name_or_id() {
    let platform = locked();
    let made = platform.post("/account", &json!({"name": "Ann", "type": "service", "metadata": {"team": "red"}}));
    assert_eq!(made.status, 201, "{}", made.text());
    let made = made.json();
    assert_eq!(made["scopes"], json!(["read", "invoke"]), "what an account has that asks for none");
    let secret = made["secret"].as_str().expect("a secret that was made");
    assert_eq!(platform.post("/account", &json!({"name": "ANN", "type": "user"})).problem(409), "conflict");
    for who in [json!({"name": "ann", "secret": secret}), json!({"id": made["id"], "secret": secret})] {
        assert_eq!(platform.post("/token", &who).status, 201, "{who}");
    }
    let (_, seen) = (made["id"].clone(), platform.get("/account/ann").json());
    assert_eq!((&seen["secret"], &seen["metadata"]["team"]), (&Value::Null, &json!("red")));
    for (wrong, code) in [
        (json!({"name": "x y", "type": "user"}), "invalid_name"),
        (json!({"name": "x", "type": "robot"}), "malformed_json"),
        (json!({"name": "x", "type": "user", "secret": "short"}), "invalid_secret"),
        (json!({"name": "x", "type": "user", "scopes": ["*"]}), "invalid_scope"),
        (json!({"name": "x", "type": "user", "admin": true}), "unknown_field"),
        (json!({"name": "x".repeat(1_000_000), "type": "user"}), "too_large"),
    ] {
        let reply = platform.post("/account", &wrong);
        let status = reply.status;
        assert_eq!(reply.problem(status), code, "{}", reply.text());
    }
    assert_eq!(platform.post("/token", &json!({"name": "ann"})).problem(400), "missing_field");
    let both = json!({"name": "ann", "secret": SECRET, "refreshToken": "fna_r_"});
    assert_eq!(platform.post("/token", &both).problem(400), "missing_field");
}

#[test]
fn a_key_has_no_scope_that_its_maker_lacks_and_loses_what_its_maker_loses() {
    let platform = locked();
    let ann = account(&platform, "default", "ann", &["deploy", "robots"]);
    let asks = |scopes: &[&str]| {
        as_who(&platform, &ann, "POST", "/key", Some(&json!({"name": scopes.join("-"), "scopes": scopes})))
    };
    assert_eq!(asks(&["admin"]).problem(403), "forbidden");
    assert_eq!(asks(&["others"]).problem(403), "forbidden");
    assert_eq!(asks(&["read", "robots"]).status, 201);
    assert_eq!(asks(&["read", "robots"]).problem(409), "conflict", "its name is taken");
    let over = json!({"name": "over", "expiresAt": "2020-01-01T00:00:00Z"});
    assert_eq!(as_who(&platform, &ann, "POST", "/key", Some(&over)).problem(400), "invalid_instant");
    let (key, id) = key(&platform, &ann, "used", &["read"]);
    assert_eq!(as_who(&platform, &key, "GET", "/functions", None).status, 200);
    let keys = as_who(&platform, &ann, "GET", "/keys", None).text();
    assert!(keys.contains(&id) && !keys.contains(&key), "{keys}");
    // A changed secret ends sessions, and keys where that is asked for.
    let new = json!({"old": SECRET, "new": "another secret"});
    assert_eq!(as_who(&platform, &ann, "POST", "/account/ann/secret", Some(&new)).status, 204);
    assert_eq!(as_who(&platform, &ann, "GET", "/whoami", None).problem(401), "unauthenticated");
    assert_eq!(as_who(&platform, &key, "GET", "/functions", None).status, 200);
    assert_eq!(platform.post("/account/ann/secret?keys=true", &json!({"new": SECRET})).status, 204);
    assert_eq!(as_who(&platform, &key, "GET", "/functions", None).problem(401), "unauthenticated");
    let bob = account(&platform, "default", "bob", &["read"]);
    let others = json!({"old": SECRET, "new": "another secret"});
    assert_eq!(as_who(&platform, &bob, "POST", "/account/ann/secret", Some(&others)).problem(403), "forbidden");
    assert_eq!(as_who(&platform, &bob, "POST", "/account/nobody/secret", Some(&others)).problem(403), "forbidden");
}

#[test]
fn namespaces_do_not_see_each_other() {
    let platform = locked();
    let (red, blue) = (team(&platform, "red"), team(&platform, "blue"));
    assert_eq!(platform.post("/namespace", &json!({"name": "red"})).problem(409), "conflict");
    for name in ["..", "Red", "a.b", "-a", "a-", ""] {
        assert_eq!(platform.post("/namespace", &json!({"name": name})).problem(400), "invalid_name", "{name}");
    }
    let as_team = |token: &str| {
        let mut team = Platform::stopped();
        (team.port, team.credential) = (platform.port, Some(token.to_owned()));
        team
    };
    // The same function in both, each its own.
    for (team, says) in [(as_team(&red), "echo red"), (as_team(&blue), "echo blue")] {
        team.shell_runtime(Engine::Sandbox, &json!({}));
        team.script("same", says);
        assert_eq!(team.built("same")["status"], "READY");
    }
    for _ in 0..2 {
        assert_eq!(as_who(&platform, &red, "POST", "/f/same", None).text(), "red");
        assert_eq!(as_who(&platform, &blue, "POST", "/f/same", None).text(), "blue");
    }
    let call = as_team(&red).call("same", &json!({"canary": "rojo"}));
    let num = call["callNum"].as_i64().expect("a number");
    for (method, path) in [
        ("GET", format!("/call/{num}")),
        ("DELETE", format!("/call/{num}")),
        ("GET", format!("/call/{num}/logs")),
        ("POST", format!("/call/{num}/replay")),
        ("DELETE", format!("/deadLetter/{num}")),
    ] {
        let theirs = as_who(&platform, &blue, method, &path, None);
        let nowhere = as_who(&platform, &blue, method, &path.replace(&num.to_string(), "987654"), None);
        assert_eq!(theirs.status, 404, "{method} {path}");
        assert_eq!(theirs.text().replace(&num.to_string(), "987654"), nowhere.text(), "{method} {path}");
    }
    for path in ["/calls", "/functions", "/runtimes", "/deadLetters", "/audit", "/accounts", "/rules"] {
        assert!(!as_who(&platform, &blue, "GET", path, None).text().contains("rojo"), "{path}");
    }
    // Another's is named by a header, by administrators of the platform alone.
    let in_red = |token: &str, namespace: &str| {
        let bearer = format!("Bearer {token}");
        as_stranger(&platform, "GET", "/functions", &[("Authorization", &bearer), ("Faena-Namespace", namespace)])
    };
    let (theirs, nowhere) = (in_red(&blue, "red"), in_red(&blue, "nowhere"));
    assert_eq!(theirs.problem(404), "unknown_namespace");
    assert_eq!(theirs.text().replace("red", "nowhere"), nowhere.text());
    assert_eq!(in_red(&root(&platform), "RED").json(), json!(["same"]));
    assert_eq!(in_red(&root(&platform), "nowhere").problem(404), "unknown_namespace");
    // An administrator of a namespace is none of the platform.
    for (method, path) in
        [("GET", "/workers"), ("GET", "/metrics"), ("GET", "/namespaces"), ("DELETE", "/namespace/blue")]
    {
        assert_eq!(as_who(&platform, &red, method, path, None).problem(403), "forbidden", "{method} {path}");
    }
    let into_blue = json!({"name": "spy", "type": "user", "namespace": "blue"});
    assert_eq!(as_who(&platform, &red, "POST", "/account", Some(&into_blue)).problem(403), "forbidden");
    assert_eq!(platform.send("DELETE", "/namespace/blue", &[], b"").problem(409), "conflict");
    assert_eq!(platform.send("DELETE", "/namespace/default", &[], b"").problem(409), "conflict");
    assert_eq!(platform.post("/namespace", &json!({"name": "empty"})).status, 201);
    assert_eq!(platform.send("DELETE", "/namespace/empty", &[], b"").status, 204);
    assert_eq!(platform.get("/namespaces").json(), json!(["blue", "default", "red"]));
}

#[test]
fn rules_decide_who_calls_what() {
    let platform = locked();
    with_echo(&platform);
    let rule = |rule: Value| platform.post("/rule", &rule);
    let on = |name: &str, endpoint: &str| json!({"type": "function", "name": name, "endpoint": endpoint});
    let granted = |id: &str, scope: &str, resource: Value| {
        rule(json!({"id": id, "scope": scope, "resource": resource, "access": "GRANTED", "priority": 1}))
    };
    let call = |path: &str| as_stranger(&platform, "POST", path, &[]).status;
    assert_eq!(call("/f/echo"), 401);
    assert_eq!(granted("open", "", on("echo", "/hook/*")).status, 201);
    assert_eq!(granted("open", "", on("Echo", "/hook/*")).status, 200, "the same id, replaced");
    assert_eq!((call("/f/echo/hook/x"), call("/f/echo"), call("/f/echo/hooks")), (200, 401, 401));
    for path in
        ["/f/echo/hook/../x", "/f/echo/hook/%2e%2e/x", "/f/echo/hook//x", "/f/echo/hook/a%2Fb", "/f/echo/hook/%00"]
    {
        let reply = as_stranger(&platform, "POST", path, &[]);
        assert_eq!(reply.problem(400), "invalid_path", "{path}");
    }
    // Public is calling alone, and never by /invokeFunction.
    assert_eq!(as_stranger(&platform, "GET", "/function/echo", &[]).problem(401), "unauthenticated");
    assert_eq!(as_stranger(&platform, "POST", "/invokeFunction", &[("Content-Type", "application/json")]).status, 401);
    assert_eq!(platform.send("DELETE", "/rule/open", &[], b"").status, 204);
    assert_eq!(call("/f/echo/hook/x"), 401);
    let (robot, _) = key(&platform, &root(&platform), "robot", &["robots"]);
    let invoked = json!({"funcName": "echo", "params": {}});
    assert_eq!(as_who(&platform, &robot, "POST", "/invokeFunction", Some(&invoked)).problem(403), "forbidden");
    assert_eq!(granted("robots", "robots", on("echo", "*")).status, 201);
    assert_eq!(as_who(&platform, &robot, "POST", "/invokeFunction", Some(&invoked)).status, 202);
    assert_eq!(as_who(&platform, &robot, "POST", "/f/echo", None).status, 200);
    let denied = json!({"id": "shut", "scope": "*", "resource": on("echo", "*"), "access": "DENIED", "priority": 1});
    assert_eq!(rule(denied).status, 201);
    let refused = as_who(&platform, &robot, "POST", "/f/echo", None);
    assert_eq!(refused.problem(403), "forbidden");
    assert!(refused.text().contains("by the rule shut"), "{}", refused.text());
    let lockout = json!({"id": "out", "scope": "*", "resource": {"type": "*", "name": "*", "endpoint": "*"}, "access": "DENIED", "priority": 9});
    assert_eq!(rule(lockout.clone()).problem(409), "locked_out");
    assert_eq!(platform.send("DELETE", "/rule/default", &[], b"").problem(409), "locked_out");
    assert_eq!(platform.post("/rule?force=true", &lockout).status, 201);
    assert_eq!(platform.get("/rules").problem(403), "forbidden");
}

#[test]
fn rules_are_refused_that_are_none() {
    let platform = locked();
    let valid = json!({"id": "a", "scope": "", "resource": {"type": "function", "name": "x", "endpoint": "*"}, "access": "GRANTED", "priority": 1});
    let with = |pointer: &str, value: Value| {
        let mut rule = valid.clone();
        *rule.pointer_mut(pointer).expect("a field") = value;
        let reply = platform.post("/rule", &rule);
        reply.problem(400)
    };
    assert_eq!(with("/scope", json!("a b")), "invalid_scope");
    assert_eq!(with("/resource/name", json!("a*")), "invalid_rule");
    assert_eq!(with("/resource/endpoint", json!("/*/x")), "invalid_rule");
    assert_eq!(with("/id", json!("")), "invalid_name");
    assert_eq!(with("/access", json!("granted")), "malformed_json");
    assert_eq!(with("/priority", json!(1.5)), "malformed_json");
    assert_eq!(
        platform.send("POST", "/rule?force=maybe", &[("Content-Type", "application/json")], b"{}").problem(400),
        "invalid_query"
    );
    assert_eq!(platform.send("DELETE", "/rule/nothing", &[], b"").problem(404), "unknown_rule");
}

/// Reads until the platform ends a reply.
fn until_its_end(platform: &Platform, credential: &str, path: &str, begins_with: &str) -> std::thread::JoinHandle<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", platform.port)).expect("the platform listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\nAuthorization: Bearer {credential}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("a request");
    let mut begun = String::new();
    while !begun.contains(begins_with) {
        let mut bytes = [0; 1024];
        let length = stream.read(&mut bytes).expect("an answer");
        assert_ne!(length, 0, "{begun}");
        begun.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        // The last chunk of a body, or the end of the connection.
        while !matches!(stream.read(&mut bytes), Ok(0) | Err(_)) {
            if bytes.windows(5).any(|window| window == b"0\r\n\r\n") {
                return;
            }
        }
    })
}

#[test]
fn what_lasts_ends_with_the_credential_that_began_it() {
    let platform = locked();
    with_echo(&platform);
    let server = "import http.server, time\nclass H(http.server.BaseHTTPRequestHandler):\n    protocol_version = 'HTTP/1.1'\n    def do_GET(self):\n        \
        self.send_response(200)\n        self.send_header('Content-Type', 'text/plain')\n        self.send_header('Connection', 'close')\n        self.end_headers()\n        \
        while True:\n            self.wfile.write(b'tick\\n')\n            self.wfile.flush()\n            time.sleep(0.1)\n\
        import os\nhttp.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";
    let runtime = json!({"name": "py", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 server.py", "engine": "sandbox"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let archive = zip(&[("server.py", server.as_bytes()), ("faena.toml", b"contract = \"http\"\n")]);
    assert_eq!(platform.upload("py", "ticks", &archive).status, 201);
    assert_eq!(platform.built("ticks")["status"], "READY");
    let (key, id) = key(&platform, &root(&platform), "short", &["invoke", "read"]);
    let lasting = [
        until_its_end(&platform, &key, "/function/echo/logs", "200 OK"),
        until_its_end(&platform, &key, "/f/ticks", "tick"),
    ];
    assert!(lasting.iter().all(|reading| !reading.is_finished()));
    assert_eq!(platform.send("DELETE", &format!("/key/{id}"), &[], b"").status, 204);
    for reading in lasting {
        eventually(SOON, "a stream ends", || if reading.is_finished() { Ok(()) } else { Err(()) });
    }
}

#[test]
fn an_api_apart_learns_of_a_revocation() {
    let mut platform = Platform::start_apart();
    platform.lock();
    let (key, id) = key(&platform, &root(&platform), "k", &["read"]);
    assert_eq!(as_who(&platform, &key, "GET", "/functions", None).status, 200);
    // While db is away nothing is known for sure after two seconds.
    platform.kill(Role::Db);
    eventually(SOON, "the word of db is too old", || match as_who(&platform, &key, "GET", "/whoami", None).status {
        503 => Ok(()),
        status => Err(status),
    });
    platform.start_role(Role::Db);
    platform.ready();
    eventually(SOON, "db is back", || match as_who(&platform, &key, "GET", "/functions", None).status {
        200 => Ok(()),
        status => Err(status),
    });
    assert_eq!(platform.send("DELETE", &format!("/key/{id}"), &[], b"").status, 204);
    assert_eq!(as_who(&platform, &key, "GET", "/functions", None).problem(401), "unauthenticated");
}

#[test]
fn the_audit_tells_changes_one_by_one_and_counts_refusals() {
    let platform = locked();
    with_echo(&platform);
    let ann = account(&platform, "default", "ann", &["read"]);
    for _ in 0..3 {
        assert_eq!(as_who(&platform, &ann, "POST", "/registerRuntime", None).problem(403), "forbidden");
    }
    assert_eq!(platform.get("/function/nothing").status, 404);
    let lines = platform.get("/audit").json();
    let lines = lines.as_array().expect("lines");
    let found = |action: &str, account: &str, outcome: i64| {
        let is_it =
            |line: &&Value| line["action"] == action && line["account"] == account && line["outcome"] == outcome;
        lines.iter().filter(is_it).map(|line| line["count"].as_i64().expect("a count")).sum::<i64>()
    };
    assert_eq!(found("POST /registerRuntime", "ann", 403), 3);
    assert_eq!(found("POST /registerRuntime", "root", 201), 1);
    assert_eq!(found("POST /account", "root", 201), 1);
    assert_eq!(found("POST /token", "ann", 201), 1, "{lines:?}");
    assert!(lines.iter().all(|line| line["outcome"] != 404), "what is not there is no refusal");
    let account =
        lines.iter().find(|line| line["target"] == "ann" && line["action"] == "POST /account").expect("a line");
    assert_eq!((&account["address"], &account["namespace"]), (&json!("127.0.0.1"), &json!("default")));
    let newest = platform.get("/audit?limit=1");
    assert_eq!(newest.json().as_array().map(Vec::len), Some(1));
    let next = newest.header("link").expect("a next page");
    let next = next.trim_start_matches('<').split('>').next().expect("a path").to_owned();
    assert!(platform.get(&next).json()[0]["number"].as_i64() < newest.json()[0]["number"].as_i64());
    let ndjson = platform.send("GET", "/audit?account=ann", &[("Accept", "application/x-ndjson")], b"").text();
    assert!(
        ndjson.lines().all(|line| serde_json::from_str::<Value>(line).expect("JSON")["account"] == "ann"),
        "{ndjson}"
    );
    assert_eq!(platform.get("/audit?acount=x").problem(400), "invalid_query");
    // No secret, no credential.
    let everything = platform.get("/audit").text() + &platform.logged();
    assert!(!everything.contains(SECRET) && !everything.contains(&ann) && !everything.contains(&root(&platform)));
    let database = std::fs::read(platform.data().join("faena.db-wal")).unwrap_or_default();
    let secret_of_token = ann.rsplit('_').next().expect("a secret").as_bytes();
    for secret in [SECRET.as_bytes(), secret_of_token] {
        assert!(!database.windows(secret.len()).any(|window| window == secret), "a secret is in the database");
    }
}

#[test]
fn who_may_only_invoke_sees_and_cancels_the_calls_that_it_made() {
    let platform = locked();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    platform.script("slow", "sleep 60");
    assert_eq!(platform.built("slow")["status"], "READY");
    let (mine, _) = key(&platform, &account(&platform, "default", "ann", &["invoke"]), "a", &["invoke"]);
    let (theirs, _) = key(&platform, &account(&platform, "default", "bob", &["invoke"]), "b", &["invoke"]);
    let invoked = as_who(&platform, &mine, "POST", "/invokeFunction", Some(&json!({"funcName": "slow", "params": {}})));
    assert_eq!(invoked.status, 202, "{}", invoked.text());
    let path = format!("/call/{}", invoked.json()["callNum"]);
    assert_eq!(as_who(&platform, &mine, "GET", &path, None).status, 200);
    assert_eq!(as_who(&platform, &mine, "GET", &format!("{path}/logs"), None).status, 200);
    for (method, path) in [
        ("GET", path.clone()),
        ("GET", format!("{path}/logs")),
        ("DELETE", path.clone()),
        ("POST", format!("{path}/replay")),
    ] {
        assert_eq!(as_who(&platform, &theirs, method, &path, None).problem(404), "unknown_call", "{method} {path}");
    }
    assert_eq!(as_who(&platform, &mine, "GET", "/calls", None).problem(403), "forbidden");
    assert_eq!(as_who(&platform, &mine, "DELETE", &path, None).status, 200);
    // A call that needs no row keeps its maker too.
    let (reader, _) = key(&platform, &root(&platform), "reads", &["read"]);
    assert_eq!(as_who(&platform, &reader, "GET", &path, None).status, 200);
    assert_eq!(as_who(&platform, &reader, "DELETE", &path, None).problem(403), "forbidden");
}
