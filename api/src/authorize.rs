//! Who makes a request, and whether the operation that it asks for is permitted.
//!
//! Until accounts exist every request that passes the guard is the local operator's. Every operation states what it requires
//! all the same, and one that states nothing is refused to everybody but an administrator of the platform.

use std::sync::{Arc, LazyLock};

use axum::extract::FromRequestParts;
use axum::http::Method;
use axum::http::request::Parts;
use faena_auth::Requirement::{Nothing, Root};
use faena_auth::{Forbidden, Principal, Requirement, Scope};

use crate::problem::{ErrorCode, Problem, Reply};

const READ: Requirement = Requirement::Scope(Scope::Read);
const INVOKE: Requirement = Requirement::Scope(Scope::Invoke);
const DEPLOY: Requirement = Requirement::Scope(Scope::Deploy);

/// What each operation requires: its method, its route, the requirement. `ANY` is every method.
const OPERATIONS: &[(&str, &str, Requirement)] = &[
    ("POST", "/registerRuntime", DEPLOY),
    ("GET", "/runtimes", READ),
    ("GET", "/runtime/{name}", READ),
    ("DELETE", "/runtime/{name}", DEPLOY),
    ("POST", "/registerFunction/{runtime}/{funcName}", DEPLOY),
    ("GET", "/functions", READ),
    ("GET", "/function/{name}", READ),
    ("DELETE", "/function/{name}", DEPLOY),
    ("GET", "/function/{name}/versions", READ),
    ("GET", "/function/{name}/logs", READ),
    ("GET", "/function/{name}/build", READ),
    ("POST", "/function/{name}/build", DEPLOY),
    ("POST", "/invokeFunction", INVOKE),
    (ANY, "/f/{name}", INVOKE),
    (ANY, "/f/{name}/{path}", INVOKE),
    ("GET", "/calls", READ),
    ("GET", "/call/{callNum}", READ),
    ("DELETE", "/call/{callNum}", INVOKE),
    ("GET", "/call/{callNum}/logs", READ),
    ("POST", "/call/{callNum}/replay", INVOKE),
    ("GET", "/deadLetters", READ),
    ("POST", "/deadLetters/replay", INVOKE),
    ("DELETE", "/deadLetter/{callNum}", DEPLOY),
    ("GET", "/workers", Root),
    ("GET", "/metrics", Root),
    ("GET", "/healthz", Nothing),
    ("GET", "/readyz", Nothing),
    ("GET", "/openapi.json", Nothing),
];

const ANY: &str = "*";

static OPERATOR: LazyLock<Arc<Principal>> = LazyLock::new(|| Arc::new(Principal::operator()));

/// Who makes a request.
pub(crate) fn authenticate() -> Arc<Principal> {
    Arc::clone(&OPERATOR)
}

/// What an operation requires; an unknown one is for administrators of the platform.
fn requirement(method: &Method, route: &str) -> Requirement {
    // HEAD asks for what GET asks for, without its body (RFC 9110, 9.3.2).
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    let operation = OPERATIONS.iter().find(|(of, path, _)| (*of == method || *of == ANY) && *path == route);
    operation.map_or(Root, |(_, _, requirement)| *requirement)
}

/// Refuses an operation that the principal may not do.
pub(crate) fn permit(principal: &Principal, method: &Method, route: &str) -> Reply<()> {
    Ok(principal.may(requirement(method, route))?)
}

impl From<Forbidden> for Problem {
    fn from(error: Forbidden) -> Self {
        Self::new(ErrorCode::Forbidden, error.to_string())
    }
}

/// The principal of a request, for handlers.
pub(crate) struct Authenticated(pub(crate) Arc<Principal>);

impl<S: Sync> FromRequestParts<S> for Authenticated {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let principal = parts.extensions.get::<Arc<Principal>>().cloned();
        principal.map(Self).ok_or_else(|| Problem::new(ErrorCode::Internal, "the request passed no authentication"))
    }
}

#[cfg(test)]
mod tests {
    use faena_auth::Scopes;

    use super::*;

    fn with(scopes: Scopes) -> Principal {
        Principal { scopes, ..Principal::operator() }
    }

    /// The operations that the OpenAPI document describes.
    fn described() -> Vec<(Method, String)> {
        let document = crate::routes::description();
        let paths = document["paths"].as_object().expect("paths").clone();
        let operations = paths.into_iter().flat_map(|(path, item)| {
            let methods: Vec<String> = item.as_object().expect("methods").keys().map(|m| m.to_uppercase()).collect();
            methods.into_iter().map(move |method| (method, path.clone()))
        });
        operations.map(|(method, path)| (method.parse().expect("a method"), path)).collect()
    }

    #[test]
    fn every_described_operation_has_an_authorisation_case() {
        for (method, path) in described() {
            let is_listed =
                OPERATIONS.iter().any(|(of, route, _)| (*of == method.as_str() || *of == ANY) && *route == path);
            assert!(is_listed, "{method} {path} states no requirement");
        }
    }

    #[test]
    fn every_authorisation_case_has_an_operation() {
        let described = described();
        // The document does not describe itself.
        for (method, route, _) in OPERATIONS.iter().filter(|(_, route, _)| *route != "/openapi.json") {
            let is_described =
                described.iter().any(|(of, path)| path == route && (*method == ANY || of.as_str() == *method));
            assert!(is_described, "{method} {route} is no operation");
        }
    }

    #[test]
    fn each_operation_is_refused_to_who_lacks_its_scope() {
        for (method, route, requirement) in OPERATIONS {
            let method = if *method == ANY { Method::PATCH } else { method.parse().expect("a method") };
            let may = |scopes| permit(&with(scopes), &method, route).is_ok();
            assert!(may(Scopes::NONE.with(Scope::Admin)), "{method} {route}: an administrator");
            match requirement {
                Nothing => assert!(may(Scopes::NONE), "{method} {route}"),
                Root => assert!(!may(Scopes::NONE.with(Scope::Deploy).with(Scope::Invoke)), "{method} {route}"),
                Requirement::Scope(scope) => {
                    assert!(may(Scopes::NONE.with(*scope)) && !may(Scopes::NONE), "{method} {route}");
                    let others = Scope::ALL.into_iter().filter(|other| !other.includes(*scope));
                    let others = others.fold(Scopes::NONE, Scopes::with);
                    assert!(!may(others), "{method} {route} with all other scopes");
                }
            }
        }
    }

    #[test]
    fn an_operation_that_states_nothing_is_for_administrators() {
        let deployer = with(Scopes::NONE.with(Scope::Deploy).with(Scope::Invoke));
        assert!(permit(&deployer, &Method::GET, "/new").is_err());
        assert!(permit(&Principal::operator(), &Method::GET, "/new").is_ok());
        assert!(permit(&deployer, &Method::HEAD, "/functions").is_ok(), "HEAD is GET");
    }
}
