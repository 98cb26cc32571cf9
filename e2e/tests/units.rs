//! The units for systemd are ones that systemd takes.

use std::path::Path;
use std::process::Command;

use faena_test_support::binary;

fn analyzed(arguments: &[&str]) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).output().expect("systemd-analyze");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn units_are_valid_and_give_up_what_the_worker_does_not_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd");
    for name in ["faena.service", "faena-node.service"] {
        let unit = std::fs::read_to_string(units.join(name)).expect("a unit");
        let installed = unit.replace("/usr/local/bin/faena", &binary().display().to_string());
        assert_ne!(installed, unit, "it starts the binary");
        let path = folder.path().join(name);
        std::fs::write(&path, installed).expect("a file");
        let path = path.display().to_string();
        let (is_valid, said) = analyzed(&["verify", &path]);
        assert!(is_valid && said.trim().is_empty(), "{name}: {said}");
        // A worker makes namespaces, mounts and devices, so it cannot be confined as an ordinary service is.
        let (is_confined, said) = analyzed(&["security", "--offline=true", "--threshold=70", &path]);
        assert!(is_confined, "{name}: {said}");
    }
}
