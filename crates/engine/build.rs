//! Builds the agent, with its own profile and target, so that every build of the engine holds the agent of its tree.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// Preferred: static without further ado. The other one is larger, and there wherever Rust is.
const TARGETS: [(&str, &str); 2] =
    [("-unknown-linux-musl", ""), ("-unknown-linux-gnu", "-Ctarget-feature=+crt-static")];

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    for path in ["miniworker/agent", "crates/instance-protocol", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    for (suffix, flags) in TARGETS {
        let target = format!("{arch}{suffix}");
        let built = Command::new(env::var_os("CARGO").expect("cargo sets it"))
            .args([
                "build",
                "--quiet",
                "--package",
                "faena-agent",
                "--profile",
                "agent",
                "--target",
                &target,
                "--target-dir",
            ])
            .arg(out.join("target"))
            .current_dir(&root)
            .env("RUSTFLAGS", flags)
            // What a lint run or the outer build set up is not meant for this one.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CARGO_BUILD_TARGET")
            .status();
        if built.is_ok_and(|status| status.success()) {
            let agent = out.join("target").join(&target).join("agent/faena-agent");
            std::fs::copy(&agent, out.join("faena-agent")).expect("the agent was built just now");
            return;
        }
        println!("cargo::warning=the agent does not build for {target}; `rustup target add {target}` may help");
    }
    panic!("the agent does not build for any target");
}
