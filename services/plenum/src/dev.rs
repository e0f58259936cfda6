//! What `serve --dev` presets and shows: everything on this machine only, with secrets that live as long as the process.

use std::fmt::Write as _;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore;
use serde_json::{Map, Value, json};

use crate::compose::Bound;
use crate::config::Config;

/// Secrets of one run.
pub struct Dev {
    token_secret: String,
    api_key: String,
}

impl Dev {
    /// Makes new secrets.
    pub fn new() -> Self {
        Self { token_secret: random(), api_key: random() }
    }

    /// Settings that lie between the defaults and everything that the user says.
    pub fn preset(&self) -> Map<String, Value> {
        let preset = json!({
            "http_server": {"address": "127.0.0.1", "port": 8000, "internal_port": "9000"},
            "log": {"format": "pretty"},
            "client": {
                "allowed_origins": ["http://127.0.0.1:*", "http://localhost:*"],
                "allow_anonymous_connect_without_token": true,
                "token": {"hmac_secret_key": self.token_secret},
            },
            "http_api": {"key": self.api_key},
            "channel": {"namespaces": [open_namespace("demo"), open_namespace("chat")]},
        });
        match preset {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// What the user needs to know; secrets only where they are those made here.
    pub fn banner(&self, config: &Config, bound: &Bound) -> String {
        let (public, internal) = (bound.public, bound.internal.unwrap_or(bound.public));
        let mut text = String::new();
        let _ = writeln!(text, "\nplenum is running for development; the secrets below end with it\n");
        let _ = writeln!(text, "  page      http://{public}/   (open it in two windows)");
        let _ = writeln!(text, "  clients   ws://{public}{}", config.websocket.handler_prefix);
        let _ = writeln!(text, "  API       http://{internal}{}", config.http_api.handler_prefix);
        let _ = writeln!(text, "  health    http://{internal}{}", config.health.handler_prefix);
        let _ = writeln!(text, "  metrics   http://{internal}{}", config.prometheus.handler_prefix);
        if config.http_api.key.expose() == self.api_key {
            let _ = writeln!(text, "\n  API key       {}", self.api_key);
        }
        if config.access.token.hmac_secret_key == self.token_secret {
            let _ = writeln!(text, "  token secret  {}   (client.token.hmac_secret_key, HS256)", self.token_secret);
        }
        let key = if config.http_api.key.expose() == self.api_key { self.api_key.as_str() } else { "KEY" };
        let body = r#"{"channel": "demo:lobby", "data": {"text": "hello"}}"#;
        let prefix = &config.http_api.handler_prefix;
        let _ = writeln!(text, "\n  curl -H 'X-API-Key: {key}' -d '{body}' http://{internal}{prefix}/publish\n");
        text
    }
}

/// A namespace in which anybody may do anything.
fn open_namespace(name: &str) -> Value {
    json!({
        "name": name,
        "presence": true,
        "join_leave": true,
        "history_size": 20_000,
        "history_ttl": "1h",
        "allow_positioning": true,
        "allow_recovery": true,
        "allow_subscribe_for_client": true,
        "allow_subscribe_for_anonymous": true,
        "allow_publish_for_subscriber": true,
        "allow_publish_for_anonymous": true,
        "allow_presence_for_subscriber": true,
        "allow_presence_for_anonymous": true,
        "allow_history_for_subscriber": true,
        "allow_history_for_anonymous": true,
    })
}

fn random() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};

    #[test]
    fn the_preset_is_usable_and_local() {
        let dev = Dev::new();
        let loaded = load(&Sources { preset: dev.preset(), ..Sources::default() }).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        assert_eq!(loaded.config.http_server.address, "127.0.0.1");
        assert_ne!(loaded.config.http_api.key.expose(), Dev::new().api_key, "each run has its own");
    }

    #[test]
    fn the_banner_shows_only_secrets_that_were_made_here() {
        let dev = Dev::new();
        let mut config = load(&Sources { preset: dev.preset(), ..Sources::default() }).unwrap().config;
        let bound = Bound { public: ([127, 0, 0, 1], 8000).into(), internal: None };
        let banner = dev.banner(&config, &bound);
        assert!(banner.contains(&dev.api_key) && banner.contains(&dev.token_secret));
        config.access.token.hmac_secret_key = "the user's own".into();
        assert!(!dev.banner(&config, &bound).contains("the user's own"));
    }
}
