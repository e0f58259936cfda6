//! The limit of open files: raised as far as the system lets a process, and what of the configuration fits into it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;

/// Files that a process needs beside its clients' connections: brokers, logs, listening sockets.
const OWN: u64 = 1_024;
/// Below this a replica without `client.connection_limit` soon refuses clients.
pub const USUAL: u64 = 65_536;

/// Descriptors that a replica with this `client.connection_limit` (0: none) should be allowed.
pub fn need(connection_limit: u64) -> u64 {
    if connection_limit == 0 { USUAL } else { connection_limit.saturating_add(OWN) }
}

/// Raises the soft limit to the hard one, and logs what holds. Many systems start processes with a soft limit of 1,024,
/// for programs that use `select`.
pub fn raise() {
    let before = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: before.maximum, maximum: before.maximum };
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, hard = before.maximum, "the soft limit of open files cannot be raised to the hard one");
    }
    tracing::info!(limit = getrlimit(Resource::Nofile).current, was = before.current, "open files");
}

/// Lowers `client.connection_limit` to what this process has descriptors for: beyond it clients get 503 and go to another
/// replica, instead of waiting for a process that cannot even accept them. Says so when it is less than wanted.
pub fn fit(config: &mut Config) -> Option<String> {
    let limit = getrlimit(Resource::Nofile).current?;
    let wanted = config.client.connection_limit;
    let taken = fitting(limit, wanted as u64);
    config.client.connection_limit = usize::try_from(taken).unwrap_or(usize::MAX);
    let need = need(wanted as u64);
    (limit < need && !config.websocket.disabled).then(|| {
        format!(
            "the limit of open files is {limit}, and client.connection_limit = {wanted} needs {need}: at most {taken} \
             connections are taken; raise the hard limit (LimitNOFILE, ulimit -Hn)"
        )
    })
}

/// Connections that fit; of a small limit three quarters.
fn fitting(limit: u64, wanted: u64) -> u64 {
    let room = limit.saturating_sub(OWN.min(limit / 4)).max(1);
    if wanted == 0 { room } else { wanted.min(room) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_other_files() {
        for (limit, wanted, taken) in
            [(1_048_576, 20_000, 20_000), (21_024, 20_000, 20_000), (21_023, 20_000, 19_999), (1_024, 20_000, 768)]
        {
            assert_eq!(fitting(limit, wanted), taken, "{limit} {wanted}");
        }
        assert_eq!((fitting(256, 0), fitting(256, 100), fitting(0, 5)), (192, 100, 1));
    }
}
