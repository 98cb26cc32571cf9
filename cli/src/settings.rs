//! Settings: read once, in `main`, from file, environment and flags.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use faena_api::{Operators, TlsFiles};
use faena_db::{Keep, QueueBounds, StoreSettings};
use faena_domain::limits::default_slots;
use faena_domain::near::nearest;
use faena_domain::units::{ByteSize, GB, Span};
use faena_domain::{AskedLimits, Limits, NetworkRule, Preload};
use faena_engine::Layer;
use faena_protocol::front::JoinToken;
use faena_telemetry::LogFormat;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::arguments::Options;

/// Read where no file is named and this one is there.
const DEFAULT_FILE: &str = "/etc/faena.toml";

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

/// The names of all settings.
fn names() -> HashSet<String> {
    let optional = [
        "run",
        "nodes",
        "nodes_address",
        "nodes_ca_key",
        "nodes_ca",
        "platform",
        "join",
        "secret_key_file",
        "blobs",
        "ca_bundle",
        "egress_proxy",
        "functions_domain",
        "tls_cert",
        "tls_key",
        "audit_file",
    ];
    let value = serde_json::to_value(Settings::default()).unwrap_or_default();
    let known = value.as_object().map(|object| object.keys().cloned().collect::<Vec<_>>()).unwrap_or_default();
    known.into_iter().chain(optional.map(str::to_owned)).collect()
}

/// A variable that looks like a setting and is none is an error; what belongs to somebody else is left alone.
fn check_variables(names: &HashSet<String>) -> anyhow::Result<()> {
    for (variable, _) in std::env::vars_os() {
        let Some(name) = variable.to_str().and_then(|name| name.strip_prefix("FAENA_")).map(str::to_lowercase) else {
            continue;
        };
        if !names.contains(&name)
            && let Some(near) = nearest(&name, names.iter().map(String::as_str))
        {
            bail!(
                "the variable FAENA_{} is no setting; did you mean FAENA_{}?",
                name.to_uppercase(),
                near.to_uppercase()
            );
        }
    }
    Ok(())
}

/// Functions must not share a site with the API: to a browser, hosts below one registrable domain are one site. Which
/// suffixes anybody may register below is not known here, so two labels are taken to be such a domain.
fn check_domain(domain: &str, host_names: &[String]) -> anyhow::Result<()> {
    let is_label = |label: &str| {
        let is_plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        is_plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let labels: Vec<&str> = domain.split('.').collect();
    if labels.len() < 2 || domain.len() > 200 || !labels.iter().all(|label| is_label(label)) {
        bail!("functions_domain {domain:?} is no domain like functions.example.net, without a port");
    }
    let site = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.rsplit('.').take(2).map(str::to_owned).collect::<Vec<_>>()
    };
    if let Some(host) = host_names.iter().find(|host| site(host) == site(domain)) {
        bail!(
            "functions_domain {domain} and the host name {host} share a site, so pages of functions could act on the API; \
             take a domain of another name"
        );
    }
    Ok(())
}

/// A span as milliseconds that may be subtracted.
pub(crate) fn millis(span: Span) -> i64 {
    i64::try_from(span.0).unwrap_or(i64::MAX)
}

impl Settings {
    /// Reads file, environment and flags.
    pub(crate) fn load(options: &Options) -> anyhow::Result<Self> {
        let names = names();
        check_variables(&names)?;
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let file = match &options.config {
            Some(path) if !path.is_file() => bail!("the settings file {} is not there", path.display()),
            Some(path) => Toml::file_exact(path),
            None if Path::new(DEFAULT_FILE).is_file() => Toml::file_exact(DEFAULT_FILE),
            None => Toml::string(""),
        };
        let listen = options.listen.clone().or_else(|| std::env::var("FAENA_LISTEN").ok());
        if let Some(listen) = listen.filter(|listen| listen.parse::<SocketAddr>().is_err()) {
            bail!("--listen takes ADDRESS:PORT, like 127.0.0.1:3000 or [::1]:3000, and got {listen:?}");
        }
        let settings: Self = Figment::from(Serialized::defaults(Self::default()))
            .merge(file)
            .merge(Env::prefixed("FAENA_").only(&known))
            .merge(Serialized::defaults(options))
            .extract()
            .context("the settings are wrong")?;
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> anyhow::Result<()> {
        self.layers()?;
        if self.slots == 0 {
            bail!("slots must be at least 1");
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.name.len() > 63
            || !self.name.chars().all(plain)
            || !self.name.starts_with(|c: char| c.is_ascii_alphanumeric())
        {
            bail!("the worker's name {:?} must have 1 to 63 letters, digits and -, and begin with no -", self.name);
        }
        for (setting, address) in [("--api", &self.platform), ("nodes_address", &self.nodes_address)] {
            let is_address = |text: &String| {
                text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            };
            if let Some(text) = address.as_ref().filter(|text| !is_address(text)) {
                bail!("{setting} {text:?} is no address like faena.example.net:3400");
            }
        }
        if self.join.is_some() && self.platform.is_none() {
            bail!("--join needs --api HOST:PORT, the address where the platform takes nodes in");
        }
        if self.stream_idle.0 == 0 || self.stream_max.0 == 0 {
            bail!("stream_idle and stream_max must be longer than nothing");
        }
        self.trusted_proxies()?;
        self.operators()?;
        self.tls()?;
        self.functions_domain.as_deref().map_or(Ok(()), |domain| check_domain(domain, &self.host_names))
    }

    /// The settings as they would stand in a file.
    fn to_toml(&self) -> anyhow::Result<String> {
        toml::to_string_pretty(self).context("the settings cannot be written as TOML")
    }

    /// Every setting with its value and where that came from, as a file that reads back as these settings.
    pub(crate) fn explained(&self, options: &Options) -> anyhow::Result<String> {
        let file = options.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_FILE));
        let in_file: toml::Table =
            std::fs::read_to_string(&file).ok().and_then(|text| text.parse().ok()).unwrap_or_default();
        let flags = serde_json::to_value(options).context("the flags cannot be read")?;
        let origin = |name: &str| {
            let variable = format!("FAENA_{}", name.to_uppercase());
            if flags.get(name).is_some() {
                format!("flag --{}", name.replace('_', "-"))
            } else if std::env::var_os(&variable).is_some() {
                format!("variable {variable}")
            } else if in_file.contains_key(name) {
                format!("file {}", file.display())
            } else {
                "default".to_owned()
            }
        };
        let mut unset: Vec<String> = names().into_iter().collect();
        let mut text = String::new();
        for line in self.to_toml()?.lines() {
            let table = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            // Members of a table and of an array are indented, or belong to the line that names them.
            let name = table
                .or_else(|| line.split_once(" = ").map(|(name, _)| name))
                .filter(|name| unset.iter().any(|known| known == name));
            match name {
                Some(name) if !line.ends_with('[') => {
                    text.push_str(&format!("{line} # {}\n", origin(name)));
                }
                _ => text.push_str(&format!("{line}\n")),
            }
            if let Some(name) = name {
                let name = name.to_owned();
                unset.retain(|known| *known != name);
            }
        }
        unset.sort_unstable();
        let unset: String = unset.iter().map(|name| format!("# {name} is not set\n")).collect();
        Ok(format!("{unset}{text}"))
    }

    /// Layers of the sandbox to go without.
    pub(crate) fn layers(&self) -> anyhow::Result<Vec<Layer>> {
        let known = Layer::ALL.map(Layer::as_str);
        self.accept_missing
            .iter()
            .map(|name| {
                Layer::from_name(name).with_context(|| {
                    format!("{name:?} is no layer of the sandbox; the layers are {}", known.join(", "))
                })
            })
            .collect()
    }

    /// The most that runtimes and functions may ask for.
    pub(crate) fn maximum(&self) -> Limits {
        self.maximum.lowered(&Limits::MAXIMUM)
    }

    /// How the database is set up.
    pub(crate) fn store(&self) -> StoreSettings {
        StoreSettings {
            queue: QueueBounds {
                function_calls: self.queue_calls,
                function_bytes: self.queue_bytes,
                calls: self.queue_total_calls,
                bytes: self.queue_total_bytes,
            },
            keep: Keep {
                calls: self.keep_calls,
                calls_for_ms: millis(self.keep_calls_for),
                dead_letters_for_ms: millis(self.keep_dead_letters_for),
                audit_for_ms: millis(self.keep_audit_for),
                bytes: self.keep_bytes,
            },
            disk_reserve: self.disk_reserve,
        }
    }

    /// What builds get.
    pub(crate) fn build_limits(&self) -> Limits {
        self.build.lowered(&Limits::BUILD)
    }

    /// Proxies that are believed.
    pub(crate) fn trusted_proxies(&self) -> anyhow::Result<Vec<IpNet>> {
        let net = |text: &String| {
            let address = text.parse::<IpAddr>().map(IpNet::from);
            address
                .or_else(|_| text.parse())
                .with_context(|| format!("trusted_proxies: {text:?} is no address and no network like 10.0.0.0/8"))
        };
        self.trusted_proxies.iter().map(net).collect()
    }

    /// Certificate and key for clients.
    pub(crate) fn tls(&self) -> anyhow::Result<Option<TlsFiles>> {
        match (self.tls_cert.clone(), self.tls_key.clone()) {
            (Some(certificate), Some(key)) => Ok(Some(TlsFiles { certificate, key })),
            (None, None) => Ok(None),
            _ => bail!("tls_cert and tls_key belong together; set both or none"),
        }
    }

    /// Whom an open platform is for: its own user, root, who ran sudo, and those that are named.
    pub(crate) fn operators(&self) -> anyhow::Result<Operators> {
        let number = |name: &String| {
            let found = name.parse().ok().or_else(|| Some(uzers::get_user_by_name(name)?.uid()));
            found.with_context(|| format!("operators: this machine has no user {name:?}"))
        };
        let named = self.operators.iter().map(number).collect::<anyhow::Result<Vec<u32>>>()?;
        let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
        let own = rustix::process::geteuid().as_raw();
        Ok(Operators::new([0, own].into_iter().chain(sudo).chain(named)))
    }

    /// Where the keys are that secrets are sealed under.
    pub(crate) fn secret_key_file(&self) -> PathBuf {
        self.secret_key_file.clone().unwrap_or_else(|| self.data.join("secret.key"))
    }

    /// Key and certificate of the authority for nodes.
    pub(crate) fn nodes_authority(&self) -> (PathBuf, PathBuf) {
        let beside = |named: &Option<PathBuf>, name: &str| named.clone().unwrap_or_else(|| self.data.join(name));
        (beside(&self.nodes_ca_key, "nodes-ca.key"), beside(&self.nodes_ca, "nodes-ca.pem"))
    }

    /// The address that nodes reach the platform by.
    pub(crate) fn nodes_public(&self, listen: SocketAddr) -> String {
        let own = if listen.ip().is_unspecified() {
            format!("{}:{}", rustix::system::uname().nodename().to_string_lossy(), listen.port())
        } else {
            listen.to_string()
        };
        self.nodes_address.clone().unwrap_or(own)
    }

    /// The token that this machine joins by.
    pub(crate) fn join_token(&self) -> anyhow::Result<Option<JoinToken>> {
        let text = match self.join.as_deref() {
            None => return Ok(None),
            Some("-") => {
                std::io::read_to_string(std::io::stdin()).context("cannot read the token from standard input")?
            }
            Some(text) => match text.strip_prefix('@') {
                Some(file) => {
                    std::fs::read_to_string(file).with_context(|| format!("cannot read the token in {file}"))?
                }
                None => text.to_owned(),
            },
        };
        Ok(Some(JoinToken::decode(&text)?))
    }

    /// Where blobs are.
    pub(crate) fn blob_folder(&self) -> PathBuf {
        self.blobs.clone().unwrap_or_else(|| self.data.join("blobs"))
    }

    /// The data folder with no `..` or link in it, once it is there.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_read_back_from_their_own_toml() {
        let text = Settings::default().to_toml().unwrap();
        let read: Settings = toml::from_str(&text).unwrap();
        assert_eq!(read.to_toml().unwrap(), text);
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = toml::from_str::<Settings>("lisetn = \"x\"").unwrap_err();
        assert!(error.to_string().contains("lisetn"));
    }
}
