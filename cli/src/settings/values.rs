//! What follows from the settings, in the types of those that use it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use faena_api::{Operators, TlsFiles};
use faena_db::{Keep, QueueBounds, StoreSettings};
use faena_domain::Limits;
use faena_engine::Layer;
use faena_protocol::front::JoinToken;
use ipnet::IpNet;

use super::{Settings, millis};

impl Settings {
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
