//! A client's way: WebSocket through every URL, and a message to clients behind all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::future::join_all;
use plenum_load::{HttpTarget, Probe, Target};
use plenum_telemetry::Finding;
use plenum_tokens::{ConnectionTokenSpec, sign_connection};
use tokio::time::Instant;

use super::certificates::Shown;
use super::{clocks, names, server};
use crate::cli::Doctor;
use crate::config::Config;

/// Bytes of the large message: more than the buffers of proxies hold, less than every default limit.
const LARGE: usize = 32 << 10;

/// What was found.
#[derive(Default)]
pub struct Checked {
    pub websocket: Vec<Finding>,
    pub message: Vec<Finding>,
    pub clocks: Vec<Finding>,
    pub certificates: Vec<Shown>,
}

/// Connects through every `--url`, then publishes to all of them.
pub async fn check(arguments: &Doctor, config: &Config, limit: Duration) -> Checked {
    let mut checked = Checked::default();
    if arguments.url.is_empty() && arguments.each_url.is_empty() {
        let advice = "name one or more ways to the replicas: --url wss://HOST/connection/websocket";
        let skipped = || Finding::skipped("clients", "no --url was given", advice);
        (checked.websocket, checked.message) = (vec![skipped()], vec![skipped()]);
        return checked;
    }
    let token = match token(arguments, config) {
        Ok(token) => token,
        Err(finding) => {
            (checked.websocket, checked.message) = (vec![finding.clone()], vec![finding]);
            return checked;
        }
    };
    let api = arguments.api.as_deref().and_then(|url| HttpTarget::new(url, arguments.ca.as_deref()).ok());
    // Before the first connection of this check, so that none of them counts as somebody else's.
    let before = clients(api.as_ref(), config, limit).await;
    let mut urls = arguments.url.clone();
    for url in &arguments.each_url {
        match names::each_address(url, limit).await {
            Ok(found) => urls.extend(found),
            Err(finding) => checked.websocket.push(finding),
        }
    }
    let (mut ways, mut direct) = (Vec::new(), BTreeSet::new());
    let outcomes = join_all(urls.iter().map(|url| way(arguments, url, &token, limit))).await;
    for (place, (url, outcome)) in outcomes.into_iter().enumerate() {
        match outcome {
            Ok(Way { target, certificate, clock, finding }) => {
                checked.certificates.extend(certificate.map(|der| (url.clone(), der)));
                checked.clocks.extend(clock);
                checked.websocket.push(finding);
                // Those of --url stand first.
                if place >= arguments.url.len() {
                    direct.insert(url);
                }
                ways.push(target);
            }
            Err(finding) => checked.websocket.push(finding),
        }
    }
    if ways.is_empty() {
        checked.message.push(Finding::failed("message", "no --url leads to a replica", "see the lines above"));
    } else {
        let direct = different(&direct);
        let group = Group { arguments, config, ways: &ways, direct, token: &token, api, limit };
        checked.message = group.message(before).await;
    }
    checked
}

/// Replicas that ways to one address each lead to, at least: one that has addresses of both families counts once.
fn different(direct: &BTreeSet<String>) -> usize {
    let v6 = direct.iter().filter(|url| url.contains("://[")).count();
    v6.max(direct.len() - v6)
}

/// The token of one who may subscribe to the channel of the check; empty for an anonymous one.
fn token(arguments: &Doctor, config: &Config) -> Result<String, Finding> {
    if arguments.anonymous {
        return Ok(String::new());
    }
    let keys = &config.access.token;
    if keys.hmac_secret_key.is_empty() {
        let advice = "name the server's configuration with --config, or use --anonymous";
        return Err(Finding::skipped("clients", "client.token.hmac_secret_key is not set", advice));
    }
    let given = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let spec = ConnectionTokenSpec {
        user: "plenum-doctor".into(),
        audience: given(&keys.audience),
        issuer: given(&keys.issuer),
        ..ConnectionTokenSpec::default()
    };
    let failed = |error: plenum_tokens::SignError| {
        Finding::failed("clients", error.to_string(), "correct client.token.hmac_secret_key")
    };
    sign_connection(&keys.hmac_secret_key, &spec).map_err(failed)
}

/// A URL that leads to a replica.
struct Way {
    target: Target,
    /// Of whoever ends TLS, in DER.
    certificate: Option<Vec<u8>>,
    clock: Option<Finding>,
    finding: Finding,
}

/// One URL: the handshake, the connect, and staying for `--idle`.
async fn way(arguments: &Doctor, url: &str, token: &str, limit: Duration) -> (String, Result<Way, Finding>) {
    let subject = url.split('?').next().unwrap_or(url).to_owned();
    let failed = |reason: String| {
        let advice = advice(&reason);
        Err(Finding::failed(&*subject, reason, advice))
    };
    let outcome = async {
        let target = match Target::new(url, arguments.origin.as_deref(), arguments.ca.as_deref()) {
            Ok(target) => target,
            Err(error) => return failed(error.to_string()),
        };
        let (mut probe, handshake) = match target.probe(limit).await {
            Ok(opened) => opened,
            Err(reason) => return failed(reason),
        };
        let clock = clocks::by_date(format!("clock behind {subject}"), &handshake.date);
        let session = match probe.connect(token).await {
            Ok(session) => session,
            Err(reason) => return failed(reason),
        };
        let by = match handshake.servers.is_empty() {
            true => String::new(),
            false => format!(" by {}", handshake.servers.join(", ")),
        };
        let mut found = format!(
            "upgraded{by} in {} ms, connected to version {}, a ping every {} s",
            handshake.took.as_millis(),
            session.version,
            session.ping
        );
        if !arguments.idle.is_zero() {
            match probe.idle(arguments.idle).await {
                Ok(pings) => found += &format!("; {:?} with {pings} pings and nothing else", arguments.idle),
                Err(reason) => {
                    let advice = "a proxy on the way has a time-out shorter than client.ping_interval: raise it";
                    return Err(Finding::failed(&*subject, format!("closed while idle: {reason}"), advice));
                }
            }
        }
        probe.close().await;
        let certificate = handshake.certificates.into_iter().next();
        Ok(Way { target, certificate, clock, finding: Finding::good(&*subject, found) })
    };
    let outcome = outcome.await;
    (subject.clone(), outcome)
}

/// What to do about a connection that failed like this.
fn advice(reason: &str) -> &'static str {
    let says = |text: &str| reason.contains(text);
    if says("HTTP error: 403") {
        "the Origin is refused: add it to client.allowed_origins, or name another with --origin"
    } else if says("HTTP error: 404") {
        "something answers, but not on this path: compare websocket.handler_prefix and the proxy's routes"
    } else if says("HTTP error: 400") || says("HTTP error: 426") || says("HTTP error: 200") {
        "a proxy on the way does not pass the upgrade on: it needs HTTP/1.1 and the headers Upgrade and Connection"
    } else if says("HTTP error: 429") {
        "a limit per address was met: wait, or raise it in the proxy"
    } else if says("HTTP error: 50") {
        "the proxy reaches no replica that is ready: look at their /readyz and at the proxy's log"
    } else if says("ertificate") || says("TLS") || says("tls") {
        "the certificate does not fit the name or the authorities: see the line of it, and --ca"
    } else if says("error 101") || says("token") || says("3500") || says("permission denied") {
        "the token is refused: is this the server's configuration?"
    } else {
        "is the address right, and does the proxy or the replica run?"
    }
}

/// Clients on every way.
struct Group<'a> {
    arguments: &'a Doctor,
    config: &'a Config,
    ways: &'a [Target],
    /// How many of them lead to one replica each, all different.
    direct: usize,
    token: &'a str,
    api: Option<HttpTarget>,
    limit: Duration,
}

impl Group<'_> {
    /// Publishes to them, through the API where one is named, and as one of them.
    async fn message(&self, before: Option<BTreeMap<String, u64>>) -> Vec<Finding> {
        let Self { arguments, config, ways, token, limit, .. } = *self;
        let channel = format!("{}{:08x}", arguments.channel, rand::random::<u32>());
        let count = arguments.connections.max(ways.len());
        let open = (0..count).map(|n| member(&ways[n % ways.len()], token, &channel, limit));
        let mut members = Vec::new();
        for outcome in join_all(open).await {
            match outcome {
                Ok(member) => members.push(member),
                Err(reason) => {
                    let advice = "clients must be allowed to subscribe to the channel: name another with --channel";
                    return vec![Finding::failed(format!("subscribing to {channel}"), reason, advice)];
                }
            }
        }
        let spread = before.zip(clients(self.api.as_ref(), config, limit).await);
        let mut findings = Vec::new();
        if let Some(api) = &self.api {
            let started = Instant::now();
            let data = format!("\"{:016x}\"", rand::random::<u64>());
            let sent = server::publish(api, &channel, &data, config, limit).await;
            findings.push(arrived("message from the server API", sent, &mut members, &channel, &data, started).await);
        }
        for (subject, size) in [("message from a client", 16), ("large message from a client", LARGE)] {
            let started = Instant::now();
            let data = format!("\"{:016x}{}\"", rand::random::<u64>(), "x".repeat(size - 16));
            let sent = members[0].publish(&channel, &data).await;
            if let Err(reason) = &sent
                && reason.contains("error 103")
            {
                let advice = "name a channel that they may publish to with --channel, or use --api alone";
                findings.push(Finding::skipped(subject, format!("clients may not publish to {channel}"), advice));
                continue;
            }
            findings.push(arrived(subject, sent, &mut members, &channel, &data, started).await);
        }
        let spread = spread.map(|(before, after)| Spread::of(&before, &after, self.direct));
        findings.extend(replicas(spread.as_ref(), self.direct, arguments.min_replicas, members.len()));
        join_all(members.into_iter().map(Probe::close)).await;
        findings
    }
}

async fn member(way: &Target, token: &str, channel: &str, limit: Duration) -> Result<Probe, String> {
    let (mut probe, _) = way.probe(limit).await?;
    probe.connect(token).await?;
    probe.subscribe(channel).await?;
    Ok(probe)
}

async fn arrived(
    subject: &str,
    sent: Result<(), String>,
    members: &mut [Probe],
    channel: &str,
    data: &str,
    started: Instant,
) -> Finding {
    if let Err(reason) = sent {
        let advice = "publishing needs NATS with a leader for each stream: see the lines of nats";
        return Finding::failed(subject, format!("it was not acknowledged: {reason}"), advice);
    }
    let all = members.len();
    let outcomes = join_all(members.iter_mut().map(|member| member.expect(channel, data))).await;
    let took = started.elapsed().as_secs_f64() * 1e3;
    let missing: Vec<String> = outcomes.into_iter().filter_map(Result::err).collect();
    match missing.first() {
        None => Finding::good(subject, format!("reached {all} of {all} connections within {took:.0} ms")),
        Some(reason) => {
            let found = format!("reached {} of {all} connections; {reason}", all - missing.len());
            let advice = "do all replicas share nats.servers and nats.prefix, and does a proxy buffer or cut messages?";
            Finding::failed(subject, found, advice)
        }
    }
}

/// Clients of each process.
async fn clients(api: Option<&HttpTarget>, config: &Config, limit: Duration) -> Option<BTreeMap<String, u64>> {
    let nodes = server::nodes(api?, config, limit).await.ok()?;
    Some(nodes.into_iter().map(|node| (node.uid, node.num_clients)).collect())
}

/// Over how many replicas connections are spread.
struct Spread {
    /// Replicas with connections of this check.
    reached: usize,
    /// Replicas with connections of anybody.
    carriers: usize,
}

impl Spread {
    /// By the clients that each replica counts; `direct` ways led to one replica each, whatever others did meanwhile.
    fn of(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, direct: usize) -> Self {
        let more = |(uid, count): &(&String, &u64)| before.get(*uid).copied().unwrap_or(0) < **count;
        let reached = after.iter().filter(more).count().max(direct);
        Self { reached, carriers: after.values().filter(|count| **count > 0).count().max(reached) }
    }
}

/// How many replicas the connections came to, and whether these are enough.
fn replicas(spread: Option<&Spread>, direct: usize, wanted: usize, connections: usize) -> Option<Finding> {
    const SUBJECT: &str = "spread over replicas";
    let reached = spread.map_or(direct, |spread| spread.reached);
    let found = format!("{connections} connections came to {reached} replicas");
    if reached < wanted {
        let found = format!("{found}; {wanted} were wanted");
        let advice =
            "are all replicas ready, and does the proxy or the name know all of them? --each-url names them all";
        return Some(Finding::failed(SUBJECT, found, advice));
    }
    if spread.is_none() && direct == 0 {
        return None;
    }
    let carriers = spread.map_or(0, |spread| spread.carriers);
    Some(match reached {
        1 if carriers > 1 && connections > 1 => {
            let advice = "does the proxy know all replicas (least_conn, resolve)? Name several ways with --url";
            Finding::warning(SUBJECT, found, advice)
        }
        _ => Finding::good(SUBJECT, found),
    })
}

#[cfg(test)]
mod tests {
    use plenum_telemetry::State;

    use super::*;

    fn counts(counts: [u64; 3]) -> BTreeMap<String, u64> {
        ["a", "b", "c"].map(String::from).into_iter().zip(counts).collect()
    }

    #[test]
    fn a_replica_with_addresses_of_both_families_counts_once() {
        let count = |urls: &[&str]| different(&urls.iter().map(|url| (*url).to_owned()).collect());
        assert_eq!(count(&["ws://10.0.0.1:8000/c", "ws://[fd00::1]:8000/c"]), 1);
        assert_eq!(count(&["ws://10.0.0.1:8000/c", "ws://10.0.0.2:8000/c", "ws://[fd00::1]:8000/c"]), 2);
        assert_eq!(count(&["ws://[fd00::2]:8000/c", "ws://[fd00::1]:8000/c"]), 2);
        assert_eq!(count(&[]), 0);
    }

    fn state(before: [u64; 3], after: [u64; 3], direct: usize, wanted: usize) -> Option<State> {
        let spread = Spread::of(&counts(before), &counts(after), direct);
        replicas(Some(&spread), direct, wanted, 6).map(|finding| finding.state)
    }

    #[test]
    fn one_replica_of_several_is_worth_a_line() {
        assert_eq!(state([1, 1, 1], [3, 3, 1], 0, 0), Some(State::Good));
        assert_eq!(state([1, 1, 1], [1, 1, 7], 0, 0), Some(State::Warning));
        assert_eq!(state([0, 0, 0], [6, 0, 0], 0, 0), Some(State::Good), "a single process");
    }

    #[test]
    fn fewer_replicas_than_wanted_are_a_failure() {
        assert_eq!(state([1, 1, 1], [3, 3, 1], 0, 2), Some(State::Good));
        assert_eq!(state([1, 1, 1], [3, 3, 1], 0, 3), Some(State::Failed));
        assert_eq!(state([9, 9, 9], [3, 3, 1], 3, 3), Some(State::Good), "others left meanwhile");
        let without_api = |direct, wanted| replicas(None, direct, wanted, 6).map(|finding| finding.state);
        assert_eq!(without_api(0, 0), None, "nobody can say");
        assert_eq!(without_api(0, 1), Some(State::Failed));
        assert_eq!(without_api(2, 2), Some(State::Good));
    }
}
