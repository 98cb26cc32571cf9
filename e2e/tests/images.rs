//! Images that the platform keeps: one upload, and every node and either engine runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use faena_test_support::{Engine, Platform, Reply, binary, eventually, zip};
use serde_json::{Value, json};

fn done(command: &mut Command) -> Output {
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn docker(arguments: &[&str]) -> String {
    let output = done(Command::new("docker").args(arguments));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// An image with a second layer and a variable, as `docker save` writes it; Docker itself does not keep it.
fn saved(folder: &Path, word: &str) -> PathBuf {
    let (name, archive) = (format!("faena-e2e-image-{}-{word}", std::process::id()), folder.join(word));
    let container = docker(&["create", "bashruntime", "x"]);
    let file = folder.join("word");
    std::fs::write(&file, word).expect("a folder of ours");
    docker(&["cp", &file.display().to_string(), &format!("{container}:/opt/word")]);
    let variable = format!("ENV WORD={word} LD_PRELOAD=/evil");
    docker(&["commit", "--change", &variable, &container, &name]);
    docker(&["rm", &container]);
    docker(&["save", "--output", &archive.display().to_string(), &name]);
    docker(&["rmi", &name]);
    archive
}

fn put(platform: &Platform, name: &str, archive: &Path) -> Reply {
    platform.send("PUT", &format!("/image/{name}"), &[], &std::fs::read(archive).expect("it was written"))
}

/// Makes a function of a script, and waits until it is built.
fn function(platform: &Platform, runtime: &str, name: &str, script: &str) -> Value {
    let reply = platform.upload(runtime, name, &zip(&[("run.sh", script.as_bytes())]));
    assert_eq!(reply.status, 201, "{}", reply.text());
    platform.built(name)
}

#[test]
fn an_image_runs_in_both_engines_and_outlives_its_name() {
    let platform = Platform::start();
    let archive = saved(&platform.data(), "hola");
    let reply = put(&platform, "own%2Fbash:1", &archive);
    let image = reply.json();
    assert_eq!(reply.status, 201, "{image}");
    assert_eq!((&image["name"], &image["format"]), (&json!("own/bash:1"), &json!("docker-archive")));
    for (engine, name) in [(Engine::Sandbox, "in-sandbox"), (Engine::Docker, "in-docker")] {
        platform.shell_runtime(engine, &json!({"name": name, "image": "own/bash:1"}));
        let script = "cat; cat /opt/word; echo -n \" $WORD$LD_PRELOAD \"; touch /etc/x 2>/dev/null || echo sealed";
        function(&platform, name, &format!("looks-{name}"), script);
        let call = platform.call(&format!("looks-{name}"), &json!(7));
        assert_eq!(call["result"], "7hola hola sealed", "{call}");
    }
    // Another image takes the name. Versions that were built before keep theirs.
    let other = put(&platform, "own%2Fbash:1", &saved(&platform.data(), "adios"));
    assert_eq!(other.status, 200, "{}", other.text());
    assert_ne!(other.json()["digest"], image["digest"]);
    function(&platform, "in-sandbox", "looks-again", "cat /opt/word");
    assert_eq!(platform.call("looks-again", &json!(7))["result"], "adios");
    assert_eq!(platform.send("DELETE", "/image/own%2Fbash:1", &[], b"").status, 204);
    assert_eq!(platform.get("/images").json(), json!([]));
    assert_eq!(platform.call("looks-in-sandbox", &json!(7))["result"], "7hola hola sealed");
    let build = function(&platform, "in-sandbox", "too-late", "true");
    assert_eq!(build["status"], "ERROR", "{build}");
    assert!(build["error"]["message"].as_str().is_some_and(|text| text.contains("own/bash:1")), "{build}");
}

#[test]
fn the_command_line_puts_lists_and_removes_images() {
    let platform = Platform::start();
    let archive = platform.data().join("root.tar");
    let container = docker(&["create", "bashruntime", "x"]);
    docker(&["export", "--output", &archive.display().to_string(), &container]);
    docker(&["rm", &container]);
    let image = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("image").args(words).args(["--api", &format!("http://127.0.0.1:{}", platform.port)]);
        String::from_utf8_lossy(&done(&mut command).stdout).into_owned()
    };
    assert!(image(&["put", "plain", &archive.display().to_string()]).contains("format: root-file-system"));
    assert!(image(&["ls"]).contains("name: plain:latest"));
    platform.shell_runtime(Engine::Sandbox, &json!({"name": "plain", "image": "plain"}));
    function(&platform, "plain", "says", "cat /etc/debian_version > /dev/null && echo here");
    assert_eq!(platform.call("says", &json!(7))["result"], "here");
    eventually(Duration::from_secs(60), "the node tells its images", || {
        let nodes = platform.get("/nodes").json();
        if nodes[0]["images"] == json!(["plain:latest"]) { Ok(()) } else { Err(nodes) }
    });
    image(&["rm", "plain"]);
    assert_eq!(image(&["ls"]), "");
}

#[test]
fn what_is_no_image_is_refused_and_nothing_is_kept() {
    let platform = Platform::start();
    let send = |name: &str, body: &[u8]| {
        let reply = platform.send("PUT", &format!("/image/{name}"), &[], body);
        (reply.status, reply.problem(reply.status))
    };
    assert_eq!(send("a", b""), (400, "empty_archive".to_owned()));
    assert_eq!(send("a", b"this is text"), (415, "no_archive".to_owned()));
    assert_eq!(send("A", b"x"), (400, "invalid_image".to_owned()));
    let digest = format!("a@sha256:{}", "0".repeat(64));
    assert_eq!(send(&digest, b"x"), (400, "invalid_image".to_owned()));
    assert_eq!(platform.get("/image/nothing").problem(404), "unknown_image");
    assert_eq!(platform.get("/images").json(), json!([]));
}
