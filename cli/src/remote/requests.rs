//! What each task asks the platform.

use std::fs::File;

use anyhow::{Context, bail};
use faena_client::Method;
use serde_json::{Value, json};

use super::tasks::*;
use super::{Asked, body, input, line, list, object, segment};

impl AccountTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Make { name, kind, scopes, secret } => {
                let secret = if secret { Some(line("a secret")?) } else { None };
                let asked = body([
                    ("name", Some(json!(name))),
                    ("type", Some(json!(kind))),
                    ("scopes", list(&scopes)),
                    ("secret", secret.map(Value::from)),
                ]);
                Asked::new(Method::POST, "/account").with(asked)
            }
            Self::List => Asked::new(Method::GET, "/accounts"),
            Self::Show { account } => Asked::new(Method::GET, format!("/account/{}", segment(&account))),
            Self::Delete { account } => Asked::new(Method::DELETE, format!("/account/{}", segment(&account))),
            Self::Secret { account, old, keys } => {
                let text = input(if old { "the old and the new secret" } else { "the new secret" })?;
                let lines: Vec<&str> = text.lines().collect();
                let (old, new) = match lines[..] {
                    [old_line, new] if old => (Some(old_line), new),
                    [new] if !old => (None, new),
                    _ => bail!("standard input has to be the secrets, a line each"),
                };
                let path = format!("/account/{}/secret?keys={keys}", segment(&account));
                Asked::new(Method::POST, path).with(body([("old", old.map(Value::from)), ("new", Some(json!(new)))]))
            }
        })
    }
}

impl TokenTask {
    pub(super) fn asked(self, namespace: Option<&str>) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Make { account } => {
                let secret = line("a secret")?;
                let asked = body([
                    ("name", Some(json!(account))),
                    ("secret", Some(json!(secret))),
                    ("namespace", namespace.map(Value::from)),
                ]);
                Asked::new(Method::POST, "/token").with(asked).showing("accessToken")
            }
            Self::End => Asked::new(Method::DELETE, "/token"),
        })
    }
}

impl KeyTask {
    pub(super) fn asked(self) -> Asked {
        match self {
            Self::Make { name, scopes, expires } => {
                let asked = body([
                    ("name", Some(json!(name))),
                    ("scopes", list(&scopes)),
                    ("expiresAt", expires.map(Value::from)),
                ]);
                Asked::new(Method::POST, "/key").with(asked).showing("key")
            }
            Self::List => Asked::new(Method::GET, "/keys"),
            Self::Delete { id } => Asked::new(Method::DELETE, format!("/key/{}", segment(&id))),
        }
    }
}

impl RuleTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Put { force } => Asked::new(Method::POST, format!("/rule?force={force}")).with(object("a rule")?),
            Self::List => Asked::new(Method::GET, "/rules"),
            Self::Delete { id, force } => Asked::new(Method::DELETE, format!("/rule/{}?force={force}", segment(&id))),
        })
    }
}

impl NamespaceTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        let one = |name: &str| format!("/namespace/{}", segment(name));
        Ok(match self {
            Self::Make { name } => Asked::new(Method::POST, "/namespace").with(json!({"name": name})),
            Self::List => Asked::new(Method::GET, "/namespaces"),
            Self::Show { name } => Asked::new(Method::GET, one(&name)),
            Self::Change { name } => Asked::new(Method::PATCH, one(&name)).with(object("changes of a namespace")?),
            Self::Delete { name, force } => Asked::new(Method::DELETE, format!("{}?force={force}", one(&name))),
        })
    }
}

impl ProviderTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        let one = |name: &str| format!("/provider/{}", segment(name));
        Ok(match self {
            Self::Put => Asked::new(Method::POST, "/provider").with(object("an identity provider")?),
            Self::List => Asked::new(Method::GET, "/providers"),
            Self::Show { name } => Asked::new(Method::GET, one(&name)),
            Self::Delete { name } => Asked::new(Method::DELETE, one(&name)),
        })
    }
}

/// What a list shows of a node.
const NODE: &[&str] = &["name", "state", "labels", "version", "slots", "lastHeartbeat"];

/// Labels as they are written on a command line.
fn labels(pairs: &[String]) -> anyhow::Result<Value> {
    let pair = |text: &String| {
        let split = text.split_once('=').map(|(key, value)| (key.to_owned(), json!(value)));
        split.with_context(|| format!("{text:?} is no label like gpu=true"))
    };
    Ok(Value::Object(pairs.iter().map(pair).collect::<anyhow::Result<_>>()?))
}

impl NodeTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        let one = |name: &str, action: &str| format!("/node/{}{action}", segment(name));
        Ok(match self {
            Self::Token { labels: pairs, ttl } => {
                let asked = body([("labels", Some(labels(&pairs)?)), ("ttlSeconds", ttl.map(Value::from))]);
                Asked::new(Method::POST, "/node/token").with(asked).showing("command")
            }
            Self::Ls => Asked::new(Method::GET, "/nodes").listing(NODE),
            Self::Show { name } => Asked::new(Method::GET, one(&name, "")),
            Self::Label { name, labels: pairs } => {
                Asked::new(Method::PATCH, one(&name, "")).with(json!({"labels": labels(&pairs)?}))
            }
            Self::Cordon { name } => Asked::new(Method::POST, one(&name, "/cordon")),
            Self::Uncordon { name } => Asked::new(Method::POST, one(&name, "/uncordon")),
            Self::Drain { name } => Asked::new(Method::POST, one(&name, "/drain")),
            Self::Rm { name } => Asked::new(Method::DELETE, one(&name, "")),
        })
    }
}

impl ImageTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        let one = |name: &str| format!("/image/{}", segment(name));
        Ok(match self {
            Self::Put { name, archive } => {
                let file = File::open(&archive).with_context(|| format!("cannot read {}", archive.display()))?;
                Asked::new(Method::PUT, one(&name)).sending(file)
            }
            Self::Ls => Asked::new(Method::GET, "/images").listing(&["name", "digest", "bytes"]),
            Self::Show { name } => Asked::new(Method::GET, one(&name)),
            Self::Rm { name } => Asked::new(Method::DELETE, one(&name)),
        })
    }
}

impl ConfigTask {
    pub(super) fn asked(self) -> Asked {
        let at = |path: &str| format!("/config/{}", segment(path));
        match self {
            Self::Set { path, value } => {
                let value = serde_json::from_str(&value).unwrap_or(Value::String(value));
                Asked::new(Method::PUT, at(&path)).with(value)
            }
            Self::Get { path: None, .. } => Asked::new(Method::GET, "/config"),
            Self::Get { path: Some(path), history } => {
                Asked::new(Method::GET, format!("{}?history={history}", at(&path)))
            }
            Self::Delete { path } => Asked::new(Method::DELETE, at(&path)),
        }
    }
}

impl SecretTask {
    pub(super) fn asked(self) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Set { path } => {
                let text = input("a secret")?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                if text.is_empty() {
                    bail!("standard input is empty, and has to be the secret");
                }
                Asked::new(Method::PUT, format!("/config/{}?secret=true", segment(&path))).with(json!(text))
            }
            Self::Rotate => Asked::new(Method::POST, "/secrets/rotate").showing("secrets"),
        })
    }
}

impl AuditTask {
    pub(super) fn asked(self) -> Asked {
        let Self { since, account, action, limit } = self;
        let given = [("since", since), ("account", account), ("action", action)];
        let given = given.into_iter().filter_map(|(name, value)| Some(format!("&{name}={}", segment(&value?))));
        Asked::new(Method::GET, format!("/audit?limit={limit}{}", given.collect::<String>()))
    }
}
