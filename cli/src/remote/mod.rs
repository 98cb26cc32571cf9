//! Commands that ask a platform over its HTTP API: accounts, keys, rules, namespaces, nodes, images, configuration, the audit
//! log.

mod requests;
mod tasks;

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use faena_client::{Body, Client, ClientConfig, ClientError, Method};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value, json};

pub(crate) use tasks::*;

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

/// A command: a task, and whom to ask.
#[derive(Debug, Args)]
pub(crate) struct Command<T: Subcommand> {
    #[command(subcommand)]
    task: T,
    #[command(flatten)]
    remote: Remote,
}

/// What to ask.
#[derive(Debug, Subcommand)]
pub(crate) enum RemoteTask {
    /// Accounts of people and programs
    Account(Command<AccountTask>),
    /// Signs in and out
    Token(Command<TokenTask>),
    /// Keys of one's own account
    Key(Command<KeyTask>),
    /// Rules of a namespace
    Rule(Command<RuleTask>),
    /// Namespaces
    Namespace(Command<NamespaceTask>),
    /// Identity providers, by which people sign in
    Provider(Command<ProviderTask>),
    /// Nodes: the machines that functions run on
    Node(Command<NodeTask>),
    /// Images that the platform keeps for every node
    Image(Command<ImageTask>),
    /// Configuration of functions
    Config(Command<ConfigTask>),
    /// Secrets of functions
    Secret(Command<SecretTask>),
    /// Shows the audit log: changes and refusals
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

/// A request.
struct Asked {
    method: Method,
    path: String,
    body: Body,
    shown: Shown,
}

/// What of an answer is printed for people.
enum Shown {
    All,
    /// One field alone.
    Field(&'static str),
    /// These fields of each thing of a list.
    Fields(&'static [&'static str]),
}

impl Asked {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: Body::None, shown: Shown::All }
    }

    fn with(self, body: Value) -> Self {
        Self { body: Body::Json(body), ..self }
    }

    fn sending(self, file: File) -> Self {
        Self { body: Body::File(file), ..self }
    }

    fn showing(self, field: &'static str) -> Self {
        Self { shown: Shown::Field(field), ..self }
    }

    fn listing(self, fields: &'static [&'static str]) -> Self {
        Self { shown: Shown::Fields(fields), ..self }
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

/// Standard input, as JSON.
fn object(what: &str) -> anyhow::Result<Value> {
    serde_json::from_str(&input(what)?).with_context(|| format!("standard input has to be {what} as JSON"))
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

impl RemoteTask {
    fn asked(self) -> anyhow::Result<(Asked, Remote)> {
        Ok(match self {
            Self::Account(Command { task, remote }) => (task.asked()?, remote),
            Self::Token(Command { task, remote }) => (task.asked(remote.namespace.as_deref())?, remote),
            Self::Key(Command { task, remote }) => (task.asked(), remote),
            Self::Rule(Command { task, remote }) => (task.asked()?, remote),
            Self::Namespace(Command { task, remote }) => (task.asked()?, remote),
            Self::Provider(Command { task, remote }) => (task.asked()?, remote),
            Self::Node(Command { task, remote }) => (task.asked()?, remote),
            Self::Image(Command { task, remote }) => (task.asked()?, remote),
            Self::Config(Command { task, remote }) => (task.asked(), remote),
            Self::Secret(Command { task, remote }) => (task.asked()?, remote),
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

/// A list of things with these fields alone.
fn picked(answer: Value, fields: &[&str]) -> Value {
    let pick = |thing: Value| match thing {
        Value::Object(thing) => {
            let found = fields.iter().filter_map(|field| Some(((*field).to_owned(), thing.get(*field)?.clone())));
            Value::Object(found.collect())
        }
        other => other,
    };
    match answer {
        Value::Array(things) => Value::Array(things.into_iter().map(pick).collect()),
        other => other,
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
    let has_credential = credential.is_some();
    let authorities = ca.map(|path| std::fs::read(&path).with_context(|| format!("cannot read {}", path.display())));
    let address = api.or_else(|| variable("FAENA_API")).unwrap_or_else(|| "http://127.0.0.1:3000".to_owned());
    // Signing in names the namespace itself.
    let namespace = namespace.filter(|_| asked.path != "/token");
    let client = Client::new(ClientConfig { address, credential, namespace, authorities: authorities.transpose()? })?;
    let answer = client.ask(asked.method, &asked.path, asked.body);
    let answer = match answer {
        Err(ClientError::Refused { code, .. }) if code == "unauthenticated" && !has_credential => bail!(
            "no credential was given: set FAENA_CREDENTIAL, or --credential-file; \
             `faena token make NAME --in NAMESPACE < secret.txt` prints one"
        ),
        answer => answer?,
    };
    let text = match asked.shown {
        _ if json => format!("{answer}\n"),
        Shown::All => readable(&answer),
        Shown::Field(field) => readable(&answer[field]),
        Shown::Fields(fields) => readable(&picked(answer, fields)),
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
