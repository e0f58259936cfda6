//! The connections that the log uses.

use async_nats::Client;

/// Which connection serves what.
pub trait Links: Send + Sync + 'static {
    /// For requests, which need no order.
    fn any(&self) -> Client;

    /// For everything that is sent in order under this number.
    fn pinned(&self, number: u64) -> Client;

    /// For subscriptions of this number.
    fn subscribing(&self, number: u64) -> Client;

    /// Has the connections leave the servers they are at; called when a live connection answers nothing useful.
    fn move_elsewhere(&self);
}

/// A fixed set of connections.
pub struct FixedLinks(pub Vec<Client>);

impl Links for FixedLinks {
    fn any(&self) -> Client {
        self.0[rand::random_range(0..self.0.len())].clone()
    }

    fn pinned(&self, number: u64) -> Client {
        self.0[(number % self.0.len() as u64) as usize].clone()
    }

    fn subscribing(&self, number: u64) -> Client {
        self.pinned(number)
    }

    fn move_elsewhere(&self) {
        for client in self.0.clone() {
            tokio::spawn(async move { client.force_reconnect().await });
        }
    }
}
