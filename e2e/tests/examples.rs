//! Every example, on every engine, as its README says.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use faena_test_support::{Engine, Platform, tar_gz};
use serde_json::Value;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name)
}

/// The files of an example, without what only describes it.
fn archive(name: &str) -> Vec<u8> {
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(folder(name))
        .expect("the example")
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), std::fs::read(entry.path()).expect("a file")))
        .filter(|(name, _)| name != "README.md" && name != "example.json")
        .collect();
    files.sort();
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    tar_gz(&borrowed)
}

fn check(name: &str, result: &str, expect: &Value) {
    if let Some(text) = expect["text"].as_str() {
        assert_eq!(result, text, "{name}");
    } else if let Some(count) = expect["numbers"].as_u64() {
        let numbers: Vec<i64> = serde_json::from_str(result).expect("numbers");
        let range = expect["from"].as_i64().expect("from")..=expect["to"].as_i64().expect("to");
        assert!(
            numbers.len() as u64 == count && numbers.iter().all(|number| range.contains(number)),
            "{name}: {result}"
        );
    } else {
        let png = base64::engine::general_purpose::STANDARD.decode(result).expect("base64");
        let size = |at: usize| u32::from_be_bytes([png[at], png[at + 1], png[at + 2], png[at + 3]]);
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{name}");
        assert_eq!(serde_json::json!([size(16), size(20)]), expect["png"], "{name}");
    }
}

fn run(name: &str, engine: Engine) {
    let mut platform = Platform::start();
    let text = std::fs::read_to_string(folder(name).join("example.json")).expect("the example");
    let example: Value = serde_json::from_str(&text).expect("JSON");
    let mut runtime = example["runtime"].clone();
    runtime["engine"] = engine.name().into();
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let runtime = runtime["name"].as_str().or(runtime["image"].as_str()).expect("a name");
    let reply = platform.upload(runtime, name, &archive(name));
    assert_eq!(reply.status, 201, "{}", reply.text());
    let built = platform.built(name);
    assert_eq!(built["status"], "READY", "{built}");
    let call = platform.call(name, &example["params"]);
    assert_eq!((call["status"].as_str(), call["engine"].as_str()), (Some("DONE"), Some(engine.name())), "{call}");
    check(name, call["result"].as_str().expect("a text"), &example["expect"]);
    assert!(platform.stop());
}

macro_rules! examples {
    ($($test:ident: $name:literal on $engine:ident;)*) => {$(
        #[test]
        fn $test() {
            run($name, Engine::$engine);
        }
    )*};
}
examples! {
    dice_in_the_sandbox: "dice" on Sandbox;
    dice_in_docker: "dice" on Docker;
    greeter_in_the_sandbox: "greeter" on Sandbox;
    greeter_in_docker: "greeter" on Docker;
    hello_in_the_sandbox: "hello" on Sandbox;
    hello_in_docker: "hello" on Docker;
    wordcount_in_the_sandbox: "wordcount" on Sandbox;
    wordcount_in_docker: "wordcount" on Docker;
    resize_in_the_sandbox: "resize" on Sandbox;
    resize_in_docker: "resize" on Docker;
}
