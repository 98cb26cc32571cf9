//! What functions have done can be read: per function and call path in the metrics, and the last hour of each.

use std::time::Duration;

use faena_test_support::{Platform, eventually, zip};
use serde_json::json;

#[test]
fn calls_of_every_path_are_counted() {
    let mut platform = Platform::start();
    let runtime = json!({"name": "py", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "-"});
    assert_eq!(platform.post("/registerRuntime", &runtime).status, 201);
    let code = b"def handle(params, context):\n    return 1 // params['by']\n";
    let archive = zip(&[("handler.py", &code[..]), ("faena.toml", b"contract = \"handler\"\n")]);
    assert_eq!(platform.upload("py", "Divide", &archive).status, 201);
    platform.built("divide");
    assert_eq!(
        platform.get("/function/divide").json()["lastHour"],
        json!({"calls": 0, "errors": 0, "p50Ms": null, "p99Ms": null, "coldShare": null})
    );

    assert_eq!(platform.post("/f/divide", &json!({"by": 1})).status, 200);
    assert_eq!(platform.post("/f/divide", &json!({"by": 0})).status, 502);
    let wait = [("Content-Type", "application/json"), ("Prefer", "wait=20")];
    let sync = json!({"funcName": "divide", "params": {"by": 1}});
    assert_eq!(platform.send("POST", "/invokeFunction", &wait, sync.to_string().as_bytes()).status, 200);
    assert_eq!(platform.call("divide", &json!({"by": 0}))["status"], "FAILED");

    let line = |what: &str, path: &str, count: u32| {
        format!(r#"faena_function_{what}_total{{namespace="default",function="Divide",path="{path}"}} {count}"#)
    };
    eventually(Duration::from_secs(10), "all calls are counted", || {
        let metrics = platform.get("/metrics").text();
        let expected = [
            line("calls", "direct", 2),
            line("errors", "direct", 1),
            line("calls", "sync", 1),
            line("calls", "queued", 1),
            line("errors", "queued", 1),
        ];
        let missing: Vec<String> =
            expected.into_iter().filter(|line| !metrics.lines().any(|told| told == line)).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing) }
    });
    let hour = platform.get("/function/divide").json()["lastHour"].clone();
    assert_eq!((&hour["calls"], &hour["errors"]), (&json!(4), &json!(2)), "{hour}");
    assert!(hour["p50Ms"].as_f64() <= hour["p99Ms"].as_f64() && hour["coldShare"].as_f64() > Some(0.0), "{hour}");
    assert!(platform.stop());
}
