//! The OpenAPI document as it is served: what the derives cannot say is added to every operation in one way.

use faena_domain::CallStatus;
use serde_json::{Map, Value, json};
use utoipa::openapi::path::{HttpMethod, OperationBuilder, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, Required, ResponseBuilder};

/// Names of runtimes and functions (`faena_domain::name`).
const NAME: &str = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$";
/// Names of images that have no registry before them (`faena_domain::image`).
const IMAGE: &str = "^[a-z0-9]{1,62}(:[A-Za-z0-9_]{1,62})?$";
/// What any request may be answered with: what the guard and the bounds refuse, and what fails on our side.
const ANYWHERE: [(&str, &str); 15] = [
    ("400", "The request is wrong; `code` says how"),
    ("401", "A credential is needed, or the one that was sent is none"),
    ("403", "It is not permitted, or comes from a web page of another site"),
    ("404", "What it names is not there"),
    ("408", "The body did not arrive in time"),
    ("409", "It stands against what is there"),
    ("413", "The body is too large"),
    ("415", "The body is of another kind than the route takes"),
    ("421", "The Host header names another host"),
    ("422", "Well-formed, and outside of what is permitted"),
    ("429", "A queue is full; `Retry-After` says when to come back"),
    ("431", "The headers are too large"),
    ("500", "A bug of the platform, whose log says which"),
    ("503", "Busy, stopping, or without its database; `Retry-After` says when to come back"),
    ("507", "The platform's disk is nearly full"),
];

/// Describes calls on `/f/`, of any method: they are no route of the router, and the derive knows no wildcard paths.
pub(super) fn function_calls(document: &mut OpenApi) {
    let parameter = |name: &str| {
        ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True).build()
    };
    let operation = |names: &[&str]| {
        let mut operation = OperationBuilder::new()
            .tag("calls")
            .summary(Some("Calls a function with the body, and answers with what it put out"))
            .response("200", ResponseBuilder::new().description("The result's bytes").build())
            .response(
                "default",
                ResponseBuilder::new().description("What a function answers with a head of its own").build(),
            )
            .response("502", ResponseBuilder::new().description("The function failed").build())
            .response("504", ResponseBuilder::new().description("It took too long").build());
        for name in names {
            operation = operation.parameter(parameter(name));
        }
        operation.build()
    };
    let methods = [HttpMethod::Get, HttpMethod::Post, HttpMethod::Put, HttpMethod::Patch, HttpMethod::Delete];
    for (path, names) in [("/f/{name}", &["name"][..]), ("/f/{name}/{path}", &["name", "path"][..])] {
        let item = PathItem::from_http_methods(methods.clone(), operation(names));
        document.paths.paths.insert(path.to_owned(), item);
    }
}

/// Completes a document in place.
pub(super) fn complete(document: &mut Value) {
    document["components"]["securitySchemes"] = json!({"credential": {
        "type": "http", "scheme": "bearer", "description": "An access token (`POST /token`) or a key (`POST /key`)"}});
    document["security"] = json!([{"credential": []}, {}]);
    let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) else { return };
    for (path, item) in paths {
        let Some(operations) = item.as_object_mut() else { continue };
        for (method, operation) in operations {
            let Some(operation) = operation.as_object_mut() else { continue };
            operation.insert("operationId".to_owned(), Value::String(id(method, path)));
            if is_of_a_namespace(operation) {
                name_a_namespace(operation);
            }
            parameters(path, operation);
            responses(operation);
            if let (Some(false), Some(body)) = (needs_body(path), operation.get_mut("requestBody")) {
                body["required"] = json!(false);
            }
            if let (Some(schema), Some(content)) = (
                body(path),
                operation.get_mut("requestBody").and_then(|body| body.pointer_mut("/content/application~1json")),
            ) {
                content["schema"] = schema;
            }
        }
    }
}

/// A name for an operation: the method, and the words of the path that are no parameters.
fn id(method: &str, path: &str) -> String {
    let words = path.split('/').filter(|word| !word.is_empty());
    let mut id = method.to_owned();
    for word in words {
        match word.strip_prefix('{') {
            // Of the function itself, with a path behind its name.
            Some("path}") => id.push_str("Path"),
            Some(_) => {}
            None => {
                let (first, rest) = word.split_at(1);
                id.push_str(&first.to_uppercase());
                id.push_str(&rest.replace('.', "_"));
            }
        }
    }
    id
}

/// Whether a route that may take a body needs one; none where its description says so already.
fn needs_body(path: &str) -> Option<bool> {
    (path == "/call/{callNum}/replay").then_some(false)
}

/// An object that has these properties and no others.
fn object(required: &[&str], mut properties: Value) -> Value {
    // What may be left out may be null as well.
    for (name, schema) in properties.as_object_mut().into_iter().flatten() {
        if let (false, Some(kind)) = (required.contains(&name.as_str()), schema.get("type").cloned()) {
            schema["type"] = json!([kind, "null"]);
            if let Some(values) = schema.get_mut("enum").and_then(Value::as_array_mut) {
                values.push(Value::Null);
            }
        }
    }
    json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
}

/// Labels of nodes (`faena_domain::node`).
fn labels() -> Value {
    json!({"type": "object", "maxProperties": faena_domain::node::MAX_LABELS,
        "propertyNames": {"pattern": "^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$"},
        "additionalProperties": {"type": "string", "pattern": "^[A-Za-z0-9._/-]{1,63}$"}})
}

/// Names of scopes.
fn scopes() -> Value {
    json!({"type": "array", "items": {"type": "string", "pattern": NAME}, "maxItems": faena_auth::MAX_SCOPES})
}

/// The bodies of routes about namespaces.
fn namespace_body(path: &str) -> Option<Value> {
    let count = json!({"type": ["integer", "null"], "minimum": 0, "maximum": u32::MAX});
    let bytes = json!({"type": ["integer", "null"], "minimum": 0});
    let quota = json!({"type": "object", "additionalProperties": false, "properties": {
        "functions": count, "callsPerMinute": count, "concurrentCalls": count, "buildMinutesPerDay": count,
        "memoryBytes": bytes, "storedBytes": bytes}});
    let yes = json!({"type": "boolean"});
    let allow = json!({"type": "object", "additionalProperties": false, "properties": {"egress": yes, "minimum": yes, "preload": yes, "public": yes}});
    let weight = json!({"type": "integer", "minimum": 1, "maximum": faena_domain::MAX_WEIGHT});
    let label = json!({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"});
    Some(match path {
        "/namespace/{namespace}" => {
            object(&[], json!({"allow": allow, "quota": quota, "weight": weight, "nodeSelector": labels()}))
        }
        "/namespace" => object(
            &["name"],
            json!({"name": label, "allow": allow, "quota": quota, "weight": weight, "nodeSelector": labels()}),
        ),
        _ => return None,
    })
}

/// An identity provider.
fn provider() -> Value {
    let name = json!({"type": "string", "pattern": NAME});
    let text = || json!({"type": "string", "minLength": 1, "maxLength": 1000});
    let mapping = object(
        &["claim", "value", "scopes"],
        json!({"claim": text(), "value": text(), "namespace": name, "scopes": scopes()}),
    );
    let mappings = json!({"type": "array", "items": mapping, "maxItems": faena_auth::MAX_MAPPINGS});
    let scopes = json!({"type": "array", "items": {"type": "string", "pattern": "^[!-~]{1,1000}$"}, "maxItems": 32});
    object(
        &["name", "issuer", "clientId", "mappings"],
        json!({"name": name, "issuer": text(), "clientId": text(), "clientSecret": text(), "scopes": scopes, "mappings": mappings, "ca": text()}),
    )
}

/// The bodies of routes about accounts and rules.
fn account_body(path: &str) -> Option<Value> {
    let name = json!({"type": "string", "pattern": NAME});
    let text = || json!({"type": "string"});
    let secret = || json!({"type": "string", "minLength": 12, "maxLength": 1024});
    Some(match path {
        "/setup" => object(&["token", "name", "secret"], json!({"token": text(), "name": name, "secret": text()})),
        "/account" => object(
            &["name", "type"],
            json!({
                "name": name,
                "type": {"type": "string", "enum": ["user", "service"]},
                "secret": secret(),
                "scopes": scopes(),
                "metadata": {"type": "object"},
                "namespace": name,
            }),
        ),
        "/account/{account}/secret" => object(&["new"], json!({"old": text(), "new": secret()})),
        "/token" => object(
            &[],
            json!({"name": text(), "id": text(), "secret": text(), "namespace": name, "refreshToken": text()}),
        ),
        "/key" => object(
            &["name"],
            json!({"name": name, "scopes": scopes(), "expiresAt": {"type": "string", "format": "date-time"}}),
        ),
        "/rule" => {
            let pattern = json!({"type": "string", "description": "`*`, a name, or a path that ends in `/*`"});
            let kinds: Vec<&str> = std::iter::once("*").chain(crate::authorize::kinds()).collect();
            let endpoint = json!({"type": "string", "pattern": "^(\\*|/.*)$"});
            let resource = json!({"type": "object", "additionalProperties": false, "required": ["type", "name", "endpoint"],
                "properties": {"type": {"type": "string", "enum": kinds}, "name": pattern, "endpoint": endpoint}});
            object(
                &["id", "scope", "resource", "access", "priority"],
                json!({
                    "id": name,
                    "scope": {"type": "string", "description": "empty for everyone, `*` for accounts of the namespace, `+` for any account, or a scope"},
                    "resource": resource,
                    "access": {"type": "string", "enum": ["GRANTED", "DENIED"]},
                    "priority": {"type": "integer", "format": "int32"},
                }),
            )
        }
        _ => return None,
    })
}

/// The bodies of routes that take JSON; each refuses other members.
fn body(path: &str) -> Option<Value> {
    let name = json!({"type": "string", "pattern": NAME});
    let number = || json!({"type": "integer", "format": "int64", "minimum": 1});
    Some(match path {
        "/registerRuntime" => object(
            &["image", "path", "dependencies", "run"],
            json!({
                "image": {"type": "string", "description": "What functions run on"},
                "path": {"type": "string", "description": "Where code is put: absolute and normal"},
                "dependencies": {"type": "string", "description": "The command that installs packages; empty where there is nothing to build"},
                "run": {"type": "string", "description": "The command that runs a function"},
                "name": name,
                "engine": {"type": "string", "enum": ["docker", "sandbox"]},
                "limits": {"type": "object"},
                "env": {"type": "object", "additionalProperties": {"type": "string"}},
                "preload": {"type": "string", "enum": ["none", "runtime", "function"]},
                "nodeSelector": labels(),
                "allow": {"type": "object", "additionalProperties": false, "properties": {
                    "egress": {"type": "boolean"}, "minimum": {"type": "boolean"}, "preload": {"type": "boolean"}, "public": {"type": "boolean"},
                    "networks": {"type": "array", "items": {"type": "string"}},
                    "scopes": {"type": "array", "items": {"type": "string", "pattern": NAME}, "maxItems": 16}}},
            }),
        ),
        "/invokeFunction" => object(
            &["funcName", "params"],
            json!({
                "funcName": name,
                "params": {"description": "Any JSON"},
                "request": {"type": "object", "additionalProperties": false, "properties": {
                    "method": {"type": "string", "pattern": "^[A-Z]{1,32}$"},
                    "path": {"type": "string", "pattern": "^/[A-Za-z0-9/._~%-]*$"},
                    "query": {"type": "string", "pattern": "^[A-Za-z0-9=&._~%-]*$"},
                    "headers": {"type": "object", "additionalProperties": {"type": "string"}}}},
                "version": number(),
                "timeoutMs": number(),
                "maxAgeMs": number(),
                "retries": {"type": "integer", "minimum": 0, "maximum": faena_domain::retry::MAX_RETRIES},
                "priority": {"type": "integer", "minimum": -100, "maximum": 100},
                "runAt": {"type": "string", "format": "date-time"},
                "callback": {"type": "string", "format": "uri"},
            }),
        ),
        "/call/{callNum}/replay" => object(&[], json!({"version": number()})),
        "/deadLetters/replay" => {
            let nums =
                json!({"type": "array", "items": number(), "minItems": 1, "maxItems": faena_domain::limits::MAX_PAGE});
            object(&[], json!({"callNums": nums, "funcName": name, "version": number()}))
        }
        "/provider" => provider(),
        _ => return account_body(path).or_else(|| namespace_body(path)),
    })
}

/// Whether a route concerns what is in one namespace.
fn is_of_a_namespace(operation: &Map<String, Value>) -> bool {
    let tag = operation.get("tags").and_then(|tags| tags[0].as_str());
    !matches!(tag, Some("namespaces" | "operations"))
}

/// Adds the header that names another namespace than the account's own.
fn name_a_namespace(operation: &mut Map<String, Value>) {
    let parameters = operation.entry("parameters").or_insert_with(|| json!([]));
    let header = json!({"name": "Faena-Namespace", "in": "header", "required": false, "schema": {"type": "string"},
        "description": "The namespace that the request concerns, where it is not the account's own"});
    parameters.as_array_mut().into_iter().for_each(|parameters| parameters.push(header.clone()));
}

fn parameters(path: &str, operation: &mut Map<String, Value>) {
    let of_logs = path == "/function/{name}/logs";
    let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut) else { return };
    for parameter in parameters.iter_mut().filter_map(Value::as_object_mut) {
        let is_in_path = parameter.get("in") == Some(&json!("path"));
        let schema = match parameter.get("name").and_then(Value::as_str).unwrap_or_default() {
            "name" | "funcName" | "runtime" | "Faena-Namespace" => json!({"type": "string", "pattern": NAME}),
            "image" => json!({"type": "string", "pattern": IMAGE}),
            "callNum" | "cursor" => json!({"type": "integer", "format": "int64", "minimum": 1}),
            "status" => {
                // Only calls that have ended are asked for their logs by status.
                let is_asked_for = |status: &CallStatus| !of_logs || status.is_terminal();
                let names: Vec<&str> =
                    CallStatus::ALL.iter().filter(|status| is_asked_for(status)).map(|s| s.as_str()).collect();
                json!({"type": "string", "enum": names})
            }
            "version" => json!({"type": "integer", "format": "int64", "minimum": 1}),
            "since" if path == "/audit" => json!({"type": "string", "format": "date-time"}),
            "since" => {
                json!({"type": "string", "pattern": "^[1-9][0-9]{0,8}(ms|s|m|h|d)$|^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]Z$"})
            }
            "limit" if of_logs => json!({"type": "integer", "minimum": 1, "maximum": super::logs::MAX_LINES}),
            "Idempotency-Key" => json!({"type": "string", "pattern": "^[!-~]{1,255}$"}),
            "limit" => json!({"type": "integer", "minimum": 1, "maximum": faena_domain::limits::MAX_PAGE}),
            _ => json!({"type": "string"}),
        };
        if is_in_path || !parameter.contains_key("schema") || schema.as_object().is_some_and(|schema| schema.len() > 1)
        {
            parameter.insert("schema".to_owned(), schema);
        }
    }
}

fn responses(operation: &mut Map<String, Value>) {
    let problem = || json!({"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}});
    let responses = operation.entry("responses").or_insert_with(|| json!({}));
    let Some(responses) = responses.as_object_mut() else { return };
    for (status, description) in ANYWHERE {
        responses.entry(status).or_insert_with(|| json!({"description": description, "content": problem()}));
    }
    for (status, response) in responses.iter_mut().filter(|(status, _)| status.as_str() >= "400") {
        let is_problem = response
            .pointer("/content/application~1json/schema/$ref")
            .is_none_or(|schema| *schema == "#/components/schemas/Problem");
        if is_problem && let Some(response) = response.as_object_mut() {
            response.insert("content".to_owned(), problem());
            if matches!(status.as_str(), "429" | "503") {
                let seconds = json!({"description": "Seconds", "schema": {"type": "integer"}});
                response.insert("headers".to_owned(), json!({"Retry-After": seconds}));
            }
        }
    }
}

/// The operation ids of a document, and whether each is there once.
#[cfg(test)]
fn ids(document: &Value) -> (usize, std::collections::BTreeSet<String>) {
    let items = document["paths"].as_object().expect("paths").values();
    let operations = items.flat_map(|item| item.as_object().expect("operations").values().cloned().collect::<Vec<_>>());
    let ids: Vec<String> =
        operations.map(|operation| operation["operationId"].as_str().expect("an id").to_owned()).collect();
    (ids.len(), ids.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_name_of_its_own_and_says_how_it_fails() {
        let document = crate::routes::description();
        let (count, names) = ids(&document);
        assert_eq!(names.len(), count, "{names:?}");
        assert!(names.contains("getFunctionBuild") && names.contains("postFPath"), "{names:?}");
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                let refused = &operation["responses"]["421"]["content"]["application/problem+json"];
                assert!(refused.is_object(), "{method} {path}");
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    assert!(parameter["schema"].is_object(), "{method} {path} {}", parameter["name"]);
                }
            }
        }
    }

    #[test]
    fn an_upload_is_a_file() {
        let document = crate::routes::description();
        let body = &document["paths"]["/registerFunction/{runtime}/{funcName}"]["post"]["requestBody"]["content"]["multipart/form-data"];
        assert_eq!(body["schema"]["$ref"], "#/components/schemas/UploadForm");
        let form = &document["components"]["schemas"]["UploadForm"];
        assert_eq!(form["properties"]["module"]["format"], "binary", "{form}");
        assert_eq!(form["required"], json!(["module"]));
    }
}
