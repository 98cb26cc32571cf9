//! Configuration and secrets of a namespace.

use faena_test_support::{Engine, Platform, Reply, Role, eventually, zip};
use serde_json::{Value, json};

use super::{SOON, locked};

/// Puts a value of the configuration.
pub(crate) fn put(platform: &Platform, path: &str, value: &Value) -> Reply {
    platform.send(
        "PUT",
        &format!("/config/{path}"),
        &[("Content-Type", "application/json")],
        value.to_string().as_bytes(),
    )
}

/// The names of all files below a folder that hold some bytes.
fn holding(folder: &std::path::Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(holding(&path, bytes));
        } else if std::fs::read(&path).is_ok_and(|content| content.windows(bytes.len()).any(|window| window == bytes)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn configuration_is_a_tree_whose_objects_are_merged() {
    let platform = locked();
    assert_eq!(put(&platform, "db", &json!({"host": "one", "pool": {"size": 5}})).status, 201);
    assert_eq!(put(&platform, "db.pool", &json!({"idle": 1})).status, 204);
    assert_eq!(platform.get("/config/db").json(), json!({"host": "one", "pool": {"size": 5, "idle": 1}}));
    assert_eq!(platform.get("/config/db.pool.size").json(), json!(5));
    // A scalar takes the place of an object, and the reverse.
    assert_eq!(put(&platform, "db.pool", &json!("none")).status, 204);
    assert_eq!(put(&platform, "db.host.name", &json!("two")).status, 201);
    assert_eq!(platform.get("/config").json(), json!({"db": {"host": {"name": "two"}, "pool": "none"}}));
    // Names that begin alike are others.
    assert_eq!(put(&platform, "db-two", &json!([1, 2])).status, 201);
    assert_eq!(platform.send("DELETE", "/config/db", &[], b"").status, 204);
    assert_eq!(platform.get("/config").json(), json!({"db-two": [1, 2]}));
    assert_eq!(platform.send("DELETE", "/config/db", &[], b"").problem(404), "unknown_config");
    // An object without members changes nothing where an object is.
    assert_eq!(put(&platform, "tree", &json!({"leaf": 1})).status, 201);
    assert_eq!(put(&platform, "tree", &json!({})).status, 204);
    assert_eq!(platform.get("/config/tree").json(), json!({"leaf": 1}));
    // A secret does not become a value in clear by mistake, and what it was in clear is forgotten.
    assert_eq!(put(&platform, "tree.leaf?secret=true", &json!("hidden")).status, 204);
    assert_eq!(put(&platform, "tree.leaf", &json!("clear")).problem(409), "conflict");
    assert_eq!(put(&platform, "tree", &json!({"other": "[secret]"})).problem(409), "conflict");
    assert!(!platform.get("/config/tree?history=true").text().contains("\"old\":1"));
    let history = platform.get("/config/db.pool?history=true").json();
    let told = |at: usize| (&history[at]["account"], &history[at]["old"]);
    assert_eq!(told(0), (&json!("root"), &json!("none")), "{history}");
    // What another value replaced is told too.
    assert_eq!(history.as_array().map(Vec::len), Some(6), "{history}");
    for (path, value, code) in [
        ("a..b", json!(1), "invalid_path"),
        (".a", json!(1), "invalid_path"),
        (&vec!["a"; 64].join("."), json!(1), "invalid_path"),
        ("a", json!({"b c": 1}), "invalid_path"),
        ("a", json!("x".repeat(70_000)), "too_large"),
    ] {
        let reply = put(&platform, path, &value);
        let status = reply.status;
        assert_eq!(reply.problem(status), code, "{path}");
    }
    let broken = platform.send("PUT", "/config/a", &[("Content-Type", "application/json")], b"{");
    assert_eq!(broken.problem(400), "malformed_json");
    assert_eq!(platform.get("/config/a?secrt=true").problem(400), "invalid_query");
}

#[test]
fn a_function_gets_what_it_asks_for_and_secrets_are_nowhere_else() {
    const CANARY: &str = "p4ssw0rd-canary";
    let mut platform = locked();
    platform.shell_runtime(Engine::Sandbox, &json!({}));
    let toml = "[env]\nPASSWORD = { config = \"db.password\" }\nHOST = { config = \"db.host\" }\nFIXED = \"yes\"\n";
    let script = "echo \"${#PASSWORD} $HOST $FIXED\"";
    let archive = zip(&[("run.sh", script.as_bytes()), ("faena.toml", toml.as_bytes())]);
    assert_eq!(platform.upload("shell", "reader", &archive).status, 201);
    assert_eq!(platform.built("reader")["status"], "READY", "a build needs nothing of it");
    let call = platform.call("reader", &json!({}));
    assert_eq!(call["error"]["kind"], "start", "{call}");
    assert!(call["error"]["message"].as_str().is_some_and(|message| message.contains("db.")), "{call}");
    assert_eq!(put(&platform, "db.host", &json!("one")).status, 201);
    assert_eq!(put(&platform, "db.password?secret=true", &json!(CANARY)).status, 201);
    assert_eq!(platform.get("/config").json(), json!({"db": {"host": "one", "password": "[secret]"}}));
    let result = |platform: &Platform| platform.call("reader", &json!({}))["result"].clone();
    let soon = |platform: &Platform, expected: &str| {
        eventually(SOON, expected, || {
            let found = result(platform);
            if found == expected { Ok(()) } else { Err(found) }
        });
    };
    soon(&platform, "15 one yes");
    // A change reaches the next call, also where instances wait.
    assert_eq!(put(&platform, "db.host", &json!("two")).status, 204);
    soon(&platform, "15 two yes");
    assert_eq!(put(&platform, "db.password?secret=true", &json!("a\0b")).status, 204);
    eventually(SOON, "a NUL is refused", || {
        let call = platform.call("reader", &json!({}));
        let message = call["error"]["message"].as_str().unwrap_or_default().to_owned();
        if call["error"]["kind"] == "start" && message.contains("NUL") { Ok(()) } else { Err(call) }
    });
    assert_eq!(put(&platform, "db.password?secret=true", &json!("a\nb")).status, 204);
    soon(&platform, "3 two yes");
    assert_eq!(put(&platform, "db.password?secret=true", &json!(CANARY)).status, 204);
    soon(&platform, "15 two yes");
    let rotated = platform.send("POST", "/secrets/rotate", &[], b"");
    assert_eq!((rotated.status, rotated.json()["secrets"].as_i64()), (200, Some(1)));
    assert!(platform.stop());
    platform.start_role(Role::Up);
    platform.ready();
    soon(&platform, "15 two yes");
    let seen: String = ["/function/reader", "/calls", "/audit", "/metrics", "/config/db", "/config/db?history=true"]
        .iter()
        .map(|path| platform.get(path).text())
        .collect();
    assert!(!seen.contains(CANARY) && !platform.logged().contains(CANARY));
    assert_eq!(holding(&platform.data(), CANARY.as_bytes()), Vec::<std::path::PathBuf>::new());
    // What signs callbacks is sealed too.
    assert_eq!(holding(&platform.data(), b"whsec_"), Vec::<std::path::PathBuf>::new());
    // Who may deploy binds what rules let them use.
    let rule = json!({"id": "kept", "scope": "*", "resource": {"type": "config", "name": "db.password", "endpoint": "*"}, "access": "DENIED", "priority": 5});
    assert_eq!(platform.post("/rule", &rule).status, 201);
    assert_eq!(platform.upload("shell", "reader", &archive).problem(403), "forbidden");
}

#[test]
fn files_hold_values_for_calls_and_variables_of_builds_are_for_builds() {
    let platform = locked();
    for engine in Engine::ALL {
        let runtime = json!({"name": "files", "dependencies": "echo \"${#TOKEN} ${#PASSWORD} $LEVEL\" > built.txt"});
        platform.shell_runtime(engine, &runtime);
        let name = format!("files-{}", engine.name());
        let toml = "[files]\n\"db.password\" = { config = \"files.password\" }\n[env]\nPASSWORD = { config = \"files.password\" }\n\
                    [build.env]\nTOKEN = { config = \"files.token\" }\nLEVEL = \"high\"\n";
        // The second line is what an earlier call has left there.
        let script = "cd /run/secrets && stat -c %a db.password && cat db.password && ls | wc -l && cat /ws/built.txt\n\
                      chmod 600 db.password && echo spoilt > db.password && echo junk > junk; echo \"${TOKEN-none}\"";
        let archive = zip(&[("run.sh", script.as_bytes()), ("faena.toml", toml.as_bytes())]);
        let upload = || {
            assert!(matches!(platform.upload("files", &name, &archive).status, 200 | 201));
            platform.built(&name)
        };
        let failed = upload();
        assert_eq!(failed["status"], "ERROR", "the build's value is not there: {failed}");
        assert!(failed.to_string().contains("files.token"), "{failed}");
        assert_eq!(put(&platform, "files.token?secret=true", &json!("12345")).status, 201);
        assert_eq!(upload()["status"], "READY");
        let message = platform.call(&name, &json!({}))["error"]["message"].to_string();
        assert!(message.contains("files.password"), "{message}");
        assert_eq!(put(&platform, "files.password?secret=true", &json!("pass\nword\0")).status, 201);
        eventually(SOON, "no variable can have the value", || {
            let message = platform.call(&name, &json!({}))["error"]["message"].to_string();
            if message.contains("NUL") { Ok(()) } else { Err(message) }
        });
        assert_eq!(put(&platform, "files.password?secret=true", &json!("pass\nword")).status, 204);
        let expected = json!("400\npass\nword1\n5 0 high\nnone");
        eventually(SOON, "the file has the value", || {
            let result = platform.call(&name, &json!({}))["result"].clone();
            if result == expected { Ok(()) } else { Err(result) }
        });
        for _ in 0..3 {
            assert_eq!(platform.call(&name, &json!({}))["result"], expected, "what a call has left is gone");
        }
        for path in ["files.token", "files.password"] {
            assert_eq!(platform.send("DELETE", &format!("/config/{path}"), &[], b"").status, 204);
        }
    }
    // A process that answers many calls, which is a clone of one that was started before, has them too.
    let python = json!({"name": "python", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "python3 a.py", "engine": "sandbox"});
    assert_eq!(platform.post("/registerRuntime", &python).status, 201);
    let toml =
        "contract = \"handler\"\nhandler = \"a.py:read\"\nreuse = \"fork\"\n[files]\ntoken = { config = \"token\" }\n";
    let code = "import os\ndef read(event):\n    with open('/run/secrets/token') as file: text = file.read()\n    os.remove('/run/secrets/token')\n    return text\n";
    let archive = zip(&[("a.py", code.as_bytes()), ("faena.toml", toml.as_bytes())]);
    assert_eq!(put(&platform, "token", &json!("one")).status, 201);
    assert_eq!(platform.upload("python", "reads", &archive).status, 201);
    assert_eq!(platform.built("reads")["status"], "READY");
    for _ in 0..3 {
        assert_eq!(platform.send("POST", "/f/reads", &[("Content-Type", "application/json")], b"{}").text(), "one");
    }
    // A build's values are judged like those of calls.
    let rule = json!({"id": "kept", "scope": "*", "resource": {"type": "config", "name": "kept", "endpoint": "*"}, "access": "DENIED", "priority": 5});
    assert_eq!(platform.post("/rule", &rule).status, 201);
    for toml in ["[files]\na = { config = \"kept\" }", "[build.env]\nA = { config = \"kept\" }"] {
        let archive = zip(&[("run.sh", b"true"), ("faena.toml", toml.as_bytes())]);
        assert_eq!(platform.upload("files", "kept", &archive).problem(403), "forbidden", "{toml}");
    }
}
