//! The routes, one module for each resource. A route is registered by its OpenAPI description, so none can lack one.

mod accounts;
mod asked_request;
mod audit;
mod builds;
pub(crate) mod calls;
mod config;
mod describe;
mod events;
mod functions;
mod health;
mod images;
pub(crate) mod invoke;
mod keys;
mod login;
mod logs;
mod namespaces;
mod nodes;
mod providers;
mod replay;
mod rules;
mod runtimes;
mod tokens;
mod upload;
mod workers;

use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn_with_state;
use axum::routing::get;
use axum::{Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::problem::{ErrorCode, Problem, Reply};
use crate::{guard, problem};

/// The value of the one parameter that a query may have, which is true or false.
fn flag(query: Option<&str>, name: &str) -> Reply<bool> {
    let mut value = false;
    for (given, text) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let invalid = || {
            let (given, text): (String, String) = (given.chars().take(80).collect(), text.chars().take(80).collect());
            let detail = if given == name {
                format!("{name} must be true or false, not {text:?}")
            } else {
                format!("{given:?} is no parameter here; the parameter is {name}, true or false")
            };
            Problem::new(ErrorCode::InvalidQuery, detail)
        };
        value = match (&*given == name, &*text) {
            (true, "true") => true,
            (true, "false") => false,
            _ => return Err(invalid()),
        };
    }
    Ok(value)
}

/// Refuses a query on a route of which only other methods take one.
fn no_query(query: Option<&str>) -> Reply<()> {
    match query {
        Some(query) if !query.is_empty() => {
            Err(Problem::new(ErrorCode::InvalidQuery, "this method takes no query on this route"))
        }
        _ => Ok(()),
    }
}

#[derive(OpenApi)]
#[openapi(info(
    title = "Faena",
    description = "Self-hosted functions: upload an archive, name the runtime, call it over HTTP.",
    license(name = "MIT OR Apache-2.0")
))]
struct Info;

fn documented() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Info::openapi())
        .routes(routes!(runtimes::register))
        .routes(routes!(runtimes::list))
        .routes(routes!(runtimes::get, runtimes::delete))
        .routes(routes!(upload::register))
        .routes(routes!(functions::list))
        .routes(routes!(functions::get, functions::delete))
        .routes(routes!(functions::versions))
        .routes(routes!(builds::get, builds::retry))
        .routes(routes!(invoke::invoke))
        .routes(routes!(calls::list))
        .routes(routes!(calls::get, calls::cancel))
        .routes(routes!(replay::one))
        .routes(routes!(replay::dead_letters))
        .routes(routes!(replay::forget))
        .routes(routes!(replay::many))
        .routes(routes!(logs::of_call))
        .routes(routes!(logs::of_function))
        .routes(routes!(accounts::setup))
        .routes(routes!(accounts::make))
        .routes(routes!(accounts::list))
        .routes(routes!(accounts::get, accounts::delete))
        .routes(routes!(accounts::change_secret))
        .routes(routes!(accounts::whoami))
        .routes(routes!(tokens::make, tokens::delete))
        .routes(routes!(login::begin))
        .routes(routes!(login::finish))
        .routes(routes!(providers::put))
        .routes(routes!(providers::list))
        .routes(routes!(providers::get, providers::delete))
        .routes(routes!(keys::make))
        .routes(routes!(keys::list))
        .routes(routes!(keys::delete))
        .routes(routes!(rules::put))
        .routes(routes!(rules::list))
        .routes(routes!(rules::delete))
        .routes(routes!(namespaces::make))
        .routes(routes!(namespaces::list))
        .routes(routes!(namespaces::get, namespaces::patch, namespaces::delete))
        .routes(routes!(config::list))
        .routes(routes!(config::rotate))
        .routes(routes!(config::put, config::get, config::delete))
        .routes(routes!(audit::list))
        .routes(routes!(workers::list))
        .routes(routes!(images::put, images::get, images::delete))
        .routes(routes!(images::list))
        .routes(routes!(nodes::make_token))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get, nodes::patch, nodes::delete))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(nodes::drain))
        .routes(routes!(health::healthy))
        .routes(routes!(health::ready))
        .routes(routes!(health::metrics))
}

/// The OpenAPI description of every route.
pub fn description() -> serde_json::Value {
    let mut document: Document = documented().into_openapi();
    describe::function_calls(&mut document);
    let mut description = serde_json::to_value(document).unwrap_or_default();
    describe::complete(&mut description);
    description
}

/// All routes behind the guard.
pub fn router(app: App) -> Router {
    let (router, _) = documented().split_for_parts();
    let document = description();
    let all = router.route("/openapi.json", get(|| async move { Json(document) }));
    guarded(all, app)
}

/// The route for calls that are answered once they are stored, for the thread that owns their connections.
pub(crate) fn accepting(app: App) -> Router {
    let (router, _) = OpenApiRouter::new().routes(routes!(invoke::invoke)).split_for_parts();
    guarded(router, app)
}

fn guarded(router: Router<App>, app: App) -> Router {
    router
        .fallback(problem::not_found)
        .method_not_allowed_fallback(problem::method_not_allowed)
        .layer(from_fn_with_state(app.clone(), guard::guard))
        // Every route bounds its body itself, while it reads.
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(problem::panicked))
        .with_state(app)
}
