//! What every operation requires, and whether who asks for it may have it.
//!
//! An operation that states nothing is refused to everybody but an administrator of the platform.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{Method, Uri};
use faena_auth::Requirement::{Account, Nothing, Root};
use faena_auth::{Forbidden, Principal, Requirement, RuleSet, Scope, Scopes, Target};
use faena_domain::config::ConfigPath;
use faena_protocol::DbError;
use faena_protocol::db::Resource;
use faena_protocol::records::CallRecord;
use percent_encoding::percent_decode_str;

use crate::access::{Access, CallPlace, Grant, RequestAuth, Rules};
use crate::problem::{ErrorCode, Problem, Reply};

const READ: Requirement = Requirement::Scope(Scope::Read);
const DEPLOY: Requirement = Requirement::Scope(Scope::Deploy);
/// What concerns one call is for its maker too; the handler judges whose it is.
const READ_OWN: Requirement = Requirement::OwnCall(Scope::Read);
const CHANGE_OWN: Requirement = Requirement::OwnCall(Scope::Deploy);
const ADMIN: Requirement = Requirement::Scope(Scope::Admin);

/// The kind of thing that rules about calls name. What an operation is about is the tag of its route otherwise; of
/// functions that are deployed it is `deployment`, for rules about functions are about calls alone.
const FUNCTION: &str = "function";
/// Values of the configuration.
const CONFIG: &str = "config";

/// What each operation requires: its method, its route, the requirement, and the kind of thing that it is about. `ANY` is every
/// method.
const OPERATIONS: &[(&str, &str, Requirement, &str)] = &[
    ("POST", "/registerRuntime", DEPLOY, "runtime"),
    ("GET", "/runtimes", READ, "runtime"),
    ("GET", "/runtime/{name}", READ, "runtime"),
    ("DELETE", "/runtime/{name}", DEPLOY, "runtime"),
    ("POST", "/registerFunction/{runtime}/{funcName}", DEPLOY, "deployment"),
    ("GET", "/functions", READ, "deployment"),
    ("GET", "/function/{name}", READ, "deployment"),
    ("DELETE", "/function/{name}", DEPLOY, "deployment"),
    ("GET", "/function/{name}/versions", READ, "deployment"),
    ("GET", "/function/{name}/logs", READ, "deployment"),
    ("GET", "/function/{name}/build", READ, "deployment"),
    ("POST", "/function/{name}/build", DEPLOY, "deployment"),
    // The handler judges the call: the body names the function.
    ("POST", "/invokeFunction", Account, "call"),
    (ANY, "/f/{name}", Requirement::Call, FUNCTION),
    (ANY, "/f/{name}/{path}", Requirement::Call, FUNCTION),
    ("GET", "/calls", READ, "call"),
    ("GET", "/call/{callNum}", READ_OWN, "call"),
    ("DELETE", "/call/{callNum}", CHANGE_OWN, "call"),
    ("GET", "/call/{callNum}/logs", READ_OWN, "call"),
    ("POST", "/call/{callNum}/replay", CHANGE_OWN, "call"),
    ("GET", "/deadLetters", READ, "call"),
    ("POST", "/deadLetters/replay", DEPLOY, "call"),
    ("DELETE", "/deadLetter/{callNum}", DEPLOY, "call"),
    ("POST", "/setup", Nothing, "account"),
    ("POST", "/token", Nothing, "account"),
    ("DELETE", "/token", Account, "account"),
    ("GET", "/login", Nothing, "account"),
    ("GET", "/login/callback/{provider}", Nothing, "account"),
    ("POST", "/provider", Root, "provider"),
    ("GET", "/providers", Root, "provider"),
    ("GET", "/provider/{provider}", Root, "provider"),
    ("DELETE", "/provider/{provider}", Root, "provider"),
    ("GET", "/whoami", Account, "account"),
    ("POST", "/account", ADMIN, "account"),
    ("GET", "/accounts", ADMIN, "account"),
    ("GET", "/account/{account}", ADMIN, "account"),
    ("DELETE", "/account/{account}", ADMIN, "account"),
    // The handler judges whose secret it is.
    ("POST", "/account/{account}/secret", Account, "account"),
    ("POST", "/key", Account, "key"),
    ("GET", "/keys", Account, "key"),
    ("DELETE", "/key/{id}", Account, "key"),
    ("POST", "/rule", ADMIN, "rule"),
    ("GET", "/rules", ADMIN, "rule"),
    ("DELETE", "/rule/{id}", ADMIN, "rule"),
    ("POST", "/namespace", Root, "namespace"),
    ("GET", "/namespaces", Root, "namespace"),
    ("GET", "/namespace/{namespace}", Root, "namespace"),
    ("PATCH", "/namespace/{namespace}", Root, "namespace"),
    ("DELETE", "/namespace/{namespace}", Root, "namespace"),
    ("POST", "/secrets/rotate", Root, "config"),
    ("GET", "/config", ADMIN, "config"),
    ("PUT", "/config/{path}", ADMIN, "config"),
    ("GET", "/config/{path}", ADMIN, "config"),
    ("DELETE", "/config/{path}", ADMIN, "config"),
    ("GET", "/audit", ADMIN, "audit"),
    ("PUT", "/image/{image}", Root, "image"),
    ("GET", "/image/{image}", READ, "image"),
    ("DELETE", "/image/{image}", Root, "image"),
    ("GET", "/images", READ, "image"),
    ("POST", "/node/token", Root, "node"),
    ("GET", "/nodes", Root, "node"),
    ("GET", "/node/{node}", Root, "node"),
    ("PATCH", "/node/{node}", Root, "node"),
    ("DELETE", "/node/{node}", Root, "node"),
    ("POST", "/node/{node}/cordon", Root, "node"),
    ("POST", "/node/{node}/uncordon", Root, "node"),
    ("POST", "/node/{node}/drain", Root, "node"),
    ("GET", "/workers", Root, "node"),
    ("GET", "/metrics", Root, "node"),
    ("GET", "/healthz", Nothing, "node"),
    ("GET", "/readyz", Nothing, "node"),
    ("GET", "/openapi.json", Nothing, "node"),
];

/// The kinds of things that rules can be about.
pub(crate) fn kinds() -> BTreeSet<&'static str> {
    OPERATIONS.iter().map(|(_, _, _, kind)| *kind).collect()
}

const ANY: &str = "*";
/// The route of a request that has none. Who is known learns that there is nothing.
pub(crate) const NO_ROUTE: &str = "none";

/// An operation, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Operation<'a> {
    pub(crate) requirement: Requirement,
    kind: &'static str,
    /// The thing that the path names, as it is written there.
    name: &'a str,
    path: &'a str,
}

impl<'a> Operation<'a> {
    /// What a request asks for; an unknown operation is for administrators of the platform.
    pub(crate) fn of(method: &Method, route: &str, uri: &'a Uri) -> Self {
        // HEAD asks for what GET asks for, without its body (RFC 9110, 9.3.2).
        let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
        let operation = OPERATIONS.iter().find(|(of, path, ..)| (*of == method || *of == ANY) && *path == route);
        let (requirement, kind) = match operation {
            Some((_, _, requirement, kind)) => (*requirement, *kind),
            None if route == NO_ROUTE => (Account, "node"),
            None => (Root, "node"),
        };
        let segments = route.split('/').zip(uri.path().split('/'));
        // An upload names its runtime first.
        let named = segments.filter(|(of_route, _)| of_route.starts_with('{'));
        let name = named.max_by_key(|(of_route, _)| *of_route == "{funcName}").map_or("", |(_, name)| name);
        Self { requirement, kind, name, path: uri.path() }
    }

    /// Whether a request for it changes something, other than by a call.
    pub(crate) fn is_change(&self, method: &Method) -> bool {
        let is_call = self.requirement == Requirement::Call || self.path == "/invokeFunction";
        // Who comes back from a provider has signed in.
        let is_sign_in = self.path.starts_with("/login/callback/");
        is_sign_in || (!method.is_safe() && !is_call)
    }

    /// Whether it concerns the account that asks, and no namespace.
    pub(crate) fn is_about_itself(&self) -> bool {
        // Another's secret is changed in its namespace.
        self.requirement == Account && self.kind != "call" && !self.path.ends_with("/secret")
    }

    /// The name of the thing, decoded.
    pub(crate) fn name(&self) -> Cow<'a, str> {
        percent_decode_str(self.name).decode_utf8_lossy()
    }

    /// What a request for it is admitted by.
    pub(crate) fn grant(&self, principal: &Arc<Principal>, request: &RequestAuth<'_>) -> Grant {
        Grant {
            principal: Arc::clone(principal),
            credential: request.read_credential(),
            requirement: self.requirement,
            kind: self.kind,
            name: self.name().into_owned(),
            endpoint: percent_decode_str(self.path).decode_utf8_lossy().into_owned(),
            _place: None,
        }
    }

    /// Refuses it to who may not do it.
    pub(crate) fn permit(&self, principal: &Principal, rules: &RuleSet) -> Reply<()> {
        let (name, endpoint) = (self.name(), percent_decode_str(self.path).decode_utf8_lossy());
        let target = Target { kind: self.kind, name: &name, endpoint: &endpoint };
        principal.may(self.requirement, &target, rules)?;
        if self.kind == CONFIG {
            // Rules may name what lies below a path as `db/*`.
            let slashed = name.replace('.', "/");
            principal.may(self.requirement, &Target { name: &slashed, ..target }, rules)?;
        }
        Ok(())
    }
}

/// Refuses what concerns a call to who neither has the scope nor has made the call: it does not exist for them.
pub(crate) fn permit_call_record(principal: &Principal, scope: Scope, call: &CallRecord) -> Reply<()> {
    if principal.may_touch_call(scope, call.account.as_ref()) {
        return Ok(());
    }
    Err(DbError::NotFound { what: Resource::Call, name: call.num.to_string() }.into())
}

/// The rules by which a principal is judged. For who sends no credential, a namespace that does not exist is one in which
/// nothing is public.
pub(crate) async fn rules_for(access: &Access, principal: &Principal) -> Reply<Arc<Rules>> {
    match access.rules(&principal.namespace).await {
        Err(problem) if problem.is(ErrorCode::UnknownNamespace) && principal.home.is_none() => Ok(Arc::default()),
        rules => rules,
    }
}

/// Refuses a call to who may not call a function at a path, which is as the request has it. A call whose client waits counts as
/// running until the place is dropped.
pub(crate) async fn permit_call(
    access: &Access,
    principal: &Principal,
    (function, path): (&str, &str),
    waited: bool,
) -> Reply<Option<CallPlace>> {
    // While a platform is open its operator is bound by nothing.
    if principal.account == faena_auth::Account::Operator {
        return Ok(None);
    }
    let rules = rules_for(access, principal).await?;
    judge_call(principal, (function, path), &rules.rules)?;
    access.count_call(principal, &rules.quota, waited)
}

/// Judges a call by rules; where these are about paths of the function, its path has to mean the same to every reader.
fn judge_call(principal: &Principal, (function, path): (&str, &str), rules: &RuleSet) -> Reply<()> {
    let endpoint = percent_decode_str(path).decode_utf8_lossy();
    if rules.judges_paths_of(function) && !is_plain(path, &endpoint) {
        let detail = "rules judge paths of this function, so its path must have no empty segment, no dots alone, and no encoded slash, backslash or NUL";
        return Err(Problem::new(ErrorCode::InvalidPath, detail));
    }
    Ok(principal.may(Requirement::Call, &Target { kind: FUNCTION, name: function, endpoint: &endpoint }, rules)?)
}

/// Refuses a call of a function to another one where a rule about a scope of the caller denies it. Whether its faena.toml names the
/// other one was judged when the connection was made.
pub(crate) async fn permit_function(access: &Access, principal: &Principal, function: &str, path: &str) -> Reply<()> {
    if principal.scopes == Scopes::NONE {
        return Ok(());
    }
    judge_call(principal, (function, path), &rules_for(access, principal).await?.rules)
}

/// Refuses an operation on a thing that only its body names, or that its path names in another way.
pub(crate) async fn permit_named(
    access: &Access,
    principal: &Principal,
    (requirement, kind): (Requirement, &'static str),
    name: &str,
) -> Reply<()> {
    let rules = rules_for(access, principal).await?;
    let endpoint = format!("/{kind}/{name}");
    Ok(principal.may(requirement, &Target { kind, name, endpoint: &endpoint }, &rules.rules)?)
}

/// Refuses a version that asks for a value of the configuration which its uploader may not use.
pub(crate) fn permit_binding(principal: &Principal, path: &ConfigPath, rules: &RuleSet) -> Result<(), Forbidden> {
    permit_value(principal, Requirement::Scope(Scope::Deploy), path, rules)
}

/// Refuses a change of a value of the configuration to who may not change it.
pub(crate) fn permit_change(principal: &Principal, path: &ConfigPath, rules: &RuleSet) -> Result<(), Forbidden> {
    permit_value(principal, ADMIN, path, rules)
}

/// Refuses a value of the configuration where rules deny the value itself, what it lies in, or something in it.
fn permit_value(
    principal: &Principal,
    requirement: Requirement,
    path: &ConfigPath,
    rules: &RuleSet,
) -> Result<(), Forbidden> {
    for name in path.above().chain([path.as_str()]) {
        permit_name(principal, requirement, name, rules)?;
    }
    if rules.denies_below(principal, CONFIG, path.as_str()) {
        return Err(Forbidden::NotGranted { account: principal.account.clone() });
    }
    Ok(())
}

/// Whether an account may read a value of the configuration, as far as rules name the value itself.
pub(crate) fn may_read_value(principal: &Principal, path: &str, rules: &RuleSet) -> bool {
    permit_name(principal, ADMIN, path, rules).is_ok()
}

/// Refuses a value of the configuration that rules deny by its path, with dots or with slashes.
fn permit_name(principal: &Principal, requirement: Requirement, path: &str, rules: &RuleSet) -> Result<(), Forbidden> {
    let endpoint = format!("/config/{path}");
    [path.to_owned(), path.replace('.', "/")]
        .iter()
        .try_for_each(|name| principal.may(requirement, &Target { kind: CONFIG, name, endpoint: &endpoint }, rules))
}

/// What a call of a function is admitted by.
pub(crate) fn grant_of_call(
    principal: &Arc<Principal>,
    request: &RequestAuth<'_>,
    (function, path): (&str, &str),
    place: Option<CallPlace>,
) -> Grant {
    Grant {
        principal: Arc::clone(principal),
        credential: request.read_credential(),
        requirement: Requirement::Call,
        kind: FUNCTION,
        name: function.to_owned(),
        endpoint: percent_decode_str(path).decode_utf8_lossy().into_owned(),
        _place: place.map(Arc::new),
    }
}

/// Whether a path means the same to every reader.
fn is_plain(path: &str, decoded: &str) -> bool {
    let has_encoded_slash = path.to_ascii_lowercase().contains("%2f");
    let segments = decoded.strip_prefix('/').unwrap_or(decoded).split('/');
    let mut is_plain = !has_encoded_slash && !decoded.contains(['\\', '\0', '\u{fffd}']);
    for segment in segments {
        // The path may be `/` alone.
        is_plain &= !matches!(segment, "." | "..") && (!segment.is_empty() || decoded == "/");
    }
    is_plain
}

impl From<Forbidden> for Problem {
    fn from(error: Forbidden) -> Self {
        match error {
            Forbidden::Unauthenticated => Self::new(ErrorCode::Unauthenticated, error)
                .hint("send `Authorization: Bearer` with an access token (POST /token) or a key (POST /key)"),
            Forbidden::Elsewhere(_) => Self::new(ErrorCode::UnknownNamespace, error),
            Forbidden::Scope { .. }
            | Forbidden::Root { .. }
            | Forbidden::Denied { .. }
            | Forbidden::NotGranted { .. } => Self::new(ErrorCode::Forbidden, error),
        }
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
    use faena_auth::{Account, AccountId, AccountKind, Scopes};

    use super::*;

    fn with(scopes: Scopes) -> Principal {
        let account = Account::Named { id: AccountId("1".into()), name: "ann".into(), kind: AccountKind::User };
        Principal { scopes, account, ..Principal::operator() }
    }

    fn may(principal: &Principal, method: &Method, route: &str) -> bool {
        let uri = route.replace(['{', '}'], "").parse().expect("a path");
        Operation::of(method, route, &uri).permit(principal, &RuleSet::beginning()).is_ok()
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
                OPERATIONS.iter().any(|(of, route, ..)| (*of == method.as_str() || *of == ANY) && *route == path);
            assert!(is_listed, "{method} {path} states no requirement");
        }
    }

    #[test]
    fn every_authorisation_case_has_an_operation() {
        let described = described();
        // The document does not describe itself.
        for (method, route, ..) in OPERATIONS.iter().filter(|(_, route, ..)| *route != "/openapi.json") {
            let is_described =
                described.iter().any(|(of, path)| path == route && (*method == ANY || of.as_str() == *method));
            assert!(is_described, "{method} {route} is no operation");
        }
    }

    #[test]
    fn each_operation_is_refused_to_who_lacks_its_scope() {
        let stranger = Principal::anonymous(faena_domain::Namespace::default());
        for (method, route, requirement, _) in OPERATIONS {
            let method = if *method == ANY { Method::PATCH } else { method.parse().expect("a method") };
            let may_with = |scopes| may(&with(scopes), &method, route);
            assert!(may_with(Scopes::NONE.with(Scope::Admin)), "{method} {route}: an administrator");
            assert_eq!(may(&stranger, &method, route), *requirement == Nothing, "{method} {route}: a stranger");
            let scope = match requirement {
                Nothing | Requirement::Account => {
                    assert!(may_with(Scopes::NONE), "{method} {route}");
                    continue;
                }
                Root => {
                    assert!(!may_with(Scopes::NONE.with(Scope::Deploy).with(Scope::Invoke)), "{method} {route}");
                    continue;
                }
                Requirement::Call => Scope::Invoke,
                Requirement::Scope(scope) => *scope,
                Requirement::OwnCall(scope) => {
                    let may = [*scope, Scope::Invoke].map(|scope| may_with(Scopes::NONE.with(scope)));
                    assert!(may == [true, true] && !may_with(Scopes::NONE), "{method} {route}");
                    continue;
                }
            };
            assert!(may_with(Scopes::NONE.with(scope)) && !may_with(Scopes::NONE), "{method} {route}");
            let others = Scope::ALL.into_iter().filter(|other| !other.includes(scope));
            let others = others.fold(Scopes::NONE, Scopes::with);
            assert!(!may_with(others), "{method} {route} with all other scopes");
        }
    }

    #[test]
    fn an_operation_that_states_nothing_is_for_administrators() {
        let deployer = with(Scopes::NONE.with(Scope::Deploy).with(Scope::Invoke));
        assert!(!may(&deployer, &Method::GET, "/new"));
        assert!(may(&with(Scopes::NONE.with(Scope::Admin)), &Method::GET, "/new"));
        assert!(may(&deployer, &Method::HEAD, "/functions"), "HEAD is GET");
        assert!(may(&deployer, &Method::GET, NO_ROUTE), "nothing is there");
    }

    #[test]
    fn an_operation_is_about_what_its_path_names() {
        let uri: Uri = "/account/%61nn/secret".parse().expect("a path");
        let operation = Operation::of(&Method::POST, "/account/{account}/secret", &uri);
        assert_eq!((&*operation.name(), operation.kind), ("ann", "account"));
    }

    #[test]
    fn a_path_that_rules_judge_means_the_same_to_every_reader() {
        let is_plain = |path: &str| is_plain(path, &percent_decode_str(path).decode_utf8_lossy());
        for path in ["/", "/a", "/a/b.c", "/%61", "/a%20b", "/..."] {
            assert!(is_plain(path), "{path}");
        }
        for path in [
            "//",
            "/a//b",
            "/a/",
            "/a/../b",
            "/a/.",
            "/%2e%2e/b",
            "/a%2Fb",
            "/a%2fb",
            "/a%5cb",
            "/a\\b",
            "/%00",
            "/%ff",
        ] {
            assert!(!is_plain(path), "{path}");
        }
    }
}
