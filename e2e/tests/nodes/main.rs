//! Nodes on machines of their own, whose links fail in every way that links do.

mod hosts;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use faena_test_support::{Engine, Role, eventually, zip};
use hosts::{Clock, Cluster, Host, LONG, slow_link, workers};
use serde_json::{Value, json};

/// A call that takes as many seconds as its params say, and tells which attempt it was.
fn sleeper(cluster: &Cluster) {
    cluster.platform.shell_runtime(Engine::Sandbox, &json!({"limits": {"timeout": "5m"}}));
    cluster.platform.script("sleeps", "sleep $(cat); echo attempt $FAENA_ATTEMPT");
    cluster.platform.built("sleeps");
}

/// A function that answers many calls, on whichever node.
fn handler(cluster: &Cluster, name: &str, code: &str) {
    let runtime = json!({"name": "py", "image": "pythonruntime", "path": "/ws", "dependencies": "", "run": "true", "engine": "sandbox"});
    assert!(matches!(cluster.platform.post("/registerRuntime", &runtime).status, 200 | 201));
    let archive = zip(&[("faena.toml", b"contract = \"handler\"\n"), ("handler.py", code.as_bytes())]);
    assert!(matches!(cluster.platform.upload("py", name, &archive).status, 200 | 201));
    assert_eq!(cluster.platform.built(name)["status"], "READY");
}

fn ended(cluster: &Cluster, calls: Vec<i64>) -> Vec<Value> {
    calls.into_iter().map(|num| cluster.platform.ended(num)).collect()
}

fn sleeps(cluster: &Cluster, seconds: u64) -> i64 {
    cluster.platform.invoke(&json!({"funcName": "sleeps", "params": seconds, "retries": 0}))
}

/// The call was lost on one node, and ended on another with a result of its own.
fn moved(call: &Value, from: &str) {
    assert_eq!((call["status"].as_str(), call["result"].as_str()), (Some("DONE"), Some("attempt 2")), "{call}");
    let workers = workers(call);
    assert!(workers.len() == 2 && workers[0] == from && workers[1] != from, "{call}");
    assert_eq!(call["attempts"][0]["error"]["kind"], "infrastructure", "{call}");
}

#[test]
fn three_machines_run_what_one_platform_accepts() {
    let cluster = Cluster::start();
    let mut hosts = ["a", "b", "c"].map(Host::new);
    hosts.iter_mut().for_each(|host| host.join(&cluster, None));
    sleeper(&cluster);
    let calls = (0..24).map(|_| sleeps(&cluster, 1)).collect();
    let ended = ended(&cluster, calls);
    assert!(ended.iter().all(|call| call["status"] == "DONE"), "{ended:?}");
    let ran: BTreeSet<String> = ended.iter().flat_map(workers).collect();
    assert_eq!(ran, ["a", "b", "c"].map(str::to_owned).into(), "the platform's own worker is cordoned");

    // Direct calls, large bodies both ways, and what a node says of itself.
    handler(&cluster, "echo", "def handle(params, context):\n    return context.body\n");
    let body = vec![b'x'; 3_000_000];
    let reply = cluster.platform.send("POST", "/f/echo", &[("Content-Type", "text/plain")], &body);
    assert_eq!((reply.status, reply.body.len()), (200, body.len()), "{}", &reply.text()[..200]);
    let queued = cluster.platform.invoke(&json!({"funcName": "echo", "params": {"large": "y".repeat(200_000)}}));
    assert_eq!(cluster.platform.ended(queued)["status"], "DONE");
    let node = cluster.node("b");
    assert_eq!((node["labels"]["host"].as_str(), node["slots"]["total"].as_i64()), (Some("b"), Some(4)), "{node}");
    assert!(node["certificateEndsAt"].is_string() && node["version"].is_string(), "{node}");

    // One drains: it finishes, and stops.
    let long: Vec<i64> = (0..12).map(|_| sleeps(&cluster, 3)).collect();
    eventually(LONG, "b works", || if cluster.node("b")["calls"] == 0 { Err(()) } else { Ok(()) });
    assert_eq!(cluster.platform.post("/node/b/drain", &json!({})).status, 200);
    assert!(hosts[1].ended(), "a drained worker ends well");
    cluster.is("b", "STOPPED");
    assert!(self::ended(&cluster, long).iter().all(|call| call["status"] == "DONE" && workers(call).len() == 1));
    // It starts again without a token, under its own name.
    let address = format!("{}:{}", hosts[1].gateway(), cluster.front);
    hosts[1].start(&address);
    cluster.is("b", "READY");
}

#[test]
fn queued_calls_go_where_an_instance_waits() {
    let cluster = Cluster::start();
    let mut hosts = ["a", "b", "c"].map(Host::new);
    hosts.iter_mut().for_each(|host| host.join(&cluster, None));
    sleeper(&cluster);
    let first = cluster.platform.ended(sleeps(&cluster, 0));
    let node = workers(&first).remove(0);
    let mut found = 0;
    for _ in 0..12 {
        eventually(LONG, "its instance waits", || match cluster.node(&node) {
            found if found["calls"] == 0 => Ok(()),
            found => Err(found),
        });
        let call = cluster.platform.ended(sleeps(&cluster, 0));
        let placement = &call["attempts"][0]["placement"];
        found += u32::from(workers(&call) == [node.clone()] && placement == "idle instance");
    }
    // Now and then another node's claim is on its way already when a call comes; by chance alone it would be a third.
    assert!(found >= 9, "{found} of 12 calls went where an instance waits");
}

#[test]
fn functions_of_a_node_call_functions_of_another() {
    let cluster = Cluster::start();
    let mut host = Host::new("a");
    host.join(&cluster, None);
    handler(
        &cluster,
        "inner",
        "def handle(params, context):\n    return {'caller': context.request.headers['faena-caller'], 'got': params}\n",
    );
    let code = "import json, urllib.request\ndef handle(params, context):\n    data = json.dumps(params).encode()\n    request = urllib.request.Request('http://inner.faena.internal/', data, {'Content-Type': 'application/json'})\n    try:\n        return json.load(urllib.request.urlopen(request))\n    except urllib.error.HTTPError as error:\n        return error.read().decode()\n";
    let toml = b"contract = \"handler\"\n[identity]\ncalls = [\"inner\"]\n";
    let archive = zip(&[("faena.toml", &toml[..]), ("handler.py", code.as_bytes())]);
    assert!(matches!(cluster.platform.upload("py", "outer", &archive).status, 200 | 201));
    assert_eq!(cluster.platform.built("outer")["status"], "READY");
    let reply = cluster.platform.post("/f/outer", &json!({"n": 7}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json(), json!({"caller": "outer", "got": {"n": 7}}));
}

#[test]
fn a_node_that_is_cut_off_loses_its_calls_to_others_and_comes_back() {
    let cluster = Cluster::start();
    let (mut a, mut b) = (Host::new("a"), Host::new("b"));
    a.join(&cluster, None);
    sleeper(&cluster);
    let num = sleeps(&cluster, 20);
    cluster.runs_on(num, "a");
    a.filter("in", "drop");
    a.filter("out", "drop");
    b.join(&cluster, None);
    cluster.is("a", "LOST");
    moved(&cluster.platform.ended(num), "a");
    a.heal();
    cluster.is("a", "READY");
    assert_eq!(cluster.platform.post("/node/b/cordon", &json!({})).status, 200);
    let again = sleeps(&cluster, 0);
    assert_eq!(workers(&cluster.platform.ended(again)), ["a"]);
}

#[test]
fn a_node_that_hears_and_is_not_heard_loses_its_calls() {
    let cluster = Cluster::start();
    let (mut a, mut b) = (Host::new("a"), Host::new("b"));
    a.join(&cluster, None);
    sleeper(&cluster);
    let num = sleeps(&cluster, 20);
    cluster.runs_on(num, "a");
    a.filter("out", "drop");
    b.join(&cluster, None);
    moved(&cluster.platform.ended(num), "a");
    a.heal();
    cluster.is("a", "READY");
}

#[test]
fn a_node_that_is_stopped_beyond_its_lease_ends_nothing_that_is_not_its_own() {
    let cluster = Cluster::start();
    let (mut a, mut b) = (Host::new("a"), Host::new("b"));
    a.join(&cluster, None);
    sleeper(&cluster);
    let num = sleeps(&cluster, 5);
    cluster.runs_on(num, "a");
    a.signal("-STOP");
    b.join(&cluster, None);
    moved(&cluster.platform.ended(num), "a");
    a.signal("-CONT");
    cluster.is("a", "READY");
    let call = cluster.platform.get(&format!("/call/{num}")).json();
    moved(&call, "a");
}

#[test]
fn a_node_without_power_is_lost_and_comes_back_as_itself() {
    let cluster = Cluster::start();
    let (mut a, mut b) = (Host::new("a"), Host::new("b"));
    a.join(&cluster, None);
    sleeper(&cluster);
    let num = sleeps(&cluster, 20);
    cluster.runs_on(num, "a");
    let before = cluster.node("a")["incarnation"].clone();
    a.kill();
    b.join(&cluster, None);
    cluster.is("a", "LOST");
    // It is back before its lease has ended: it says so itself that the earlier run is over.
    let address = format!("{}:{}", a.gateway(), cluster.front);
    a.start(&address);
    cluster.is("a", "READY");
    assert_ne!(cluster.node("a")["incarnation"], before);
    let call = cluster.platform.ended(num);
    assert_eq!((call["status"].as_str(), call["result"].as_str()), (Some("DONE"), Some("attempt 2")), "{call}");
}

#[test]
fn a_link_that_loses_every_fifth_packet_delays_and_loses_nothing() {
    let cluster = Cluster::start();
    let mut a = Host::new("a");
    a.join(&cluster, None);
    handler(&cluster, "echo", "def handle(params, context):\n    return params\n");
    a.filter("in", "numgen random mod 100 < 20 drop");
    a.filter("out", "numgen random mod 100 < 20 drop");
    let calls: Vec<i64> = (0..60).map(|n| cluster.platform.invoke(&json!({"funcName": "echo", "params": n}))).collect();
    let ended = ended(&cluster, calls);
    let results: Vec<&str> = ended.iter().filter_map(|call| call["result"].as_str()).collect();
    let wanted: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(results, wanted, "{:?}", ended.iter().find(|call| call["status"] != "DONE"));
    a.heal();
    cluster.is("a", "READY");
}

#[test]
fn a_slow_link_carries_code_and_is_not_taken_for_silence() {
    let cluster = Cluster::start();
    let mut a = Host::new("a");
    let front = format!("127.0.0.1:{}", cluster.front);
    let address = slow_link(a.gateway(), front, 64 * 1024, Duration::from_millis(50));
    a.join(&cluster, Some(&address));
    let noise: Vec<u8> = (0..600_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    cluster.platform.shell_runtime(Engine::Sandbox, &json!({}));
    let archive = zip(&[("run.sh", b"wc -c < noise"), ("noise", &noise)]);
    assert!(matches!(cluster.platform.upload("shell", "large", &archive).status, 200 | 201));
    assert_eq!(cluster.platform.built("large")["status"], "READY");
    let call = cluster.platform.call("large", &json!(null));
    assert_eq!((call["status"].as_str(), call["result"].as_str()), (Some("DONE"), Some("600000")), "{call}");
    assert_eq!(workers(&call), ["a"]);
    assert_eq!(cluster.node("a")["state"], "READY");
    assert!(!a.logged().contains("the api is gone"), "{}", a.logged());
}

#[test]
fn a_node_that_is_removed_ends_with_a_sentence() {
    let cluster = Cluster::start();
    let mut a = Host::new("a");
    a.join(&cluster, None);
    assert_eq!(cluster.platform.send("DELETE", "/node/a", &[], b"").status, 204);
    assert_eq!(cluster.platform.get("/node/a").problem(404), "unknown_node");
    assert!(!a.ended(), "it ends as a failure");
    assert!(a.logged().contains("this node was removed from the platform"), "{}", a.logged());
}

#[test]
fn functions_run_on_nodes_with_the_labels_that_are_asked_for() {
    let cluster = Cluster::start();
    let mut hosts = ["a", "b"].map(Host::new);
    hosts.iter_mut().for_each(|host| host.join(&cluster, None));
    cluster.platform.shell_runtime(Engine::Sandbox, &json!({"nodeSelector": {"host": "b"}}));
    cluster.platform.script("where", "echo here");
    assert_eq!(cluster.platform.built("where")["status"], "READY");
    let calls = (0..8).map(|_| cluster.platform.invoke(&json!({"funcName": "where", "params": null}))).collect();
    assert!(ended(&cluster, calls).iter().all(|call| workers(call) == ["b"]));

    let archive = zip(&[("run.sh", b"echo there"), ("faena.toml", b"[node]\nhost = \"a\"\n")]);
    assert_eq!(cluster.platform.upload("shell", "torn", &archive).problem(422), "no_such_node");
    let archive = zip(&[("run.sh", b"echo there"), ("faena.toml", b"[node]\ndisk = \"ssd\"\n")]);
    assert!(matches!(cluster.platform.upload("shell", "picky", &archive).status, 200 | 201));
    assert_eq!(cluster.platform.get("/function/picky").json()["status"], "PENDING", "no node may build it");
    let changed = cluster.platform.send(
        "PATCH",
        "/node/b",
        &[("Content-Type", "application/json")],
        b"{\"labels\":{\"host\":\"b\",\"disk\":\"ssd\"}}",
    );
    assert_eq!(changed.status, 200, "{}", changed.text());
    assert_eq!(cluster.platform.built("picky")["status"], "READY");
    assert_eq!(workers(&cluster.platform.call("picky", &json!(null))), ["b"]);

    // A direct call that no node may take says which labels it needs.
    handler(&cluster, "quick", "def handle(params, context):\n    return 'done'\n");
    assert_eq!(cluster.platform.post("/f/quick", &json!({})).status, 200);
    let bound = cluster.platform.send(
        "PATCH",
        "/namespace/default",
        &[("Content-Type", "application/json")],
        b"{\"nodeSelector\":{\"team\":\"red\"}}",
    );
    assert_eq!(bound.status, 200, "{}", bound.text());
    let refused = eventually(LONG, "the namespace is bound", || {
        let reply = cluster.platform.post("/f/quick", &json!({}));
        if reply.status == 200 { Err(reply.text()) } else { Ok(reply) }
    });
    assert_eq!(refused.problem(503), "unavailable");
    assert!(refused.text().contains("team=red"), "{}", refused.text());
    let waiting = cluster.platform.invoke(&json!({"funcName": "where", "params": null}));
    let labels = b"{\"labels\":{\"host\":\"b\",\"disk\":\"ssd\",\"team\":\"red\"}}";
    assert_eq!(cluster.platform.send("PATCH", "/node/b", &[("Content-Type", "application/json")], labels).status, 200);
    assert_eq!(workers(&cluster.platform.ended(waiting)), ["b"]);
}

#[test]
fn every_node_fetches_an_image_of_the_platform_when_a_function_needs_it() {
    let cluster = Cluster::start();
    let mut hosts = ["a", "b"].map(Host::new);
    hosts.iter_mut().for_each(|host| host.join(&cluster, None));
    // Docker writes it; the nodes run it in the sandbox.
    let docker = |arguments: &[&str]| Command::new("docker").args(arguments).output().expect("Docker").stdout;
    let container = String::from_utf8_lossy(&docker(&["create", "bashruntime", "x"])).trim().to_owned();
    let archive = docker(&["export", &container]);
    docker(&["rm", &container]);
    let reply = cluster.platform.send("PUT", "/image/own:1", &[], &archive);
    assert_eq!(reply.status, 201, "{}", reply.text());
    let runtime = json!({"image": "own:1", "limits": {"timeout": "5m"}});
    cluster.platform.shell_runtime(Engine::Sandbox, &runtime);
    cluster.platform.script("sleeps", "sleep 1; ls -d /etc/debian_version");
    assert_eq!(cluster.platform.built("sleeps")["status"], "READY");
    let calls = (0..16).map(|_| sleeps(&cluster, 1)).collect();
    let ended = ended(&cluster, calls);
    assert!(ended.iter().all(|call| call["result"] == "/etc/debian_version"), "{ended:?}");
    let ran: BTreeSet<String> = ended.iter().flat_map(workers).collect();
    assert_eq!(ran, ["a", "b"].map(str::to_owned).into());
    for name in ["a", "b"] {
        eventually(LONG, "the node tells its images", || match cluster.node(name) {
            node if node["images"] == json!(["own:1"]) => Ok(()),
            node => Err(node),
        });
    }
}

#[test]
fn clocks_that_jump_lose_nothing() {
    let (of_platform, of_node) = (Clock::new(), Clock::new());
    let cluster = Cluster::start_with(of_platform.variables());
    let mut a = Host::new("a");
    a.clock = Some(of_node);
    a.join(&cluster, None);
    assert!(Clock::is_of(a.pid()) && Clock::is_of(cluster.platform.pid(Role::Up)));
    sleeper(&cluster);
    handler(&cluster, "echo", "def handle(params, context):\n    return params\n");
    let of_node = a.clock.as_ref().expect("it has one");
    let jumps = [
        (of_node, "+1d"),
        (&of_platform, "+1h"),
        (of_node, "-1d"),
        (&of_platform, "-1h"),
        (of_node, "+0"),
        (&of_platform, "+0"),
    ];
    for (turn, (clock, by)) in jumps.into_iter().enumerate() {
        let calls: Vec<i64> = (0..4).map(|_| sleeps(&cluster, 2)).collect();
        eventually(LONG, "a works", || if cluster.node("a")["calls"] == 0 { Err(()) } else { Ok(()) });
        clock.shift(by);
        let reply = cluster.platform.post("/f/echo", &json!(turn));
        assert_eq!((reply.status, reply.text()), (200, turn.to_string()), "after {by}");
        let ended = ended(&cluster, calls);
        assert!(ended.iter().all(|call| call["status"] == "DONE" && workers(call) == ["a"]), "after {by}: {ended:?}");
        cluster.is("a", "READY");
    }
}
