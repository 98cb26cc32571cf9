//! Whether a principal may do what an operation requires.

use faena_domain::Namespace;

use crate::principal::{Account, Principal, Requirement};
use crate::rule::{RuleSet, Target};
use crate::scope::Scope;

/// An operation that is not permitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It needs a credential.
    #[error("a credential is needed")]
    Unauthenticated,
    /// What the request concerns does not exist for the principal.
    #[error("there is no namespace {0}")]
    Elsewhere(Namespace),
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
    #[error("this needs the scope admin in the namespace default, which {account} does not have")]
    Root {
        /// Who asked.
        account: Account,
    },
    /// A rule denies it.
    #[error("{account} is refused by the rule {rule}")]
    Denied {
        /// Who asked.
        account: Account,
        /// Which rule.
        rule: String,
    },
    /// No rule grants it.
    #[error("no rule permits this request for {account}")]
    NotGranted {
        /// Who asked.
        account: Account,
    },
}

impl Principal {
    /// Whether an operation on a thing is permitted: its requirement is met, and the rules of the namespace do not deny it.
    ///
    /// Nothing but [`Requirement::Nothing`] is permitted to who sends no credential, save a call that a public rule grants.
    /// In a foreign namespace only calls are: what may not be done there does not exist.
    ///
    /// # Errors
    /// [`Forbidden`] says what is missing.
    pub fn may(&self, requirement: Requirement, target: &Target<'_>, rules: &RuleSet) -> Result<(), Forbidden> {
        match (requirement, &self.account) {
            (Requirement::Nothing, _) | (_, Account::Operator) => return Ok(()),
            // What a function may call is judged where its connections are made. Rules can only deny it.
            (Requirement::Call, Account::Function(_)) => {
                return match rules.denies_function(self, target) {
                    Some(rule) => Err(Forbidden::Denied { account: self.account.clone(), rule: rule.to_owned() }),
                    None => Ok(()),
                };
            }
            (Requirement::Call, _) => {}
            (_, Account::Anonymous) => return Err(Forbidden::Unauthenticated),
            (Requirement::Root, _) if self.is_in_foreign_namespace() && !self.is_root() => {
                return Err(Forbidden::Elsewhere(self.namespace.clone()));
            }
            (Requirement::Root, _) if !self.is_root() => return Err(Forbidden::Root { account: self.account.clone() }),
            (Requirement::Root, _) => {}
            (Requirement::Account, _) => return Ok(()),
            (Requirement::Scope(_) | Requirement::OwnCall(_), _) => {}
        }
        // An administrator of the platform may do everything in the namespaces of others.
        if self.is_in_foreign_namespace() && self.is_root() {
            return Ok(());
        }
        if self.is_in_foreign_namespace() && requirement != Requirement::Call && self.account != Account::Anonymous {
            return Err(Forbidden::Elsewhere(self.namespace.clone()));
        }
        if let Requirement::Scope(scope) = requirement
            && !self.scopes.include(scope)
        {
            return Err(self.lacks(scope));
        }
        if let Requirement::OwnCall(scope) = requirement
            && !self.scopes.include(scope)
            && !self.scopes.include(Scope::Invoke)
        {
            return Err(self.lacks(scope));
        }
        match rules.decide(self, requirement, target) {
            Ok(()) => Ok(()),
            Err(_) if self.account == Account::Anonymous => Err(Forbidden::Unauthenticated),
            Err(_) if self.is_in_foreign_namespace() => Err(Forbidden::Elsewhere(self.namespace.clone())),
            Err(Some(rule)) => Err(Forbidden::Denied { account: self.account.clone(), rule: rule.to_owned() }),
            Err(None) if requirement == Requirement::Call && !self.scopes.include(Scope::Invoke) => {
                Err(self.lacks(Scope::Invoke))
            }
            Err(None) => Err(Forbidden::NotGranted { account: self.account.clone() }),
        }
    }

    fn lacks(&self, scope: Scope) -> Forbidden {
        Forbidden::Scope { account: self.account.clone(), scope, namespace: self.namespace.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{AccountId, AccountKind};
    use crate::scope::Scopes;

    const THING: Target<'static> = Target { kind: "runtime", name: "x", endpoint: "/runtime/x" };

    fn with(scopes: &[Scope]) -> Principal {
        let scopes = scopes.iter().fold(Scopes::NONE, |set, scope| set.with(*scope));
        let account = Account::Named { id: AccountId("1".into()), name: "ann".into(), kind: AccountKind::User };
        Principal { scopes, account, ..Principal::operator() }
    }

    fn may(principal: &Principal, requirement: Requirement) -> Result<(), Forbidden> {
        principal.may(requirement, &THING, &RuleSet::beginning())
    }

    #[test]
    fn who_has_no_scope_may_do_what_requires_none() {
        let nobody = with(&[]);
        assert_eq!(may(&nobody, Requirement::Nothing), Ok(()));
        assert_eq!(may(&nobody, Requirement::Account), Ok(()));
        assert!(Scope::ALL.into_iter().all(|scope| may(&nobody, Requirement::Scope(scope)).is_err()));
    }

    #[test]
    fn who_sends_no_credential_is_asked_for_one() {
        let stranger = Principal::anonymous(Namespace::default());
        assert_eq!(may(&stranger, Requirement::Nothing), Ok(()));
        for requirement in [Requirement::Account, Requirement::Root, Requirement::Call, Requirement::Scope(Scope::Read)]
        {
            assert_eq!(may(&stranger, requirement), Err(Forbidden::Unauthenticated), "{requirement:?}");
        }
    }

    #[test]
    fn only_administrators_of_the_root_namespace_administer_the_platform() {
        let root = with(&[Scope::Admin]);
        assert_eq!(may(&Principal::operator(), Requirement::Root), Ok(()));
        assert_eq!(may(&root, Requirement::Root), Ok(()));
        let team: Namespace = "team".parse().unwrap();
        let lead = Principal { namespace: team.clone(), home: Some(team.clone()), ..root.clone() };
        assert!(may(&lead, Requirement::Root).is_err());
        assert!(may(&lead, Requirement::Scope(Scope::Deploy)).is_ok());
        assert!(may(&with(&[Scope::Deploy]), Requirement::Root).is_err());
        let visiting = Principal { namespace: team, ..root };
        assert_eq!(may(&visiting, Requirement::Scope(Scope::Deploy)), Ok(()));
    }

    #[test]
    fn things_of_another_namespace_do_not_exist() {
        let team: Namespace = "team".parse().unwrap();
        let lead = Principal { home: Some(team), ..with(&[Scope::Admin]) };
        for requirement in [Requirement::Scope(Scope::Read), Requirement::Scope(Scope::Admin), Requirement::Call] {
            assert_eq!(may(&lead, requirement), Err(Forbidden::Elsewhere(Namespace::default())), "{requirement:?}");
        }
    }

    #[test]
    fn a_refusal_says_who_lacks_what_and_where() {
        let error = may(&with(&[Scope::Read]), Requirement::Scope(Scope::Deploy)).unwrap_err();
        assert_eq!(error.to_string(), "ann lacks the scope deploy in the namespace default");
    }
}
