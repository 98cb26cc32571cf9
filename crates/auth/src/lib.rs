//! Who makes a request, and what they may do: principals, scopes, rules, credentials, and what an operation requires.
//!
//! Everything here is a pure value or a pure function. Who looks credentials up, and who asks whether an operation is
//! permitted, is the HTTP edge.

mod credential;
mod decision;
mod mapping;
mod principal;
mod rule;
mod scope;

pub use credential::{Credential, CredentialHash, CredentialId, CredentialKind, NewCredential, SECRET_BYTES};
pub use decision::Forbidden;
pub use mapping::{MAX_MAPPINGS, Mapping, mapped};
pub use principal::{Account, AccountId, AccountKind, Principal, Requirement};
pub use rule::{Access, InvalidRule, MAX_PATTERN, Pattern, Rule, RuleResource, RuleScope, RuleSet, Target};
pub use scope::{InvalidScope, MAX_SCOPES, Scope, Scopes};
