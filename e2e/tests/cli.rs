//! The command line: settings, and what it refuses.

use std::process::{Command, Output};

use faena_test_support::{Platform, binary};

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(binary()).args(arguments).envs(variables.iter().copied()).output().expect("the binary is built")
}

fn refused(arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let output = run(arguments, variables);
    assert!(!output.status.success(), "{arguments:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flags_win_over_variables_and_variables_over_the_file() {
    let folder = std::env::temp_dir().join(format!("faena-cli-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("faena.toml");
    std::fs::write(&file, "slots = 5\nname = \"file\"\ngrace = \"1s\"\n").expect("a file");
    let file = file.display().to_string();
    let output = run(
        &["up", "--config", &file, "--name", "flag", "--print-config"],
        &[("FAENA_SLOTS", "7"), ("FAENA_NAME", "variable")],
    );
    std::fs::remove_dir_all(folder).expect("our folder");
    let text = String::from_utf8_lossy(&output.stdout);
    let from_file = format!("grace = \"1s\" # file {file}");
    let expected = [
        "slots = 7 # variable FAENA_SLOTS",
        "name = \"flag\" # flag --name",
        &from_file,
        "listen = \"127.0.0.1:3000\" # default",
        "# egress_proxy is not set",
    ];
    for line in expected {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[test]
fn what_is_misspelt_is_refused_with_its_neighbour() {
    assert!(refused(&["up", "--lisetn", "x"], &[]).contains("--listen"));
    assert!(refused(&["up"], &[("FAENA_LISTNE", "x")]).contains("FAENA_LISTEN"));
    assert!(refused(&["up", "--accept-missing", "landlok", "--print-config"], &[]).contains("landlock"));
    assert!(refused(&["up", "--config", "/nowhere.toml"], &[]).contains("/nowhere.toml"));
    assert!(refused(&["up", "--listen", "3325"], &[]).contains("--listen takes ADDRESS:PORT"));
}

#[test]
fn a_folder_that_is_not_ours_is_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt;
    let folder = std::env::temp_dir().join(format!("faena-theirs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("ours");
    std::fs::write(folder.join("thesis.txt"), "x").expect("a file");
    let said = refused(&["up", "--listen", "127.0.0.1:0", "--data", &folder.display().to_string()], &[]);
    let mode = std::fs::metadata(&folder).expect("it is there").permissions().mode() & 0o777;
    let left = std::fs::read_dir(&folder).expect("a folder").count();
    std::fs::remove_dir_all(&folder).expect("our folder");
    assert!(said.contains("no data folder of Faena"), "{said}");
    assert_eq!((mode, left), (0o755, 1));
}

#[test]
fn no_address_beyond_this_machine_is_listened_on() {
    let folder = std::env::temp_dir().join(format!("faena-far-{}", std::process::id()));
    let said = refused(&["up", "--listen", "0.0.0.0:0", "--data", &folder.display().to_string()], &[]);
    std::fs::remove_dir_all(folder).expect("our folder");
    assert!(said.contains("loopback"), "{said}");
}

#[test]
fn doctor_tells_what_works_and_what_does_not() {
    let platform = Platform::start();
    let doctor = |settings: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("doctor").arg("--data").arg(platform.data());
        command.env("FAENA_API", format!("http://127.0.0.1:{}", platform.port)).env_remove("FAENA_CREDENTIAL");
        for setting in settings {
            let (name, value) = setting.split_once('=').expect("a setting");
            command.env(name, value);
        }
        let output = command.output().expect("the binary is built");
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (works, said) = doctor(&[]);
    assert!(works, "{said}");
    for line in ["ok    version", "ok    data", "ok    sandbox", "ok    platform", "ok    clock", "ok    nodes"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let (works, said) = doctor(&["FAENA_DISK_RESERVE=1000000 GB"]);
    assert!(!works && said.contains("FAIL  data"), "{said}");
    let (works, said) = doctor(&["FAENA_SANDBOX=false", "FAENA_DOCKER=off"]);
    assert!(!works && said.contains("FAIL  engines"), "{said}");
    let (works, said) = doctor(&["FAENA_API=http://127.0.0.1:9"]);
    assert!(works && said.contains("warn  platform"), "{said}");
}
