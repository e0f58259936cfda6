//! Checks within and between sections, after each value was read.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use plenum_channels::duration;
use plenum_tokens::{TokenConfig, TokenConfigError, Verifier};
use plenum_websocket::{Origins, TrustedProxies};

use super::error::Problem;
use super::sections::{Config, HttpServer, TlsSection};

/// Payloads travel in an envelope of about this size, in bytes.
const ENVELOPE: usize = 2048;

/// Reports everything that cannot be used.
pub fn check(config: &Config, warnings: &mut Vec<String>, problems: &mut Vec<Problem>) {
    let mut checks = Checks { problems };
    checks.server(&config.http_server);
    checks.bounds(config);
    checks.paths(config);
    checks.insecure(config);
    checks.tokens("client.token", &config.access.token);
    if config.subscription_token.enabled {
        checks.tokens("client.subscription_token", &config.subscription_token.token);
    }
    if let Err(error) = Origins::new(&config.access.allowed_origins) {
        checks.add("client.allowed_origins", Some(format!("{:?}", error.pattern)), error.to_string());
    }
    if let Err(error) = TrustedProxies::new(&config.http_server.trusted_proxies) {
        let key = format!("http_server.trusted_proxies[{}]", error.index);
        checks.add(&key, Some(format!("{:?}", error.text)), error.to_string());
    }
    if let Err(reason) = config.log.directives() {
        checks.add("log.level", Some(format!("{:?}", config.log.level)), reason);
    }
    match config.settings().compile() {
        Ok(compiled) => warnings.extend(compiled.warnings),
        Err(error) => {
            let key = error.key().to_owned();
            // The message is "key = value: text".
            let message = error.to_string();
            let rest = message.strip_prefix(&key).unwrap_or(&message).trim_start_matches([' ', '=']);
            let (value, text) = rest.split_once(": ").unwrap_or(("", rest));
            checks.add(&key, Some(value.to_owned()), text);
        }
    }
    super::nats::check(config, warnings, checks.problems);
    super::redis::check(config, warnings, checks.problems);
    super::consumers::check(config, checks.problems);
    warn(config, warnings);
}

struct Checks<'a> {
    problems: &'a mut Vec<Problem>,
}

impl Checks<'_> {
    fn add(&mut self, key: &str, value: Option<String>, text: impl Into<String>) {
        self.problems.push(Problem { source: String::new(), key: key.to_owned(), value, text: text.into() });
    }

    fn server(&mut self, server: &HttpServer) {
        for (key, address) in
            [("http_server.address", &server.address), ("http_server.internal_address", &server.internal_address)]
        {
            if resolve(address, 0).is_err() {
                self.add(key, Some(format!("{address:?}")), "must be an IP address or a host name that resolves");
            }
        }
        if server.internal_port().is_err() {
            let value = Some(format!("{:?}", server.internal_port));
            self.add("http_server.internal_port", value, "must be a port from 0 to 65535, or empty");
        }
        for (key, tls) in [("http_server.tls", &server.tls), ("http_server.internal_tls", &server.internal_tls)] {
            self.tls(key, tls);
        }
    }

    fn tls(&mut self, section: &str, tls: &TlsSection) {
        for (name, path) in [("cert_pem", &tls.cert_pem), ("key_pem", &tls.key_pem)] {
            let key = format!("{section}.{name}");
            if path.contains("-----BEGIN") {
                self.add(
                    &key,
                    None,
                    "must be the path of a PEM file, not its text: the file is read again when it changes",
                );
            } else if tls.enabled && path.is_empty() {
                self.add(
                    &key,
                    Some("\"\"".into()),
                    format!("must be the path of a PEM file while {section}.enabled is true"),
                );
            } else if tls.enabled
                && let Err(error) = std::fs::metadata(path)
            {
                self.add(&key, Some(format!("{path:?}")), format!("must be the path of a PEM file: {error}"));
            }
        }
    }

    fn bounds(&mut self, config: &Config) {
        let server = &config.http_server;
        let second = Duration::from_secs(1);
        let minutes = Duration::from_secs(300);
        for (key, value, least, most) in [
            ("http_server.header_timeout", server.header_timeout, second, minutes),
            ("http_server.handshake_timeout", server.handshake_timeout, second, minutes),
            ("websocket.write_timeout", config.websocket.write_timeout, Duration::from_millis(100), minutes),
            ("shutdown.timeout", config.shutdown.timeout, second, Duration::from_secs(3600)),
            ("shutdown.drain_time", config.shutdown.drain_time, Duration::ZERO, Duration::from_secs(3600)),
        ] {
            if value < least || value > most {
                let text = format!("must be from {} to {}", duration::format(&least), duration::format(&most));
                self.add(key, Some(duration::format(&value)), text);
            }
        }
        let grace = config.shutdown.grace_period;
        if !grace.is_zero() && !(Duration::from_secs(4)..=Duration::from_secs(7200)).contains(&grace) {
            self.add("shutdown.grace_period", Some(duration::format(&grace)), "must be 0s or from 4s to 2h");
        }
        for (key, value, least, most) in [
            ("http_server.max_header_size", server.max_header_size, 8192, 1 << 20),
            ("http_server.max_http_connections", server.max_http_connections, 1, 1_000_000),
            ("websocket.message_size_limit", config.websocket.message_size_limit, 1024, 1 << 24),
        ] {
            if !(least..=most).contains(&value) {
                self.add(key, Some(value.to_string()), format!("must be from {least} to {most}"));
            }
        }
    }

    fn paths(&mut self, config: &Config) {
        let paths = [
            ("websocket.handler_prefix", &config.websocket.handler_prefix, !config.websocket.disabled),
            ("http_api.handler_prefix", &config.http_api.handler_prefix, !config.http_api.disabled),
            ("prometheus.handler_prefix", &config.prometheus.handler_prefix, config.prometheus.enabled),
            ("health.handler_prefix", &config.health.handler_prefix, config.health.enabled),
        ];
        for (index, (key, path, on)) in paths.iter().enumerate() {
            let well_formed = path.starts_with('/') && path.len() > 1 && !path.ends_with('/');
            if !well_formed || !path.bytes().all(|b| b.is_ascii_graphic() && !b"?#%".contains(&b)) {
                let text = "must be a path that starts with /, does not end with /, and needs no escapes";
                self.add(key, Some(format!("{path:?}")), text);
            }
            let twin = paths[..index].iter().find(|(_, other, other_on)| *on && *other_on && other == path);
            if let Some((other, _, _)) = twin {
                self.add(key, Some(format!("{path:?}")), format!("must differ from {other}"));
            }
        }
    }

    fn insecure(&mut self, config: &Config) {
        if exposed(config) {
            let address = &config.http_server.address;
            let text = format!(
                "contradicts http_server.address = {address:?}, which others can reach: set it to a loopback address, or \
                 say client.insecure_public = true as well"
            );
            self.add("client.insecure", Some("true".into()), text);
        }
    }

    fn tokens(&mut self, section: &str, config: &TokenConfig) {
        let Err(error) = Verifier::new(config.clone()) else { return };
        let field = match &error {
            TokenConfigError::Key { field, .. }
            | TokenConfigError::PublicSecret { field }
            | TokenConfigError::Pattern { field, .. }
            | TokenConfigError::OpenPlaceholder { field, .. } => field,
            TokenConfigError::Both { first, .. } => first,
            TokenConfigError::ValidUntil { .. } => "hmac_previous_secret_key_valid_until",
            TokenConfigError::Endpoint { .. } => "jwks_public_endpoint",
            TokenConfigError::UserIdClaim { .. } => "user_id_claim",
        };
        let text = error.to_string();
        let text = text.strip_prefix(field).map_or(text.as_str(), |rest| rest.trim_start_matches([':', ' ']));
        self.add(&format!("{section}.{field}"), None, text);
    }
}

/// Whether strangers could use the insecure mode, and nobody said that they may.
pub fn exposed(config: &Config) -> bool {
    config.client.insecure && !config.access.insecure_public && !loopback(&config.http_server.address)
}

fn warn(config: &Config, warnings: &mut Vec<String>) {
    let client = &config.client;
    let token = &config.access.token;
    let keys = [
        &token.hmac_secret_key,
        &token.rsa_public_key,
        &token.ecdsa_public_key,
        &token.ed25519_public_key,
        &token.jwks_public_endpoint,
    ];
    let open =
        client.insecure || client.allow_anonymous_connect_without_token || !client.user_id_http_header.is_empty();
    let api = &config.http_api;
    let public =
        !loopback(&config.http_server.address) && (config.http_server.internal_port.is_empty() || api.external);
    let limit = config.websocket.message_size_limit;
    let cases = [
        (keys.iter().all(|key| key.is_empty()) && !open, "no client can connect: client.token has no key"),
        (!api.disabled && api.key.is_empty() && !api.insecure, "every API request is refused: http_api.key is empty"),
        (api.insecure && public, "http_api.insecure: whoever reaches http_server.port may use the API"),
        (client.insecure, "client.insecure: whoever connects may do everything"),
    ];
    warnings.extend(cases.into_iter().filter(|(holds, _)| *holds).map(|(_, text)| text.to_owned()));
    if config.channel.max_publication_size + ENVELOPE > limit {
        warnings.push(format!(
            "channel.max_publication_size = {} leaves no room for the envelope within websocket.message_size_limit = \
             {limit}: clients cannot publish the largest payloads",
            config.channel.max_publication_size
        ));
    }
}

/// The addresses of a host; empty means all interfaces.
pub fn resolve(address: &str, port: u16) -> std::io::Result<SocketAddr> {
    if address.is_empty() {
        return Ok(SocketAddr::from(([0, 0, 0, 0], port)));
    }
    if let Ok(address) = address.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, port));
    }
    let unknown = || std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
    (address, port).to_socket_addrs()?.next().ok_or_else(unknown)
}

fn loopback(address: &str) -> bool {
    resolve(address, 0).is_ok_and(|address| address.ip().is_loopback())
}
