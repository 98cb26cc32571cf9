//! How settings are read and judged, and how they are explained.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use faena_domain::near::nearest;
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};

use super::Settings;
use crate::arguments::Options;

/// Read where no file is named and this one is there.
const DEFAULT_FILE: &str = "/etc/faena.toml";

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

/// A variable whose name is close to that of a setting is an error; other variables with the prefix are ignored.
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
