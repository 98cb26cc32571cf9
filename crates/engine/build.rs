//! Builds the agent and the zygote's library, with their own profile and targets, so that every build of the engine holds
//! those of its tree.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Preferred: static without further ado. The other one is larger, and there wherever Rust is.
const TARGETS: [(&str, &str); 2] =
    [("-unknown-linux-musl", ""), ("-unknown-linux-gnu", "-Ctarget-feature=+crt-static")];
/// What an interpreter of this host is linked with.
const SHARED: &str = "-unknown-linux-gnu";

struct Builder {
    root: PathBuf,
    out: PathBuf,
    arch: String,
}

impl Builder {
    /// Builds a package; the folder of what was made, where it could be.
    fn build(&self, package: &str, suffix: &str, flags: &str) -> Option<PathBuf> {
        let target = format!("{}{suffix}", self.arch);
        let status = Command::new(env::var_os("CARGO").expect("cargo sets it"))
            .args(["build", "--quiet", "--package", package, "--profile", "agent", "--target", &target, "--target-dir"])
            .arg(self.out.join("target"))
            .current_dir(&self.root)
            .env("RUSTFLAGS", flags)
            // What a lint run or the outer build set up is not meant for this one.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CARGO_BUILD_TARGET")
            .status();
        if status.is_ok_and(|status| status.success()) {
            return Some(self.out.join("target").join(&target).join("agent"));
        }
        println!("cargo::warning={package} does not build for {target}; `rustup target add {target}` may help");
        None
    }

    fn keep(&self, made: &Path, name: &str) {
        std::fs::copy(made, self.out.join(name)).expect("it was built just now");
    }
}

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("../..");
    for path in [
        "miniworker/agent",
        "crates/confine",
        "crates/instance-protocol",
        "crates/launcher",
        "Cargo.toml",
        "Cargo.lock",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let builder = Builder { root, out, arch: env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it") };
    let agent = TARGETS.iter().find_map(|(suffix, flags)| builder.build("faena-agent", suffix, flags));
    builder.keep(&agent.expect("the agent does not build for any target").join("faena-agent"), "faena-agent");
    match builder.build("faena-zygote", SHARED, "") {
        Some(made) => builder.keep(&made.join("libfaena_zygote.so"), "zygote.so"),
        // Without it each instance starts an interpreter of its own.
        None => std::fs::write(builder.out.join("zygote.so"), []).expect("cargo made the folder"),
    }
}
