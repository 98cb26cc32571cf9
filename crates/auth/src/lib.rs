//! Who makes a request, and what they may do: principals, scopes, and what an operation requires.
//!
//! Everything here is a pure value or a pure function. Who turns credentials into a principal, and who asks whether it is
//! permitted, is the HTTP edge.

use std::fmt;

use faena_domain::{FunctionName, Namespace};

/// What an account may do in its namespace.
///
/// `admin` includes every other scope, `deploy` includes `read`; `invoke` stands alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Look at everything in the namespace.
    Read,
    /// Call functions, and look at the calls it made.
    Invoke,
    /// Change functions and runtimes.
    Deploy,
    /// Do everything.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Read, Self::Invoke, Self::Deploy, Self::Admin];

    /// The scope's name, as accounts have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }

    /// Whether who has this scope has the other one too.
    pub const fn includes(self, other: Self) -> bool {
        matches!(
            (self, other),
            (Self::Admin, _)
                | (Self::Deploy, Self::Deploy | Self::Read)
                | (Self::Read, Self::Read)
                | (Self::Invoke, Self::Invoke)
        )
    }

    /// The scope's bit in [`Scopes`].
    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scopes(u8);

impl Scopes {
    /// No scope.
    pub const NONE: Self = Self(0);

    /// This set and one more scope.
    #[must_use]
    pub const fn with(self, scope: Scope) -> Self {
        Self(self.0 | scope.bit())
    }

    /// Whether a scope is there, or one that includes it.
    pub fn include(self, scope: Scope) -> bool {
        Scope::ALL.into_iter().any(|held| self.0 & held.bit() != 0 && held.includes(scope))
    }
}

/// Who a principal is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// A user of the machine that the platform runs on, while no account was ever made.
    Operator,
    /// A function that calls another one of its namespace.
    Function(FunctionName),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator => f.write_str("operator"),
            Self::Function(name) => write!(f, "the function {name}"),
        }
    }
}

/// Who makes a request: an account of a namespace, with its scopes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal {
    /// Whose functions, runtimes and calls the request concerns. Those of other namespaces do not exist for it.
    pub namespace: Namespace,
    /// Who it is.
    pub account: Account,
    /// What it may do.
    pub scopes: Scopes,
}

/// What an operation requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// Nothing: anyone may.
    Nothing,
    /// A scope in the namespace that the request concerns.
    Scope(Scope),
    /// The scope `admin` in the root namespace: the operation concerns the whole platform.
    Root,
}

/// An operation that is not permitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// The principal lacks a scope.
    #[error("{account} lacks the scope {scope} in the namespace {namespace}")]
    Scope {
        /// Who asked.
        account: Account,
        /// The scope that the operation requires.
        scope: Scope,
        /// Where it requires it.
        namespace: Namespace,
    },
    /// The principal is no administrator of the platform.
    #[error("{account} is no administrator of the platform")]
    Root {
        /// Who asked.
        account: Account,
    },
}

impl Principal {
    /// The local operator, who may do everything.
    pub fn operator() -> Self {
        Self { namespace: Namespace::default(), account: Account::Operator, scopes: Scopes::NONE.with(Scope::Admin) }
    }

    /// A function, which may call others of its namespace. Which of them is for its `faena.toml` to say, and is judged where
    /// its connections are made.
    pub fn function(namespace: Namespace, name: FunctionName) -> Self {
        Self { namespace, account: Account::Function(name), scopes: Scopes::NONE.with(Scope::Invoke) }
    }

    /// Whether an operation that requires this is permitted.
    ///
    /// # Errors
    /// [`Forbidden`] says what is missing.
    pub fn may(&self, requirement: Requirement) -> Result<(), Forbidden> {
        match requirement {
            Requirement::Nothing => Ok(()),
            Requirement::Scope(scope) if self.scopes.include(scope) => Ok(()),
            Requirement::Scope(scope) => {
                Err(Forbidden::Scope { account: self.account.clone(), scope, namespace: self.namespace.clone() })
            }
            Requirement::Root if self.is_root() => Ok(()),
            Requirement::Root => Err(Forbidden::Root { account: self.account.clone() }),
        }
    }

    /// Whether it administers the platform: `admin` of the root namespace, which is the default one.
    fn is_root(&self) -> bool {
        self.namespace == Namespace::default() && self.scopes.include(Scope::Admin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(scopes: &[Scope]) -> Principal {
        let scopes = scopes.iter().fold(Scopes::NONE, |set, scope| set.with(*scope));
        Principal { scopes, ..Principal::operator() }
    }

    #[test]
    fn scopes_include_what_they_are_documented_to() {
        let included = |scope: Scope| {
            let principal = with(&[scope]);
            let may = |other: &Scope| principal.may(Requirement::Scope(*other)).is_ok();
            Scope::ALL.into_iter().filter(may).collect::<Vec<_>>()
        };
        assert_eq!(included(Scope::Read), [Scope::Read]);
        assert_eq!(included(Scope::Invoke), [Scope::Invoke]);
        assert_eq!(included(Scope::Deploy), [Scope::Read, Scope::Deploy]);
        assert_eq!(included(Scope::Admin), Scope::ALL);
    }

    #[test]
    fn who_has_no_scope_may_do_what_requires_nothing() {
        let nobody = with(&[]);
        assert_eq!(nobody.may(Requirement::Nothing), Ok(()));
        assert!(Scope::ALL.into_iter().all(|scope| nobody.may(Requirement::Scope(scope)).is_err()));
    }

    #[test]
    fn only_administrators_of_the_root_namespace_administer_the_platform() {
        assert_eq!(Principal::operator().may(Requirement::Root), Ok(()));
        let elsewhere = Principal { namespace: "team".parse().unwrap(), ..Principal::operator() };
        assert!(elsewhere.may(Requirement::Root).is_err());
        assert!(elsewhere.may(Requirement::Scope(Scope::Deploy)).is_ok());
        assert!(with(&[Scope::Deploy]).may(Requirement::Root).is_err());
    }

    #[test]
    fn a_refusal_says_who_lacks_what_and_where() {
        let error = with(&[Scope::Read]).may(Requirement::Scope(Scope::Deploy)).unwrap_err();
        assert_eq!(error.to_string(), "operator lacks the scope deploy in the namespace default");
    }
}
