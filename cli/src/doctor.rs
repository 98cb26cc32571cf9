//! `faena doctor`: checks whether this machine can be a platform or a node. It prints a line for each check, with what to do
//! where one failed, and changes nothing.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use faena_client::{Body, Client, ClientConfig, ClientError, Method};
use faena_domain::units::GB;
use faena_engine::EngineError;
use faena_protocol::front::Channel;
use faena_transport::front::FrontDialer;
use faena_worker::front::identity_in;

use crate::node::Place;
use crate::settings::Settings;

/// Clocks may differ by as much before tokens and certificates suffer from it.
const CLOCKS: Duration = Duration::from_secs(5);
/// Open files that a busy node needs.
const DESCRIPTORS: u64 = 65_536;
/// Inodes that unpacked code needs.
const INODES: u64 = 100_000;
/// How long before its end a certificate should have been renewed.
const RENEWED: Duration = Duration::from_secs(5 * 24 * 3600);

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    /// It works, and could be better or will not last.
    Doubtful,
    /// It does not work.
    Bad,
}

/// What was found of one thing.
#[derive(Debug)]
struct Finding {
    what: &'static str,
    state: State,
    /// How it stands, and what to do where it stands badly.
    text: String,
}

fn good(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { what, state: State::Good, text: text.into() }
}

fn doubtful(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { what, state: State::Doubtful, text: text.into() }
}

fn bad(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { what, state: State::Bad, text: text.into() }
}

/// Looks at everything, and prints what was found.
///
/// # Errors
/// Something does not work.
pub(crate) fn examine(settings: &Settings) -> anyhow::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let mut findings = vec![good("version", concat!("faena ", env!("CARGO_PKG_VERSION"))), user(), descriptors()];
    findings.extend(disk(settings));
    findings.extend(runtime.block_on(engines(settings))?);
    findings.extend(match &settings.platform {
        Some(address) => runtime.block_on(membership(settings, address)),
        None => platform(settings),
    });
    for Finding { what, state, text } in &findings {
        let state = match state {
            State::Good => "ok  ",
            State::Doubtful => "warn",
            State::Bad => "FAIL",
        };
        println!("{state}  {what:<12} {text}");
    }
    match findings.iter().filter(|finding| finding.state == State::Bad).count() {
        0 => Ok(()),
        count => bail!("{count} of {} checks failed", findings.len()),
    }
}

fn user() -> Finding {
    if rustix::process::geteuid().is_root() {
        good("user", "root: every instance has a user of its own")
    } else {
        doubtful("user", "not root: instances share one user, and have no network device; run it as root on a server")
    }
}

fn descriptors() -> Finding {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    if most >= DESCRIPTORS {
        good("descriptors", "enough open files are permitted")
    } else {
        doubtful(
            "descriptors",
            format!(
                "{most} open files are permitted, and a busy node needs {DESCRIPTORS}; raise LimitNOFILE or ulimit -n"
            ),
        )
    }
}

/// The nearest folder above a path that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or_else(|| Path::new("/"))
}

fn disk(settings: &Settings) -> Vec<Finding> {
    let look = |what, folder: &Path| {
        let disk = match rustix::fs::statvfs(existing(folder)) {
            Ok(disk) => disk,
            Err(error) => return bad(what, format!("cannot look at the disk of {}: {error}", folder.display())),
        };
        let (bytes, reserve) = (disk.f_bavail.saturating_mul(disk.f_frsize), settings.disk_reserve);
        let (free, place) = (format!("{:.1} GB", bytes as f64 / GB as f64), folder.display());
        if bytes < reserve.0 {
            bad(
                what,
                format!(
                    "{free} are free for {place}, less than the {reserve} of disk_reserve: new work is refused; free space there"
                ),
            )
        } else if disk.f_files > 0 && disk.f_favail < INODES {
            doubtful(what, format!("{} inodes are free for {place}; unpacked code may need {INODES}", disk.f_favail))
        } else if bytes < reserve.0.saturating_mul(2) {
            doubtful(what, format!("{free} are free for {place}; below {reserve} (disk_reserve) new work is refused"))
        } else {
            good(what, format!("{free} are free for {place}"))
        }
    };
    vec![look("data", settings.data()), look("blobs", &settings.blob_folder())]
}

/// Which engines there would be, and what each lacks. They are tried in a folder of their own, so that a worker that runs here
/// does not notice.
async fn engines(settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    // On the disk, and among the mounts, where a worker would have them.
    let above = existing(settings.data());
    let folder = match tempfile::tempdir_in(above) {
        Ok(folder) => folder,
        Err(error) => {
            findings.push(bad("engines", format!("cannot write below {} to try them: {error}", above.display())));
            return Ok(findings);
        }
    };
    let place = Place::trial(settings, folder.path())?;
    let has_docker = match place.docker().await {
        Ok(None) => {
            findings.push(good("docker", "is switched off"));
            false
        }
        Ok(Some(docker)) => {
            findings.push(good("docker", docker.version()));
            true
        }
        Err(error) => {
            findings.push(missing_docker(settings, &error));
            false
        }
    };
    let has_sandbox = match place.sandbox().await {
        Ok(None) => {
            findings.push(good("sandbox", "is switched off"));
            false
        }
        Ok(Some(sandbox)) => {
            findings.push(good("sandbox", sandbox.version()));
            let missing = sandbox.missing_layers();
            findings.push(if missing.is_empty() {
                good(
                    "layers",
                    "namespaces, seccomp, Landlock and control groups: every layer of the sandbox's safety is there",
                )
            } else {
                doubtful(
                    "layers",
                    format!("the sandbox goes without {}, as accept_missing permits", missing.join(", ")),
                )
            });
            findings.push(match sandbox.no_device() {
                None => good("network", "instances with egress have a network device"),
                Some(why) => doubtful(
                    "network",
                    format!("no network device can be made, so egress is by the proxy alone: {why}"),
                ),
            });
            true
        }
        Err(error) => {
            findings.push(bad("sandbox", error.to_string()));
            false
        }
    };
    if !has_docker && !has_sandbox {
        findings.push(bad("engines", "there is no engine; start Docker, or get what the sandbox lacks"));
    }
    Ok(findings)
}

fn missing_docker(settings: &Settings, error: &EngineError) -> Finding {
    if settings.docker == "auto" {
        good("docker", format!("there is none, which it does without: {error}"))
    } else {
        bad("docker", format!("the settings name it, and it does not answer: {error}"))
    }
}

/// The platform that a node belongs to.
async fn membership(settings: &Settings, address: &str) -> Vec<Finding> {
    let identity = match identity_in(settings.data(), None) {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            return vec![doubtful("membership", "this machine is no node yet: make a token with `faena node token`")];
        }
        Err(error) => return vec![bad("membership", error.to_string())],
    };
    let (now, ends_at) = (unix_now(), Duration::from_millis(u64::try_from(identity.ends_at.0).unwrap_or(0)));
    let certificate = match ends_at.checked_sub(now) {
        None => {
            bad("certificate", "it has ended, or the clock is wrong; set the clock, or join again with a new token")
        }
        Some(left) if left < RENEWED => {
            doubtful("certificate", "it was not renewed in time; is the platform reachable?")
        }
        Some(left) => good("certificate", format!("it ends in {} days and renews itself", left.as_secs() / 86_400)),
    };
    let opened = match FrontDialer::new(address, &identity) {
        Ok(dialer) => dialer.open(Channel::Db).await.map(drop).map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let platform = match opened {
        Ok(()) => good("platform", format!("{address} takes this machine as the node {}", identity.name)),
        Err(error) => bad("platform", error),
    };
    vec![certificate, platform]
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The platform of this machine, where it runs.
fn platform(settings: &Settings) -> Vec<Finding> {
    let scheme = if settings.tls_cert.is_some() { "https" } else { "http" };
    let address = std::env::var("FAENA_API").unwrap_or_else(|_| format!("{scheme}://{}", settings.listen));
    let credential = std::env::var("FAENA_CREDENTIAL").ok();
    let config = ClientConfig { address: address.clone(), credential, namespace: None, authorities: None };
    let (client, asked) = match Client::new(config) {
        Ok(client) => (client, unix_now()),
        Err(error) => return vec![bad("platform", error.to_string())],
    };
    match client.ask_dated(Method::GET, "/readyz", Body::None) {
        Ok((_, told)) => {
            let mut findings = vec![good("platform", format!("{address} is ready"))];
            findings.extend(told.map(|told| clock(asked, unix_now(), told)));
            findings.extend(nodes(&client));
            findings
        }
        Err(ClientError::Refused { detail, .. }) => vec![bad("platform", format!("{address} is not ready: {detail}"))],
        Err(error) => vec![doubtful(
            "platform",
            format!("none was reached: {error}; start it with `faena up`, or set FAENA_API to its address"),
        )],
    }
}

/// Compares this machine's clock with the platform's, which tells whole seconds.
fn clock(asked: Duration, answered: Duration, told: Duration) -> Finding {
    let difference =
        if told + Duration::from_secs(1) < asked { asked.abs_diff(told) } else { told.saturating_sub(answered) };
    if difference > CLOCKS {
        bad("clock", format!("it differs from the platform's by {} s; set it by NTP", difference.as_secs()))
    } else {
        good("clock", "it agrees with the platform's")
    }
}

/// What the nodes of the platform run, where the credential may see that.
fn nodes(client: &Client) -> Option<Finding> {
    let nodes = client.ask(Method::GET, "/nodes", Body::None).ok()?;
    let nodes = nodes.as_array()?;
    let with = |problem: &dyn Fn(&serde_json::Value) -> bool| -> Vec<&str> {
        nodes.iter().filter(|node| problem(node)).filter_map(|node| node["name"].as_str()).collect()
    };
    let away = with(&|node| node["state"] != "READY" || node["reason"].is_string());
    let ours = env!("CARGO_PKG_VERSION");
    let others = with(&|node| node["version"].as_str().is_some_and(|version| version != ours));
    Some(if !away.is_empty() {
        doubtful("nodes", format!("not all take work: {}; see `faena node ls`", away.join(", ")))
    } else if !others.is_empty() {
        doubtful("nodes", format!("of another version than this {ours}: {}; upgrade them", others.join(", ")))
    } else {
        good("nodes", format!("{} take work, all of version {ours}", nodes.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_differ_are_told() {
        let at = Duration::from_secs;
        assert_eq!(clock(at(100), at(100), at(100)).state, State::Good);
        assert_eq!(clock(at(100), at(103), at(101)).state, State::Good, "a slow reply is no difference");
        assert_eq!(clock(at(100), at(100), at(90)).state, State::Bad);
        assert_eq!(clock(at(100), at(101), at(200)).state, State::Bad);
    }

    #[test]
    fn a_disk_without_its_reserve_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let with = |reserve| Settings {
            data: folder.path().join("not/there"),
            disk_reserve: faena_domain::units::ByteSize(reserve),
            ..Settings::default()
        };
        assert!(disk(&with(0)).iter().all(|finding| finding.state == State::Good));
        assert!(disk(&with(u64::MAX)).iter().all(|finding| finding.state == State::Bad));
    }
}
