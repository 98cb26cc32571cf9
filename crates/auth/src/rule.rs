//! Rules: who may do what to which things of a namespace.
//!
//! The rules that apply to a principal and a thing are put in an order: the highest priority first, and at equal priority
//! `DENIED` before `GRANTED`. The first decides. Where none applies, the operation is refused.

use std::cmp::Reverse;

use faena_domain::name::{InvalidName, is_name};
use serde::{Deserialize, Serialize};

use crate::principal::{Account, Principal, Requirement};
use crate::scope::{InvalidScope, Scope, Scopes};

/// The longest pattern, in bytes.
pub const MAX_PATTERN: usize = 1024;

/// What a request concerns, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// `function` for a call, otherwise the kind of thing that the route is about.
    pub kind: &'a str,
    /// The name of the thing; empty where the route is about all of them.
    pub name: &'a str,
    /// For a call the path after the function's name, otherwise that of the request.
    pub endpoint: &'a str,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RuleScope {
    /// Everyone, also without a credential: `""`.
    Public,
    /// Accounts of this namespace: `*`.
    Namespace,
    /// Accounts of any namespace: `+`.
    Anyone,
    /// Who has a scope of this name.
    Named(String),
}

impl TryFrom<String> for RuleScope {
    type Error = InvalidScope;

    fn try_from(text: String) -> Result<Self, InvalidScope> {
        match text.as_str() {
            "" => Ok(Self::Public),
            "*" => Ok(Self::Namespace),
            "+" => Ok(Self::Anyone),
            word if is_name(word) => Ok(Self::Named(text.to_ascii_lowercase())),
            _ => Err(InvalidScope::Text(text.chars().take(80).collect())),
        }
    }
}

impl From<RuleScope> for String {
    fn from(scope: RuleScope) -> Self {
        match scope {
            RuleScope::Public => Self::new(),
            RuleScope::Namespace => "*".to_owned(),
            RuleScope::Anyone => "+".to_owned(),
            RuleScope::Named(name) => name,
        }
    }
}

/// Which names a rule is about: `*`, one of them, or those below a path that ends in `/*`. Case does not matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Every name.
    Any,
    /// This one.
    Exact(String),
    /// Those that begin with this, which ends in `/`.
    Below(String),
}

impl Pattern {
    /// Whether it is about a name.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => name.eq_ignore_ascii_case(exact),
            Self::Below(prefix) => {
                name.as_bytes().get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
            }
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = InvalidRule;

    fn try_from(text: String) -> Result<Self, InvalidRule> {
        let wrong = || InvalidRule::Pattern(text.chars().take(80).collect());
        if text.len() > MAX_PATTERN || text.chars().any(char::is_control) {
            return Err(wrong());
        }
        match text.strip_suffix('*') {
            Some("") => Ok(Self::Any),
            Some(prefix) if prefix.ends_with('/') && !prefix.contains('*') => Ok(Self::Below(prefix.to_owned())),
            None if !text.contains('*') => Ok(Self::Exact(text)),
            _ => Err(wrong()),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        match pattern {
            Pattern::Any => "*".to_owned(),
            Pattern::Exact(name) => name,
            Pattern::Below(prefix) => format!("{prefix}*"),
        }
    }
}

/// The things that a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleResource {
    /// Their kind.
    #[serde(rename = "type")]
    pub kind: Pattern,
    /// Their names.
    pub name: Pattern,
    /// The paths of requests.
    pub endpoint: Pattern,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Access {
    /// It refuses.
    Denied,
    /// It permits.
    Granted,
}

/// Why a rule is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// A pattern.
    #[error("{0:?} is no pattern: patterns are `*`, a name, or a path that ends in `/*`")]
    Pattern(String),
    /// Its scope.
    #[error(transparent)]
    Scope(#[from] InvalidScope),
    /// Its id.
    #[error(transparent)]
    Id(#[from] InvalidName),
}

/// One rule of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Unique in the namespace.
    pub id: faena_domain::RuleId,
    /// Whom it is about.
    pub scope: RuleScope,
    /// What it is about.
    pub resource: RuleResource,
    /// What it does.
    pub access: Access,
    /// Higher ones decide first.
    pub priority: i32,
}

impl Rule {
    /// What a function says in its faena.toml with `access = "public"`: everyone may call it.
    pub fn public(function: &faena_domain::FunctionName) -> Self {
        Self {
            id: faena_domain::RuleId::public(function),
            scope: RuleScope::Public,
            resource: RuleResource {
                kind: Pattern::Exact("function".to_owned()),
                name: Pattern::Exact(function.as_str().to_owned()),
                endpoint: Pattern::Any,
            },
            access: Access::Granted,
            priority: 0,
        }
    }

    fn concerns(&self, principal: &Principal) -> bool {
        let is_account = matches!(principal.account, Account::Named { .. });
        match &self.scope {
            RuleScope::Public => true,
            RuleScope::Namespace => is_account && !principal.is_in_foreign_namespace(),
            RuleScope::Anyone => is_account,
            // Words are those of the namespace that gave them.
            RuleScope::Named(name) => !principal.is_in_foreign_namespace() && principal.scopes.include_named(name),
        }
    }

    fn applies(&self, principal: &Principal, target: &Target<'_>) -> bool {
        let resource = &self.resource;
        self.concerns(principal)
            && resource.kind.matches(target.kind)
            && resource.name.matches(target.name)
            && resource.endpoint.matches(target.endpoint)
    }

    /// Whether this rule is enough for the requirement: for a call, a rule of `*` or `+` also requires the scope `invoke`.
    fn suffices(&self, requirement: Requirement, scopes: &Scopes) -> bool {
        match (requirement, &self.scope) {
            (Requirement::Call, RuleScope::Namespace | RuleScope::Anyone) => scopes.include(Scope::Invoke),
            _ => true,
        }
    }
}

/// The rules of a namespace, in the order in which they decide.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleSet(Vec<Rule>);

impl RuleSet {
    /// The rule that denies a function a call: the first that is about a scope of the function decides.
    pub(crate) fn denies_function(&self, principal: &Principal, target: &Target<'_>) -> Option<&str> {
        let is_named = |rule: &&Rule| matches!(rule.scope, RuleScope::Named(_));
        let decides = self.0.iter().filter(is_named).find(|rule| rule.applies(principal, target))?;
        (decides.access == Access::Denied).then(|| decides.id.as_str())
    }

    /// These rules.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by_key(|rule| (Reverse(rule.priority), rule.access));
        Self(rules)
    }

    /// What every namespace begins with: its accounts may do everything that their scopes permit.
    pub fn beginning() -> Self {
        Self(vec![Rule {
            id: faena_domain::RuleId::beginning(),
            scope: RuleScope::Namespace,
            resource: RuleResource { kind: Pattern::Any, name: Pattern::Any, endpoint: Pattern::Any },
            access: Access::Granted,
            priority: 0,
        }])
    }

    /// The rules, as they decide.
    pub fn rules(&self) -> &[Rule] {
        &self.0
    }

    /// This set with a rule in it, in place of one with the same id.
    #[must_use]
    pub fn with(&self, rule: Rule) -> Self {
        let others = self.0.iter().filter(|other| other.id != rule.id).cloned();
        Self::new(others.chain([rule.clone()]).collect())
    }

    /// This set without a rule.
    #[must_use]
    pub fn without(&self, id: &faena_domain::RuleId) -> Self {
        Self(self.0.iter().filter(|rule| rule.id != *id).cloned().collect())
    }

    /// Whether a rule is about some paths of a function, and not about all.
    pub fn judges_paths_of(&self, function: &str) -> bool {
        self.0.iter().any(|rule| {
            let RuleResource { kind, name, endpoint } = &rule.resource;
            *endpoint != Pattern::Any && kind.matches("function") && name.matches(function)
        })
    }

    /// Whether a rule denies a principal something whose name lies below a dotted one: `db.password` below `db`.
    pub fn denies_below(&self, principal: &Principal, kind: &str, path: &str) -> bool {
        let is_below = |pattern: &Pattern| {
            let name = match pattern {
                Pattern::Any => return false,
                Pattern::Exact(name) | Pattern::Below(name) => name.replace('/', "."),
            };
            let (head, rest) = (name.get(..path.len()), name.get(path.len()..));
            head.is_some_and(|head| head.eq_ignore_ascii_case(path)) && rest.is_some_and(|rest| rest.starts_with('.'))
        };
        self.0.iter().any(|rule| {
            let RuleResource { kind: of, name, .. } = &rule.resource;
            rule.access == Access::Denied && rule.concerns(principal) && of.matches(kind) && is_below(name)
        })
    }

    /// Refused by a rule, whose id is told, or because none grants it.
    pub(crate) fn decide(
        &self,
        principal: &Principal,
        requirement: Requirement,
        target: &Target<'_>,
    ) -> Result<(), Option<&str>> {
        let mut applying = self.0.iter().filter(|rule| {
            rule.applies(principal, target)
                && (rule.access == Access::Denied || rule.suffices(requirement, &principal.scopes))
        });
        match applying.next() {
            Some(Rule { access: Access::Granted, .. }) => Ok(()),
            Some(denying) => Err(Some(denying.id.as_str())),
            None => Err(None),
        }
    }
}

#[cfg(test)]
mod tests;
