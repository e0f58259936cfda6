//! Limits of this machine: open files, the queue of new connections, tracked connections.

use std::fs;

use plenum_telemetry::Finding;

use crate::config::Config;
use crate::open_files::{USUAL, need};

/// Looks at what the kernel says of this process and of the machine.
pub fn check(config: &Config) -> Vec<Finding> {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let mut findings = vec![open_files(&limits, config.client.connection_limit as u64)];
    findings.extend(number("/proc/sys/net/core/somaxconn").map(backlog));
    let tracked = number("/proc/sys/net/netfilter/nf_conntrack_count");
    findings.extend(tracked.zip(number("/proc/sys/net/netfilter/nf_conntrack_max")).and_then(tracking));
    findings
}

fn open_files(limits: &str, connections: u64) -> Finding {
    const SUBJECT: &str = "open files of this process";
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = |text: &str| if text == "unlimited" { Some(u64::MAX) } else { text.parse().ok() };
    let mut words = line.unwrap_or_default().split_whitespace();
    // A server raises its own soft limit, which comes first, to the hard one.
    let Some(hard) = words.nth(1).and_then(limit) else {
        return Finding::skipped(SUBJECT, "this system does not tell its limits", "");
    };
    let found = match hard {
        u64::MAX => "no limit".to_owned(),
        hard => format!("at most {hard}"),
    };
    let need = need(connections);
    if hard >= need {
        return Finding::good(SUBJECT, found);
    }
    let advice = format!("raise it to {need} (LimitNOFILE, ulimit -Hn): each client takes one");
    match connections {
        0 => Finding::warning(SUBJECT, found, advice),
        _ => Finding::failed(SUBJECT, format!("{found}; client.connection_limit is {connections}"), advice),
    }
}

fn backlog(length: u64) -> Finding {
    let (subject, found) = ("net.core.somaxconn", length.to_string());
    match length < 1_024 {
        true => {
            Finding::warning(subject, found, "raise it to 4096: clients that come back together wait in this queue")
        }
        false => Finding::good(subject, found),
    }
}

fn tracking((count, most): (u64, u64)) -> Option<Finding> {
    let (subject, found) = ("net.netfilter.nf_conntrack_max", format!("{count} of {most} connections tracked"));
    match most {
        0 => None,
        most if count > most / 10 * 8 => {
            Some(Finding::failed(subject, found, "raise it: when it is full new connections are dropped silently"))
        }
        _ => Some(Finding::good(subject, found)),
    }
}

/// What a process says of itself in its metrics; `None` where it says nothing.
pub fn of_process(subject: String, metrics: &str) -> Option<Finding> {
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        line.trim().parse::<f64>().ok()
    };
    let (open, most) = (value("process_open_fds")?, value("process_max_fds")?);
    let found = format!("{open} open, at most {most}");
    let advice = "raise the limit of open files of that process: each client takes one";
    Some(match open / most.max(1.0) {
        share if share > 0.8 => Finding::failed(subject, found, advice),
        _ if most < USUAL as f64 => Finding::warning(subject, found, advice),
        _ => Finding::good(subject, found),
    })
}

fn number(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use plenum_telemetry::State;

    use super::*;

    #[test]
    fn open_files_are_judged_by_the_connections_wanted() {
        let limits =
            |hard: &str| format!("Limit  Soft Limit  Hard Limit  Units\nMax open files   256   {hard}   files\n");
        for (hard, connections, state) in [
            ("1024", 0, State::Warning),
            ("1024", 10_000, State::Failed),
            ("11024", 10_000, State::Good),
            ("unlimited", 1_000_000, State::Good),
            ("nonsense", 0, State::Skipped),
        ] {
            assert_eq!(open_files(&limits(hard), connections).state, state, "{hard} {connections}");
        }
    }

    #[test]
    fn metrics_tell_of_another_process() {
        let metrics = "# TYPE process_open_fds gauge\nprocess_open_fds 950\nprocess_max_fds 1000\n";
        assert_eq!(of_process("p".into(), metrics).map(|finding| finding.state), Some(State::Failed));
        assert_eq!(of_process("p".into(), "up 1\n"), None);
    }
}
