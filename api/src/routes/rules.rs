//! Rules of a namespace.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use faena_auth::{
    Access, Account, AccountId, AccountKind, InvalidRule, Pattern, Principal, Requirement, Rule, RuleResource,
    RuleScope, RuleSet, Scope, Scopes, Target,
};
use faena_domain::RuleId;
use faena_domain::json::parse_object;
use faena_protocol::db::{RuleDelete, RulePut};
use serde::Deserialize;

use super::accounts::MAX_REQUEST;
use super::flag;
use crate::access::Audited;
use crate::app::App;
use crate::authorize::{Authenticated, kinds, permit_named};
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

/// What ids of rules that functions make begin with.
const OF_FUNCTIONS: &str = "public.";

#[derive(Debug, Deserialize)]
struct AskedRule {
    id: String,
    scope: String,
    resource: AskedResource,
    access: Access,
    priority: i32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AskedResource {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    endpoint: String,
}

impl From<InvalidRule> for Problem {
    fn from(error: InvalidRule) -> Self {
        Self::new(ErrorCode::InvalidRule, error)
    }
}

/// Refuses a rule that could never apply.
fn can_apply(resource: &AskedResource) -> Reply<()> {
    let AskedResource { kind, endpoint, .. } = resource;
    let kinds = kinds();
    if kind != "*" && !kinds.iter().any(|known| known.eq_ignore_ascii_case(kind)) {
        let kind: String = kind.chars().take(80).collect();
        let known: Vec<&str> = kinds.into_iter().collect();
        let detail = format!("{kind:?} is no type of resource: there are * and {}", known.join(", "));
        return Err(Problem::new(ErrorCode::InvalidRule, detail));
    }
    if endpoint != "*" && !endpoint.starts_with('/') {
        let endpoint: String = endpoint.chars().take(80).collect();
        let detail = format!("the endpoint {endpoint:?} never applies: a path begins with /, as \"/{endpoint}\"");
        return Err(Problem::new(ErrorCode::InvalidRule, detail));
    }
    Ok(())
}

impl AskedRule {
    fn rule(self) -> Reply<Rule> {
        can_apply(&self.resource)?;
        if self.id.to_ascii_lowercase().starts_with(OF_FUNCTIONS) {
            let detail = "ids that begin with public. are those of rules which faena.toml makes (access = \"public\")";
            return Err(Problem::new(ErrorCode::InvalidRule, detail));
        }
        let AskedResource { kind, name, endpoint } = self.resource;
        let resource = RuleResource {
            kind: Pattern::try_from(kind)?,
            name: Pattern::try_from(name)?,
            endpoint: Pattern::try_from(endpoint)?,
        };
        let scope = RuleScope::try_from(self.scope)?;
        Ok(Rule { id: self.id.parse()?, scope, resource, access: self.access, priority: self.priority })
    }
}

/// Refuses a change after which its author could change no rules, or an administrator of the namespace could not who has no
/// other scope.
fn keeps_author(principal: &Principal, rules: &RuleSet) -> Reply<()> {
    let may_change = |who: &Principal, endpoint| {
        let target = Target { kind: "rule", name: "", endpoint };
        who.may(Requirement::Scope(Scope::Admin), &target, rules).is_ok()
    };
    let administrator = Principal {
        namespace: principal.namespace.clone(),
        home: Some(principal.namespace.clone()),
        account: Account::Named { id: AccountId("".into()), name: "administrators".into(), kind: AccountKind::User },
        scopes: Scopes::NONE.with(Scope::Admin),
    };
    let locked_out =
        [principal, &administrator].into_iter().find(|who| !(may_change(who, "/rule") && may_change(who, "/rules")));
    let Some(locked_out) = locked_out else { return Ok(()) };
    let detail = format!("with these rules {} could change rules no more", locked_out.account);
    Err(Problem::new(ErrorCode::LockedOut, detail).hint("`?force=true` makes the change all the same"))
}

/// Adds a rule, or replaces the one with its id.
#[utoipa::path(post, path = "/rule", tag = "rules", params(("force" = Option<bool>, Query, description = "also where it locks out who makes it")), request_body(content = Object, content_type = "application/json", description = "`id`, `scope`, `resource`, `access`, `priority`"),
    responses((status = 201, description = "The new rule"), (status = 200, description = "The rule, replaced"), (status = 409, description = "It would lock out who makes it", body = Problem)))]
pub(crate) async fn put(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Reply<(StatusCode, Extension<Audited>, Json<Rule>)> {
    let force = flag(query.as_deref(), "force")?;
    let bytes = body::read_json(app.admission(), &headers, body, MAX_REQUEST).await?;
    let asked: AskedRule = parse_object(&bytes, &["id", "scope", "resource", "access", "priority"])?;
    let rule = asked.rule()?;
    permit_named(app.access(), &principal, (Requirement::Scope(Scope::Admin), "rule"), rule.id.as_str()).await?;
    if !force {
        keeps_author(&principal, &app.access().rules(&principal.namespace).await?.rules.with(rule.clone()))?;
    }
    let put = app.db().ask(&RulePut { namespace: principal.namespace.clone(), rule }).await?;
    app.access().refresh().await?;
    let status = if put.created { StatusCode::CREATED } else { StatusCode::OK };
    let audited = Audited { target: Some(put.record.id.to_string()), ..Audited::default() };
    Ok((status, Extension(audited), Json(put.record)))
}

/// The rules of the namespace, in the order in which they decide.
#[utoipa::path(get, path = "/rules", tag = "rules", responses((status = 200, description = "The rules")))]
pub(crate) async fn list(State(app): State<App>, Authenticated(principal): Authenticated) -> Reply<Json<Vec<Rule>>> {
    Ok(Json(app.access().rules(&principal.namespace).await?.rules.rules().to_vec()))
}

/// Removes a rule.
#[utoipa::path(delete, path = "/rule/{id}", tag = "rules", params(("id" = String, Path,), ("force" = Option<bool>, Query, description = "also where it locks out who asks")), responses((status = 204, description = "It is gone"), (status = 404, description = "There is none", body = Problem), (status = 409, description = "It would lock out who asks", body = Problem)))]
pub(crate) async fn delete(
    State(app): State<App>,
    Authenticated(principal): Authenticated,
    RawQuery(query): RawQuery,
    Path(id): Path<String>,
) -> Reply<StatusCode> {
    let force = flag(query.as_deref(), "force")?;
    let id: RuleId = id.parse()?;
    if id.as_str().to_ascii_lowercase().starts_with(OF_FUNCTIONS) {
        let detail = format!("{id} comes from faena.toml of a function (access = \"public\")");
        return Err(Problem::new(ErrorCode::Conflict, detail)
            .hint("upload the function without that, or add a DENIED rule of the same or a higher priority"));
    }
    if !force {
        keeps_author(&principal, &app.access().rules(&principal.namespace).await?.rules.without(&id))?;
    }
    app.db().ask(&RuleDelete { namespace: principal.namespace.clone(), id }).await?;
    app.access().refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
