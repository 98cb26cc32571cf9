//! Root file systems that an operator imports for the sandbox.

use std::path::Path;
use std::process::{Command, Output};

use faena_test_support::{Engine, Platform, binary};
use serde_json::json;

fn done(command: &mut Command) -> Output {
    let output = command.output().expect("the program is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

fn docker(arguments: &[&str]) -> String {
    let output = done(Command::new("docker").args(arguments));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The root file system of an image that Docker has, as a tar.
fn export(image: &str, to: &Path) {
    let container = docker(&["create", image, "x"]);
    docker(&["export", "--output", &to.display().to_string(), &container]);
    docker(&["rm", &container]);
}

#[test]
fn an_imported_image_runs_functions_while_the_platform_goes_on() {
    let platform = Platform::start();
    let archive = platform.data().join("bash.tar");
    export("bashruntime", &archive);
    let image = |words: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("image").args(words).arg("--data").arg(platform.data());
        String::from_utf8_lossy(&done(&mut command).stdout).into_owned()
    };
    image(&["import", "own/bash:1", &archive.display().to_string()]);
    assert!(image(&["list"]).starts_with("own/bash:1 "));
    platform.shell_runtime(Engine::Sandbox, &json!({"image": "own/bash:1", "path": "/opt/here"}));
    platform.script("looks", "cat; ls -d /etc/debian_version; touch /etc/x /usr/x /var/x 2>/dev/null || echo sealed");
    let call = platform.call("looks", &json!(7));
    assert_eq!(call["result"], "7/etc/debian_version\nsealed", "{call}");
}

#[test]
fn what_is_no_archive_is_not_imported() {
    let platform = Platform::stopped();
    let mut command = Command::new(binary());
    command.args(["image", "import", "own:1", "/etc/hostname", "--data"]).arg(platform.data());
    let output = command.output().expect("the binary is built");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("no archive"), "{said}");
}
