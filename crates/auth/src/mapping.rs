//! What an identity of a provider may do: explicit lists of what its claims give it.

use faena_domain::Namespace;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::scope::Scopes;

/// The most mappings of a provider.
pub const MAX_MAPPINGS: usize = 200;

/// Gives scopes in a namespace to identities whose claim has a value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mapping {
    /// The claim, as `groups`.
    pub claim: String,
    /// What it has to be, or to contain where it is a list.
    pub value: String,
    /// The namespace.
    #[serde(default)]
    pub namespace: Namespace,
    /// What it gives.
    pub scopes: Scopes,
}

impl Mapping {
    fn applies(&self, claims: &Map<String, Value>) -> bool {
        match claims.get(&self.claim) {
            Some(Value::String(text)) => *text == self.value,
            Some(Value::Array(values)) => values.iter().any(|value| value.as_str() == Some(&self.value)),
            _ => false,
        }
    }
}

/// The namespace that an identity signs in to, and what it may do there; none where no mapping applies. It is the namespace
/// that is wanted, otherwise that of the first mapping that applies. The scopes are those of all mappings that apply there.
pub fn mapped(
    mappings: &[Mapping],
    claims: &Map<String, Value>,
    wanted: Option<&Namespace>,
) -> Option<(Namespace, Scopes)> {
    let is_wanted = |mapping: &&Mapping| wanted.is_none_or(|wanted| mapping.namespace == *wanted);
    let mut applying = mappings.iter().filter(|mapping| mapping.applies(claims)).filter(is_wanted);
    let first = applying.next()?;
    let there = applying.filter(|mapping| mapping.namespace == first.namespace);
    let scopes = there.fold(first.scopes.clone(), |scopes, mapping| scopes.and(&mapping.scopes));
    Some((first.namespace.clone(), scopes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mapping(claim: &str, value: &str, namespace: &str, scopes: &[&str]) -> Mapping {
        let (claim, value) = (claim.to_owned(), value.to_owned());
        Mapping { claim, value, namespace: namespace.parse().unwrap(), scopes: Scopes::parse(scopes).unwrap() }
    }

    #[test]
    fn an_identity_gets_what_is_listed_and_nothing_else() {
        let mappings = [
            mapping("groups", "crew", "red", &["read"]),
            mapping("groups", "chiefs", "blue", &["admin"]),
            mapping("sub", "ann", "red", &["invoke", "robots"]),
        ];
        let mapped = |claims: Value, wanted: Option<&str>| {
            let wanted = wanted.map(|name| name.parse().unwrap());
            let found = super::mapped(&mappings, claims.as_object().unwrap(), wanted.as_ref())?;
            Some((found.0.to_string(), found.1.names()))
        };
        let both = || json!({"sub": "ann", "groups": ["chiefs", "crew"]});
        let red = Some(("red".to_owned(), vec!["read".to_owned(), "invoke".to_owned(), "robots".to_owned()]));
        assert_eq!(mapped(both(), None), red);
        assert_eq!(mapped(both(), Some("blue")), Some(("blue".to_owned(), vec!["admin".to_owned()])));
        assert_eq!(mapped(both(), Some("green")), None);
        assert_eq!(mapped(json!({"groups": "chiefs"}), None).map(|found| found.0), Some("blue".to_owned()));
        for stranger in [
            json!({}),
            json!({"groups": ["CREW"]}),
            json!({"groups": "crew chiefs"}),
            json!({"groups": {"crew": true}}),
            json!({"groups": [["crew"]]}),
            json!({"name": "ann", "email": "ann"}),
        ] {
            assert_eq!(mapped(stranger.clone(), None), None, "{stranger}");
        }
    }
}
