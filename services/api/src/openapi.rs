//! The OpenAPI 3.1 document of the API, generated from the types that requests are decoded into and replies encoded
//! from (their JSON Schemas, draft 2020-12, are what OpenAPI 3.1 takes).

use plenum_telemetry::ApiMethod;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::batch::BatchRequest;
use crate::control::*;
use crate::operations::HealthReport;
use crate::request::*;
use crate::response::*;
use crate::{ApiError, request};

struct Operation {
    method: ApiMethod,
    summary: &'static str,
    request: fn(&mut SchemaGenerator) -> Value,
    response: fn(&mut SchemaGenerator) -> Value,
    body_required: bool,
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn operation<Q: JsonSchema, R: JsonSchema>(method: ApiMethod, summary: &'static str) -> Operation {
    Operation { method, summary, request: schema::<Q>, response: schema::<Response<R>>, body_required: true }
}

/// A method that takes an empty body as well.
fn question<Q: JsonSchema, R: JsonSchema>(method: ApiMethod, summary: &'static str) -> Operation {
    Operation { body_required: false, ..operation::<Q, R>(method, summary) }
}

fn operations() -> Vec<Operation> {
    use ApiMethod::*;
    vec![
        operation::<PublishRequest, PublishResult>(Publish, "Publish into a channel"),
        operation::<BroadcastRequest, BroadcastResult>(Broadcast, "Publish the same payload into many channels"),
        operation::<SubscribeRequest, Empty>(Subscribe, "Subscribe a user's connections on the server's side"),
        operation::<UnsubscribeRequest, Empty>(Unsubscribe, "End a user's subscription"),
        operation::<DisconnectRequest, Empty>(Disconnect, "Close a user's connections"),
        operation::<RefreshRequest, Empty>(Refresh, "Change when a user's connections expire"),
        operation::<PresenceRequest, PresenceResult>(Presence, "Who is subscribed to a channel"),
        operation::<PresenceStatsRequest, PresenceStatsResult>(PresenceStats, "How many are subscribed to a channel"),
        operation::<HistoryRequest, HistoryResult>(History, "Read a channel's history"),
        operation::<HistoryRemoveRequest, Empty>(HistoryRemove, "Hide a channel's history"),
        question::<ChannelsRequest, ChannelsResult>(Channels, "Channels with subscribers"),
        question::<request::InfoRequest, InfoResult>(Info, "The nodes of the cluster"),
        operation::<BlockUserRequest, Empty>(BlockUser, "Keep a user out"),
        operation::<UnblockUserRequest, Empty>(UnblockUser, "Let a user in again"),
        operation::<RevokeTokenRequest, Empty>(RevokeToken, "Call a token back by its id"),
        operation::<InvalidateUserTokensRequest, Empty>(InvalidateUserTokens, "Call a user's older tokens back"),
        operation::<ConnectionsRequest, ConnectionsResult>(Connections, "A user's connections"),
        Operation {
            method: Batch,
            summary: "Carry out many commands",
            request: schema::<BatchRequest>,
            response: schema::<BatchResult>,
            body_required: true,
        },
    ]
}

/// The document of an API under `prefix`, such as `/api`.
pub fn document(prefix: &str) -> Value {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut requests = settings().for_deserialize().into_generator();
    let mut replies = settings().for_serialize().into_generator();
    let error = schema::<ApiError>(&mut replies);
    let mut paths = Map::new();
    for operation in operations() {
        let path = format!("{prefix}/{}", plenum_telemetry::Label::name(operation.method));
        paths.insert(path, json!({ "post": post(&operation, &mut requests, &mut replies, &error) }));
    }
    paths.insert(format!("{prefix}/openapi.json"), open("This document", "openapi", json!({ "type": "object" }), None));
    let stats = "What the whole server is doing, per replica and summed";
    let mut stats = open(stats, "stats", json!({ "type": "object" }), Some(error.clone()));
    if let Some(get) = stats["get"].as_object_mut() {
        // With a key, as every method.
        get.remove("security");
        get["responses"]["401"] = json!({ "description": "No valid API key", "content": json_content(error.clone()) });
    }
    paths.insert(format!("{prefix}/stats"), stats);
    let health = schema::<HealthReport>(&mut replies);
    paths.insert("/health".into(), open("Whether publications are delivered", "health", health.clone(), Some(health)));
    let mut schemas = requests.take_definitions(true);
    schemas.append(&mut replies.take_definitions(true));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Plenum server API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Compatible with Centrifugo's HTTP API. An error of a method is told in the body with status \
                200, or by the status where the request carries `X-Centrifugo-Error-Mode: transport`.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "header": [] }, { "authorization": [] }, { "query": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "header": { "type": "apiKey", "in": "header", "name": "X-API-Key" },
                "authorization": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "`apikey`, a blank and the key.",
                },
                "query": {
                    "type": "apiKey",
                    "in": "query",
                    "name": "api_key",
                    "description": "Queries end up in access logs: prefer the header.",
                },
            },
        },
    })
}

fn post(operation: &Operation, requests: &mut SchemaGenerator, replies: &mut SchemaGenerator, error: &Value) -> Value {
    let name = plenum_telemetry::Label::name(operation.method);
    let content = |schema: Value| json!({ "application/json": { "schema": schema } });
    let failed = |description: &str| json!({ "description": description, "content": content(error.clone()) });
    let mut responses = Map::new();
    responses.insert(
        "200".into(),
        json!({ "description": "The result, or an error of the method", "content": content((operation.response)(replies)) }),
    );
    for (status, description) in [
        ("400", "The body is not what the method takes; code 106, 107 or 108 where statuses are asked for"),
        ("401", "No valid API key"),
        ("404", "Unknown channel or method"),
        ("408", "The body was not complete in time"),
        ("413", "The body is too long"),
        ("416", "Unrecoverable position"),
        ("500", "Internal error; worth trying again"),
    ] {
        responses.insert(status.into(), failed(description));
    }
    responses.insert(
        "405".into(),
        json!({ "description": "Only POST is allowed", "content": { "text/plain": { "schema": { "type": "string" } } } }),
    );
    json!({
        "operationId": name,
        "summary": operation.summary,
        "requestBody": { "required": operation.body_required, "content": content((operation.request)(requests)) },
        "responses": responses,
    })
}

/// A path that is read without a key.
fn json_content(schema: Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

fn open(summary: &str, id: &str, ok: Value, unavailable: Option<Value>) -> Value {
    let mut responses = json!({
        "200": { "description": summary, "content": json_content(ok) },
        "405": {
            "description": "Only GET and HEAD are allowed",
            "content": { "text/plain": { "schema": { "type": "string" } } },
        },
    });
    if let Some(schema) = unavailable {
        responses["503"] = json!({ "description": "Not now; the body says why", "content": json_content(schema) });
    }
    json!({ "get": { "operationId": id, "summary": summary, "security": [], "responses": responses } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use plenum_telemetry::Label;

    #[test]
    fn every_method_is_described() {
        let document = document("/api");
        assert_eq!(document["openapi"], "3.1.0");
        for method in ApiMethod::ALL {
            let post = &document["paths"][format!("/api/{}", method.name())]["post"];
            assert_eq!(post["operationId"], method.name());
            for status in ["200", "400", "401", "404", "405", "413"] {
                assert!(post["responses"][status].is_object(), "{} {status}", method.name());
            }
        }
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        fn references(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        found.push(reference.clone());
                    }
                    fields.values().for_each(|field| references(field, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document = document("/api");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 20, "{found:?}");
        for reference in found {
            let pointer = reference.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{reference}");
        }
    }

    #[test]
    fn what_is_required_is_said() {
        let document = document("/api");
        let schemas = &document["components"]["schemas"];
        assert_eq!(schemas["PublishRequest"]["required"], json!(["channel"]));
        assert_eq!(schemas["PublishRequest"]["properties"]["channel"]["type"], "string");
        assert_eq!(schemas["PublishRequest"]["properties"]["channel"]["maxLength"], 255);
        assert_eq!(schemas["DisconnectRequest"]["anyOf"][0]["required"], json!(["user"]));
        assert_eq!(schemas["BlockUserRequest"]["required"], json!(["user"]));
        assert_eq!(schemas["BatchRequest"]["required"], json!(["commands"]));
        assert_eq!(schemas["Disconnect"]["properties"]["code"]["minimum"], 3000);
        assert_eq!(schemas["Disconnect"]["required"], json!(["code"]));
        assert!(schemas["RefreshRequest"]["required"] == json!(["user"]), "info may be absent");
    }
}
