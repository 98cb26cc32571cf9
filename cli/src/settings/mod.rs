//! Settings: read once, in `main`, from file, environment and flags.

mod read;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use faena_db::StoreSettings;
use faena_domain::limits::default_slots;
use faena_domain::units::{ByteSize, GB, Span};
use faena_domain::{AskedLimits, NetworkRule, Preload};
use faena_telemetry::LogFormat;
use serde::{Deserialize, Serialize};

/// Everything that can be set; docs/reference/configuration.md explains each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    /// Address for people.
    pub(crate) listen: SocketAddr,
    /// Data folder.
    pub(crate) data: PathBuf,
    /// Folder of the sockets between roles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<PathBuf>,
    /// File of the keys that secrets are sealed under, where it is not in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret_key_file: Option<PathBuf>,
    /// Folder of the blobs, where it is not in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blobs: Option<PathBuf>,
    /// Name of the worker.
    pub(crate) name: String,
    /// Where nodes of other machines come in; none keeps the platform to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes: Option<SocketAddr>,
    /// The address that nodes reach it by, where that is another than the one it listens on: `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes_address: Option<String>,
    /// Key and certificate of the authority for nodes, where they are not in the data folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes_ca_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes_ca: Option<PathBuf>,
    /// Of a worker on another machine than its platform: where that takes nodes in, as `host:port`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<String>,
    /// The token that it joins by: itself, `-` for standard input, or `@` and the name of a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) join: Option<String>,
    /// Calls at once.
    pub(crate) slots: u32,
    /// Instances that are made at once.
    pub(crate) creations: u32,
    /// The most instances of the worker, waiting ones included.
    pub(crate) instances: usize,
    /// What instances may hold of memory between them before the cheapest to lose goes; none is half of the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pool_memory: Option<ByteSize>,
    /// How long an instance waits without a call before it goes.
    pub(crate) idle: Span,
    /// How long it waits before it is frozen.
    pub(crate) freeze_after: Span,
    /// How long a server (contract `http`) may take until it listens.
    pub(crate) start_timeout: Span,
    /// What waits before calls come: `none`, `runtime` or `function`. The api's is for all workers that have none of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preload: Option<Preload>,
    /// How long running work may take to finish at a stop.
    pub(crate) grace: Span,
    /// What to log.
    pub(crate) log: String,
    /// `text` or `json`.
    pub(crate) log_format: Lines,
    /// Names besides localhost by which people may call the api.
    pub(crate) host_names: Vec<String>,
    /// Certificate and key for clients, as PEM; read again when they change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Whether clients may speak plain HTTP from other machines.
    pub(crate) insecure_http: bool,
    /// Proxies, as addresses or networks, that are believed when they tell where a request comes from.
    pub(crate) trusted_proxies: Vec<String>,
    /// Users of this machine, by name or number, whom an open platform is for besides its own, root and who ran sudo.
    pub(crate) operators: Vec<String>,
    /// How long the session of a sign-in with an identity provider lasts, and how long keys do after the last sign-in.
    pub(crate) sign_in_lasts: Span,
    pub(crate) sign_in_keys_last: Span,
    /// A file that each line of the audit log is appended to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit_file: Option<PathBuf>,
    /// The domain below which functions have origins of their own, besides `localhost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) functions_domain: Option<String>,
    /// Headers of requests that functions get and no record keeps, besides credentials.
    pub(crate) private_headers: Vec<String>,
    /// How long a stream of a function may be open without a byte, and altogether.
    pub(crate) stream_idle: Span,
    pub(crate) stream_max: Span,
    /// Connections at once.
    pub(crate) connections: usize,
    /// `auto`, `off`, or the path of a daemon's socket.
    pub(crate) docker: String,
    /// Whether the built-in sandbox is offered.
    pub(crate) sandbox: bool,
    /// Layers of the sandbox to go without.
    pub(crate) accept_missing: Vec<String>,
    /// Images that the sandbox maps to this host: name and the program that has to be there.
    pub(crate) host_images: Vec<HostImage>,
    /// Whether Docker may pull images.
    pub(crate) pull: bool,
    /// Certificate authorities for builds and for what has egress.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ca_bundle: Option<PathBuf>,
    /// The only ports that instances with egress may reach; all but 25, where there are none.
    pub(crate) egress_ports: Vec<u16>,
    /// Private networks that every function with egress may reach, as `10.1.0.0/16` or `10.1.0.5:5432`.
    pub(crate) egress_networks: Vec<NetworkRule>,
    /// Name servers, as `address:port`; those of `/etc/resolv.conf`, where there are none.
    pub(crate) egress_resolvers: Vec<SocketAddr>,
    /// Addresses that instances may not reach, besides this host's own and what is not the public internet.
    pub(crate) egress_refused: Vec<IpAddr>,
    /// What may pass in one call or build, both ways together.
    pub(crate) egress_bytes: ByteSize,
    /// The proxy that is the only way out of this network; it judges addresses, we judge names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) egress_proxy: Option<String>,
    /// Names that may be reached through `egress_proxy`; `*.example.org` stands for all below it.
    pub(crate) egress_hosts: Vec<String>,
    /// The most that runtimes and functions may ask for, over the built-in maximum.
    pub(crate) maximum: AskedLimits,
    /// Calls of one function that may wait, and what their params may hold.
    pub(crate) queue_calls: u64,
    pub(crate) queue_bytes: ByteSize,
    /// The same over all functions.
    pub(crate) queue_total_calls: u64,
    pub(crate) queue_total_bytes: ByteSize,
    /// How many ended calls are kept, how long, and how long dead letters are.
    pub(crate) keep_calls: u64,
    pub(crate) keep_calls_for: Span,
    pub(crate) keep_dead_letters_for: Span,
    /// How long lines of the audit log are kept.
    pub(crate) keep_audit_for: Span,
    /// What results and logs of ended calls hold at most; those of one function hold a quarter.
    pub(crate) keep_bytes: ByteSize,
    /// What must stay free on the disks of data and blobs; below it new work is refused, and what runs is finished.
    pub(crate) disk_reserve: ByteSize,
    /// Unpacked code that a worker keeps; what was used longest ago goes first.
    pub(crate) code_cache: ByteSize,
    /// Images of the platform that a worker keeps in each engine; what was used longest ago goes first.
    pub(crate) image_cache: ByteSize,
    /// What builds get, over the built-in limits.
    pub(crate) build: AskedLimits,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Lines {
    Text,
    Json,
}

impl From<Lines> for LogFormat {
    fn from(lines: Lines) -> Self {
        match lines {
            Lines::Text => Self::Text,
            Lines::Json => Self::Json,
        }
    }
}

/// An image that is the host's own system.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostImage {
    /// The image's name.
    pub(crate) image: String,
    /// The program that has to be there.
    pub(crate) program: String,
}

fn home_data() -> PathBuf {
    let home = std::env::var_os("HOME")
        .map_or_else(|| PathBuf::from("/var/lib"), |home| PathBuf::from(home).join(".local/share"));
    std::env::var_os("XDG_DATA_HOME").map_or(home, PathBuf::from).join("faena")
}

/// The host's name, as far as it can name a worker.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let plain: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(40).collect();
    if plain.is_empty() { "worker".to_owned() } else { plain }
}

/// Images that are this machine's own system, where their program is there.
fn host_images() -> Vec<HostImage> {
    [("pythonruntime", "python3"), ("noderuntime", "node"), ("bashruntime", "bash")]
        .map(|(image, program)| HostImage { image: image.to_owned(), program: program.to_owned() })
        .into()
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let store = StoreSettings::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 3000)),
            data: home_data(),
            run: None,
            secret_key_file: None,
            blobs: None,
            name: host_name(),
            nodes: None,
            nodes_address: None,
            nodes_ca_key: None,
            nodes_ca: None,
            platform: None,
            join: None,
            slots: u32::try_from(default_slots(cores)).unwrap_or(4),
            creations: u32::try_from(default_slots(cores)).unwrap_or(4),
            instances: 256,
            pool_memory: None,
            idle: Span(10 * 60_000),
            freeze_after: Span(10_000),
            start_timeout: Span(60_000),
            preload: None,
            grace: Span(10_000),
            log: "info".to_owned(),
            log_format: Lines::Text,
            host_names: Vec::new(),
            tls_cert: None,
            tls_key: None,
            insecure_http: false,
            trusted_proxies: Vec::new(),
            operators: Vec::new(),
            sign_in_lasts: Span(12 * 3_600_000),
            sign_in_keys_last: Span(30 * 24 * 3_600_000),
            audit_file: None,
            functions_domain: None,
            private_headers: Vec::new(),
            stream_idle: Span(60_000),
            stream_max: Span(3_600_000),
            connections: 10_000,
            docker: "auto".to_owned(),
            sandbox: true,
            accept_missing: Vec::new(),
            host_images: host_images(),
            pull: true,
            ca_bundle: default_ca_bundle(),
            egress_ports: Vec::new(),
            egress_networks: Vec::new(),
            egress_resolvers: Vec::new(),
            egress_refused: Vec::new(),
            egress_bytes: ByteSize(GB),
            egress_proxy: ["HTTPS_PROXY", "https_proxy"].iter().find_map(|name| std::env::var(name).ok()),
            egress_hosts: Vec::new(),
            maximum: AskedLimits::default(),
            queue_calls: store.queue.function_calls,
            queue_bytes: store.queue.function_bytes,
            queue_total_calls: store.queue.calls,
            queue_total_bytes: store.queue.bytes,
            keep_calls: store.keep.calls,
            keep_calls_for: Span(store.keep.calls_for_ms.unsigned_abs()),
            keep_dead_letters_for: Span(store.keep.dead_letters_for_ms.unsigned_abs()),
            keep_audit_for: Span(store.keep.audit_for_ms.unsigned_abs()),
            keep_bytes: store.keep.bytes,
            disk_reserve: store.disk_reserve,
            code_cache: ByteSize(10 * GB),
            image_cache: ByteSize(20 * GB),
            build: AskedLimits::default(),
        }
    }
}

/// What `SSL_CERT_FILE` names, else where Debian, Fedora and Alpine keep theirs.
fn default_ca_bundle() -> Option<PathBuf> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    named.into_iter().chain(usual.map(PathBuf::from)).find(|path| path.is_file())
}

/// A span as milliseconds that may be subtracted.
pub(crate) fn millis(span: Span) -> i64 {
    i64::try_from(span.0).unwrap_or(i64::MAX)
}
