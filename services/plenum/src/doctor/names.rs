//! Whether every host name that the configuration and the command line hold has an address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::join_all;
use plenum_telemetry::Finding;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use crate::cli::Doctor;
use crate::config::Config;

/// Longer than a resolver that is near needs.
const SLOW: Duration = Duration::from_secs(1);

/// Looks every name up, all at once.
pub async fn check(arguments: &Doctor, config: &Config, limit: Duration) -> Vec<Finding> {
    let mut names: BTreeMap<String, &'static str> = BTreeMap::new();
    let mut add = |text: &str, setting| {
        if let Some(host) = host(text) {
            names.entry(host).or_insert(setting);
        }
    };
    config.nats.servers.iter().for_each(|server| add(server, "nats.servers"));
    config.redis.servers.iter().for_each(|server| add(server, "redis.servers"));
    add(&config.access.token.jwks_public_endpoint, "client.token.jwks_public_endpoint");
    if config.subscription_token.enabled {
        let endpoint = &config.subscription_token.token.jwks_public_endpoint;
        add(endpoint, "client.subscription_token.jwks_public_endpoint");
    }
    arguments.url.iter().for_each(|url| add(url, "--url"));
    arguments.each_url.iter().for_each(|url| add(url, "--each-url"));
    arguments.api.iter().for_each(|url| add(url, "--api"));
    arguments.nats_monitoring.iter().for_each(|url| add(url, "--nats-monitoring"));
    if names.is_empty() {
        return vec![Finding::good("names", "only addresses are configured")];
    }
    join_all(names.into_iter().map(|(name, setting)| look_up(name, setting, limit))).await
}

async fn look_up(name: String, setting: &str, limit: Duration) -> Finding {
    const ADVICE: &str = "correct the name, or the resolver of this machine or pod (/etc/resolv.conf)";
    let subject = format!("{name} ({setting})");
    let started = Instant::now();
    let addresses: Vec<IpAddr> = match timeout(limit, lookup_host((name.as_str(), 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).collect(),
        Ok(Err(error)) => return Finding::failed(subject, error.to_string(), ADVICE),
        Err(_) => return Finding::failed(subject, format!("no answer within {limit:?}"), ADVICE),
    };
    let took = started.elapsed();
    let shown: Vec<String> = addresses.iter().take(4).map(IpAddr::to_string).collect();
    let more = if addresses.len() > 4 { ", …" } else { "" };
    let found = format!("{}{more} in {} ms", shown.join(", "), took.as_millis());
    match took > SLOW {
        true => Finding::warning(subject, found, "the resolver is slow: each connection that is made waits for it"),
        false => Finding::good(subject, found),
    }
}

/// The same URL once for each address that its host has. Errors are findings.
pub async fn each_address(url: &str, limit: Duration) -> Result<Vec<String>, Finding> {
    const ADVICE: &str =
        "name it as ws://HOST:PORT/connection/websocket, with a host that has the address of every replica";
    let failed = |reason: String| Finding::failed(url, reason, ADVICE);
    let Some(host) = url.strip_prefix("ws://").and_then(|_| host(url)) else {
        return Err(failed("it is no ws:// URL with a host name".into()));
    };
    match timeout(limit, lookup_host((host.as_str(), 0))).await {
        Ok(Ok(found)) => {
            let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses.into_iter().map(|address| at(url, &host, address)).collect())
        }
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {limit:?}"))),
    }
}

/// A URL with an address in the place of its host.
fn at(url: &str, host: &str, address: IpAddr) -> String {
    let shown = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    // `ws` may be a host as well.
    url.replacen(&format!("://{host}"), &format!("://{shown}"), 1)
}

/// The host of a URL or of `host:port`, unless it is an address or holds a placeholder.
fn host(text: &str) -> Option<String> {
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next()?;
    if authority.starts_with('[') || authority.contains('{') {
        return None;
    }
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    (!host.is_empty() && host.parse::<IpAddr>().is_err()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_for_each_address_of_its_host() {
        let limit = Duration::from_secs(30);
        let address = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
        for host in ["w", "s", "ws"] {
            assert_eq!(at(&format!("ws://{host}:80/ws"), host, address), "ws://[::1]:80/ws");
        }
        let urls = each_address("ws://localhost:8000/connection/websocket?x=localhost", limit).await.unwrap();
        assert!(urls.contains(&"ws://127.0.0.1:8000/connection/websocket?x=localhost".to_owned()), "{urls:?}");
        for wrong in ["wss://localhost:8000/", "ws://127.0.0.1:8000/", "localhost"] {
            assert!(each_address(wrong, limit).await.is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_of_urls_and_addresses() {
        for (text, wanted) in [
            ("nats://nats-0.nats:4222", Some("nats-0.nats")),
            ("redis-1:6379", Some("redis-1")),
            ("wss://chat.example/connection/websocket?x=1", Some("chat.example")),
            ("nats://127.0.0.1:4222", None),
            ("[::1]:6379", None),
            ("https://{{tenant}}.example/jwks", None),
            ("", None),
        ] {
            assert_eq!(host(text).as_deref(), wanted, "{text}");
        }
    }
}
