use std::sync::Arc;
use std::sync::Weak;
use std::time::{Duration, Instant};

use fred::types::Value;
use futures_util::future::join_all;
use tokio::time::{sleep, timeout};

use super::redis::Shared;
use super::{Address, CallError, Client, Layout, Purpose, Slots};

/// Shortest time between two questions for the layout.
const LAYOUT_SPACING: Duration = Duration::from_millis(50);
/// Nodes that are asked when nothing is wrong.
const ASKED_IN_PEACE: usize = 3;

/// Keeps the layout true, and known whether anybody is there, until all that use it are gone.
pub(super) async fn follow(shared: Weak<Shared>) {
    let Some(asking) = shared.upgrade().map(|shared| Client::new(shared, Purpose::Layout)) else { return };
    let mut turn = 0;
    let mut urgent = true;
    loop {
        let Some(shared) = shared.upgrade() else { return };
        turn += 1;
        let heard = match shared.config.layout {
            Layout::Standalone => is_there(&shared.config.servers[0], &asking).await,
            Layout::Cluster => {
                let (slots, members) = ask(&shared, &asking, urgent, turn).await;
                asking.keep_only(&members);
                slots.map(|slots| publish(&shared, slots)).is_some()
            }
        };
        if heard {
            *shared.answered.lock() = Some(Instant::now());
        }
        shared.metrics.slots.set(shared.served() as i64);
        sleep(LAYOUT_SPACING).await;
        let pause = shared.config.refresh_every.saturating_sub(LAYOUT_SPACING);
        let complete = shared.slots.borrow().covered() == usize::from(crate::keys::SLOTS);
        urgent = timeout(pause, shared.wanted.notified()).await.is_ok() || !complete;
    }
}

/// Whether a server answers; a user without the right to ask is answered too.
async fn is_there(server: &Address, asking: &Client) -> bool {
    matches!(asking.ask_server(server, "PING", Vec::new()).await, Ok(_) | Err(CallError::Refused { .. }))
}

/// Asks members and configured servers what they know: all of them in need, a few in turn otherwise.
async fn ask(shared: &Shared, asking: &Client, urgent: bool, turn: usize) -> (Option<Slots>, Vec<Address>) {
    let mut members: Vec<Address> = shared.slots.borrow().members().cloned().collect();
    for server in &shared.config.servers {
        if !members.contains(server) {
            members.push(server.clone());
        }
    }
    let count = if urgent { members.len() } else { ASKED_IN_PEACE.min(members.len()) };
    let asked = (0..count).map(|place| &members[(turn + place) % members.len()]).map(|address| async move {
        let nodes = vec![Value::from_static_str("NODES")];
        match asking.ask_server(address, "CLUSTER", nodes).await.map(|answer| answer.into_string()) {
            Ok(Some(text)) => Some((address.clone(), text)),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(server = %address, %error, "no answer about the cluster's layout");
                None
            }
        }
    });
    let answers: Vec<(Address, String)> = join_all(asked).await.into_iter().flatten().collect();
    let slots = (!answers.is_empty()).then(|| Slots::merged(&answers, shared.config.tls.is_some()));
    (slots, members)
}

fn publish(shared: &Shared, mut slots: Slots) {
    let known = shared.slots.borrow().clone();
    if slots.covered() == 0 {
        return;
    }
    slots.keep_newer(&known);
    if slots == *known {
        return;
    }
    shared.metrics.primaries.set(slots.primaries().len() as i64);
    if !slots.served_like(&known) {
        shared.metrics.layout_changes.inc();
        tracing::info!(layout = ?slots, "layout of the Redis Cluster");
    }
    shared.slots.send_replace(Arc::new(slots));
}
