//! Rules of a namespace.

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use faena_auth::{
    Access, InvalidRule, Pattern, Principal, Requirement, Rule, RuleResource, RuleScope, RuleSet, Scope, Target,
};
use faena_domain::RuleId;
use faena_domain::json::parse_object;
use faena_protocol::db::{RuleDelete, RulePut};
use serde::Deserialize;

use super::accounts::MAX_REQUEST;
use super::flag;
use crate::access::Audited;
use crate::app::App;
use crate::authorize::{Authenticated, permit_named};
use crate::body;
use crate::path::Path;
use crate::problem::{ErrorCode, Problem, Reply};

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

impl AskedRule {
    fn rule(self) -> Reply<Rule> {
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

/// Refuses a change after which its author could change no rules.
fn keeps_author(principal: &Principal, rules: &RuleSet) -> Reply<()> {
    let may_change = |endpoint| {
        let target = Target { kind: "rule", name: "", endpoint };
        principal.may(Requirement::Scope(Scope::Admin), &target, rules).is_ok()
    };
    if may_change("/rule") && may_change("/rules") {
        return Ok(());
    }
    let detail = format!("with these rules {} could change rules no more", principal.account);
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
    if !force {
        keeps_author(&principal, &app.access().rules(&principal.namespace).await?.rules.without(&id))?;
    }
    app.db().ask(&RuleDelete { namespace: principal.namespace.clone(), id }).await?;
    app.access().refresh().await?;
    Ok(StatusCode::NO_CONTENT)
}
