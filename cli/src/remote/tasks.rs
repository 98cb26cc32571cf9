//! The tasks of commands that ask a platform.

use std::path::PathBuf;

use clap::{Args, Subcommand};

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
    /// Changes the members `allow`, `quota` and `weight` that are read as JSON from standard input
    Change {
        /// Its name
        name: String,
    },
    /// Deletes one that is empty, or with --force any
    Delete {
        /// Its name
        name: String,
        /// Deletes its functions, runtimes and configuration too
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ProviderTask {
    /// Adds an identity provider, or replaces the one of its name; it is read as JSON from standard input
    Put,
    /// Lists identity providers
    List,
    /// Shows one
    Show {
        /// Its name
        name: String,
    },
    /// Deletes one, and ends the sessions and keys of who signed in with it
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeTask {
    /// Makes a token for one machine that is to become a node, and prints what to run there
    Token {
        /// A label of the node, as gpu=true; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE")]
        labels: Vec<String>,
        /// How long the token is taken, in seconds (default: an hour)
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
    },
    /// Lists nodes and how they stand
    #[command(visible_alias = "list")]
    Ls,
    /// Shows one
    Show {
        /// Its name
        name: String,
    },
    /// Replaces the labels of a node
    Label {
        /// Its name
        name: String,
        /// Its labels, as gpu=true; none removes all
        labels: Vec<String>,
    },
    /// Gives a node no new work; what it has goes on
    Cordon {
        /// Its name
        name: String,
    },
    /// Gives a node work again
    Uncordon {
        /// Its name
        name: String,
    },
    /// Has a node finish what it has, and stop
    Drain {
        /// Its name
        name: String,
    },
    /// Removes a node at once: its certificate is taken no longer
    #[command(visible_alias = "delete")]
    Rm {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageTask {
    /// Gives the platform an image: what `docker save`, an OCI tool or `docker export` has written
    Put {
        /// Its name, as a runtime's `image` has it
        name: String,
        /// A tar or tar.gz
        archive: PathBuf,
    },
    /// Lists the images that the platform keeps
    #[command(visible_alias = "list")]
    Ls,
    /// Shows one
    Show {
        /// Its name
        name: String,
    },
    /// Forgets an image; versions that were built with it keep it
    #[command(visible_alias = "delete")]
    Rm {
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
    pub(super) since: Option<String>,
    /// Only those of this account
    #[arg(long, value_name = "NAME")]
    pub(super) account: Option<String>,
    /// Only those of this action, as "POST /rule"
    #[arg(long, value_name = "ACTION")]
    pub(super) action: Option<String>,
    /// How many at most, up to 200
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    pub(super) limit: u32,
}
