//! Commands that ask a platform over its HTTP API: accounts, keys, rules, namespaces, configuration, the audit.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use faena_client::{Client, ClientConfig, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

/// Whom to ask, and as whom.
#[derive(Debug, Args)]
pub(crate) struct Remote {
    /// The platform (default: `FAENA_API`, else `http://127.0.0.1:3000`)
    #[arg(long, value_name = "ADDRESS", global = true)]
    api: Option<String>,
    /// A file with an access token or a key (default: the variable `FAENA_CREDENTIAL`)
    #[arg(long, value_name = "FILE", global = true)]
    credential_file: Option<PathBuf>,
    /// The namespace, where it is not the account's own
    #[arg(long = "in", value_name = "NAMESPACE", global = true)]
    namespace: Option<String>,
    /// Certificate authorities as PEM, in place of the usual ones
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// Prints the answer as JSON
    #[arg(long, global = true)]
    json: bool,
}

/// A task, and whom to ask.
#[derive(Debug, Args)]
pub(crate) struct Asking<T: Subcommand> {
    #[command(subcommand)]
    task: T,
    #[command(flatten)]
    remote: Remote,
}

/// What to ask.
#[derive(Debug, Subcommand)]
pub(crate) enum RemoteTask {
    /// Accounts of people and programs
    Account(Asking<AccountTask>),
    /// Signs in and out
    Token(Asking<TokenTask>),
    /// Keys of one's own account
    Key(Asking<KeyTask>),
    /// Rules of a namespace
    Rule(Asking<RuleTask>),
    /// Namespaces
    Namespace(Asking<NamespaceTask>),
    /// Configuration of functions
    Config(Asking<ConfigTask>),
    /// Secrets of functions
    Secret(Asking<SecretTask>),
    /// What was changed and what was refused
    Audit {
        #[command(flatten)]
        task: AuditTask,
        #[command(flatten)]
        remote: Remote,
    },
    /// Shows the account and the scopes of the credential
    Whoami {
        #[command(flatten)]
        remote: Remote,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AccountTask {
    /// Makes an account and prints its secret, this once
    Make {
        /// Its name
        name: String,
        /// user or service
        #[arg(long = "type", value_name = "TYPE", default_value = "user")]
        kind: String,
        /// A scope; may be repeated (default: read and invoke)
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// Reads its secret from standard input, instead of having one made
        #[arg(long)]
        secret: bool,
    },
    /// Lists accounts
    List,
    /// Shows one
    Show {
        /// Its name or id
        account: String,
    },
    /// Deletes one, its sessions and its keys
    Delete {
        /// Its name or id
        account: String,
    },
    /// Sets a new secret, read from standard input after the old one where that is needed, a line each
    Secret {
        /// Its name or id
        account: String,
        /// Reads the old secret first
        #[arg(long)]
        old: bool,
        /// Ends its keys too
        #[arg(long)]
        keys: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenTask {
    /// Signs in with a secret from standard input, and prints an access token, which lasts 15 minutes
    Make {
        /// The account's name or id
        account: String,
    },
    /// Signs out
    End,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyTask {
    /// Makes a key and prints it, this once
    Make {
        /// Its name
        name: String,
        /// A scope; may be repeated (default: those of the account)
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// When it ends, as 2026-01-31T08:00:00Z
        #[arg(long, value_name = "INSTANT")]
        expires: Option<String>,
    },
    /// Lists keys
    List,
    /// Ends one
    Delete {
        /// Its id
        id: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RuleTask {
    /// Adds a rule, or replaces the one with its id; it is read as JSON from standard input
    Put {
        /// Apply it even if you could no longer edit rules
        #[arg(long)]
        force: bool,
    },
    /// Lists rules in the order in which they decide
    List,
    /// Removes one
    Delete {
        /// Its id
        id: String,
        /// Apply it even if you could no longer edit rules
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NamespaceTask {
    /// Makes a namespace
    Make {
        /// Its name
        name: String,
    },
    /// Lists namespaces
    List,
    /// Shows one
    Show {
        /// Its name
        name: String,
    },
    /// Deletes one that is empty
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigTask {
    /// Sets a value: JSON, or any other text as a text
    Set {
        /// Where, as db.url
        path: String,
        /// The value
        value: String,
    },
    /// Shows a value, or all
    Get {
        /// Where
        path: Option<String>,
        /// Shows its changes
        #[arg(long, requires = "path")]
        history: bool,
    },
    /// Removes a value with all below it
    Delete {
        /// Where
        path: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SecretTask {
    /// Sets a secret, read from standard input
    Set {
        /// Where, as db.password
        path: String,
    },
    /// Seals all secrets under a new key; for administrators of the platform
    Rotate,
}

#[derive(Debug, Args)]
pub(crate) struct AuditTask {
    /// Only lines since this instant, as 2026-01-31T08:00:00Z
    #[arg(long, value_name = "INSTANT")]
    since: Option<String>,
    /// Only those of this account
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Only those of this action, as "POST /rule"
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// How many at most, up to 200
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    limit: u32,
}

/// A request.
struct Asked {
    method: Method,
    path: String,
    body: Option<Value>,
    /// The field of the answer that is printed alone.
    shown: Option<&'static str>,
}

impl Asked {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, shown: None }
    }

    fn with(self, body: Value) -> Self {
        Self { body: Some(body), ..self }
    }

    fn showing(self, field: &'static str) -> Self {
        Self { shown: Some(field), ..self }
    }
}

fn segment(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

/// Standard input, as text.
fn input(what: &str) -> anyhow::Result<String> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("{what}, then Ctrl-D:");
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text).with_context(|| format!("cannot read {what} from standard input"))?;
    Ok(text)
}

/// One line of standard input.
fn line(what: &str) -> anyhow::Result<String> {
    let text = input(what)?;
    let text = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text)).unwrap_or(&text);
    if text.is_empty() || text.contains('\n') {
        bail!("standard input has to be {what}, on one line");
    }
    Ok(text.to_owned())
}

/// A body out of what was given.
fn body<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let given = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(given.collect::<Map<_, _>>())
}

fn list(values: &[String]) -> Option<Value> {
    (!values.is_empty()).then(|| json!(values))
}

impl AccountTask {
    fn asked(self) -> anyhow::Result<Asked> {
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
    fn asked(self, namespace: Option<&str>) -> anyhow::Result<Asked> {
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
    fn asked(self) -> Asked {
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
    fn asked(self) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Put { force } => {
                let rule =
                    serde_json::from_str(&input("a rule")?).context("standard input has to be a rule as JSON")?;
                Asked::new(Method::POST, format!("/rule?force={force}")).with(rule)
            }
            Self::List => Asked::new(Method::GET, "/rules"),
            Self::Delete { id, force } => Asked::new(Method::DELETE, format!("/rule/{}?force={force}", segment(&id))),
        })
    }
}

impl NamespaceTask {
    fn asked(self) -> Asked {
        let one = |name: &str| format!("/namespace/{}", segment(name));
        match self {
            Self::Make { name } => Asked::new(Method::POST, "/namespace").with(json!({"name": name})),
            Self::List => Asked::new(Method::GET, "/namespaces"),
            Self::Show { name } => Asked::new(Method::GET, one(&name)),
            Self::Delete { name } => Asked::new(Method::DELETE, one(&name)),
        }
    }
}

impl ConfigTask {
    fn asked(self) -> Asked {
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
    fn asked(self) -> anyhow::Result<Asked> {
        Ok(match self {
            Self::Set { path } => {
                let text = input("a secret")?;
                let text = text.strip_suffix('\n').unwrap_or(&text);
                Asked::new(Method::PUT, format!("/config/{}?secret=true", segment(&path))).with(json!(text))
            }
            Self::Rotate => Asked::new(Method::POST, "/secrets/rotate").showing("secrets"),
        })
    }
}

impl AuditTask {
    fn asked(self) -> Asked {
        let Self { since, account, action, limit } = self;
        let given = [("since", since), ("account", account), ("action", action)];
        let given = given.into_iter().filter_map(|(name, value)| Some(format!("&{name}={}", segment(&value?))));
        Asked::new(Method::GET, format!("/audit?limit={limit}{}", given.collect::<String>()))
    }
}

impl RemoteTask {
    fn asked(self) -> anyhow::Result<(Asked, Remote)> {
        Ok(match self {
            Self::Account(Asking { task, remote }) => (task.asked()?, remote),
            Self::Token(Asking { task, remote }) => (task.asked(remote.namespace.as_deref())?, remote),
            Self::Key(Asking { task, remote }) => (task.asked(), remote),
            Self::Rule(Asking { task, remote }) => (task.asked()?, remote),
            Self::Namespace(Asking { task, remote }) => (task.asked(), remote),
            Self::Config(Asking { task, remote }) => (task.asked(), remote),
            Self::Secret(Asking { task, remote }) => (task.asked()?, remote),
            Self::Audit { task, remote } => (task.asked(), remote),
            Self::Whoami { remote } => (Asked::new(Method::GET, "/whoami"), remote),
        })
    }
}

/// A value on one line.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// An answer for people: a line for each thing, `name: value` for what one thing is.
fn readable(answer: &Value) -> String {
    let fields = |thing: &Map<String, Value>, between: &str| {
        thing.iter().map(|(name, value)| format!("{name}: {}", shown(value))).collect::<Vec<_>>().join(between)
    };
    match answer {
        Value::Null => String::new(),
        Value::Array(things) => {
            let line = |thing: &Value| match thing {
                Value::Object(thing) => fields(thing, ", "),
                other => shown(other),
            };
            things.iter().map(|thing| line(thing) + "\n").collect()
        }
        Value::Object(thing) => fields(thing, "\n") + "\n",
        other => shown(other) + "\n",
    }
}

/// Asks, and prints the answer.
pub(crate) fn run(task: RemoteTask) -> anyhow::Result<()> {
    let (asked, Remote { api, credential_file, namespace, ca, json }) = task.asked()?;
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let credential = match credential_file {
        Some(path) => {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(text.trim().to_owned())
        }
        None => variable("FAENA_CREDENTIAL"),
    };
    let authorities = ca.map(|path| std::fs::read(&path).with_context(|| format!("cannot read {}", path.display())));
    let address = api.or_else(|| variable("FAENA_API")).unwrap_or_else(|| "http://127.0.0.1:3000".to_owned());
    // Signing in names the namespace itself.
    let namespace = namespace.filter(|_| asked.path != "/token");
    let client = Client::new(ClientConfig { address, credential, namespace, authorities: authorities.transpose()? })?;
    let answer = client.ask(asked.method, &asked.path, asked.body.as_ref())?;
    let text = match asked.shown {
        _ if json => format!("{answer}\n"),
        Some(field) => readable(&answer[field]),
        None => readable(&answer),
    };
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the answer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_lines() {
        assert_eq!(readable(&json!(["a", "b"])), "a\nb\n");
        assert_eq!(readable(&json!({"name": "a", "scopes": ["read"]})), "name: a\nscopes: [\"read\"]\n");
        assert_eq!(readable(&json!([{"id": "a", "n": 1}])), "id: a, n: 1\n");
        assert_eq!((readable(&Value::Null), readable(&json!(3))), (String::new(), "3\n".to_owned()));
    }

    #[test]
    fn what_was_not_given_is_not_sent() {
        assert_eq!(body([("a", Some(json!(1))), ("b", None)]), json!({"a": 1}));
        assert_eq!(segment("a/b c"), "a%2Fb%20c");
    }
}
