//! User control, as the server API has it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{CLOCKS, Entry, block_key};
use crate::node::unix_now;
use crate::{Answer, LedgerError, Node, OperationError, Question};

/// Longest user and token id that user control takes, in characters: what a schema of the API can say exactly.
const MAX_ID_CHARS: usize = 1024;
/// Attempts of a write while the ledger elects its leader.
const ATTEMPTS: usize = 3;

/// A connection, as the API shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionInfo {
    /// User id.
    pub user: String,
    /// Name that the client gave for its program.
    pub app_name: String,
    /// Version that the client gave.
    pub app_version: String,
    /// `websocket`.
    pub transport: String,
    /// `json` or `protobuf`.
    pub protocol: String,
    /// The connection token, if it had one.
    pub token: Option<TokenInfo>,
    /// `meta` of the token, raw JSON; empty for none.
    pub meta: Vec<u8>,
    /// Name of the replica that holds it.
    pub node: String,
}

/// About a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// `jti`; empty for none.
    pub uid: String,
    /// `iat`, Unix seconds; 0 for none.
    pub issued_at: u64,
}

impl Node {
    /// Keeps a user out until `expire_at` (Unix seconds; 0: until unblocked): connects are refused, and connections closed
    /// with 3507 on every replica within a second.
    pub async fn block_user(&self, user: &str, expire_at: u64) -> Result<(), OperationError> {
        check_id("user", user)?;
        self.enact(Entry::Block { user: user.to_owned(), expire_at }).await
    }

    /// Lets a user in again.
    pub async fn unblock_user(&self, user: &str) -> Result<(), OperationError> {
        check_id("user", user)?;
        self.write(&block_key(user), None, None).await
    }

    /// Calls a token back by its id (`jti`) until `expire_at` (0: for ever): it grants nothing more, and connections that
    /// were made with it are closed with 3500.
    pub async fn revoke_token(&self, uid: &str, expire_at: u64) -> Result<(), OperationError> {
        check_id("uid", uid)?;
        self.enact(Entry::Revocation { uid: uid.to_owned(), expire_at }).await
    }

    /// Calls back the tokens of a user that were issued (`iat`) before a time (0: now): connection tokens, or with a channel
    /// its subscription tokens. One without `iat` counts as issued before any time.
    pub async fn invalidate_user_tokens(
        &self,
        user: &str,
        channel: &str,
        issued_before: u64,
        expire_at: u64,
    ) -> Result<(), OperationError> {
        check_id("user", user)?;
        if !channel.is_empty() {
            self.settings().resolve(channel)?;
        }
        let issued_before = if issued_before == 0 { unix_now() } else { issued_before };
        let (user, channel) = (user.to_owned(), channel.to_owned());
        self.enact(Entry::Invalidation { user, channel, issued_before, expire_at }).await
    }

    /// A user's connections on all replicas, by client id.
    pub async fn connections(&self, user: &str) -> Result<BTreeMap<String, ConnectionInfo>, OperationError> {
        check_id("user", user)?;
        let answers = self.control.survey(Question::Connections { user: user.to_owned() }).await?;
        let found = answers.into_iter().filter_map(|answer| match answer {
            Answer::Connections(found) => Some(found),
            _ => None,
        });
        Ok(found.flatten().collect())
    }

    async fn enact(&self, entry: Entry) -> Result<(), OperationError> {
        let lasts = match entry.expire_at() {
            0 => None,
            // By every clock it is over already: nothing to remember.
            _ if !entry.is_kept(unix_now()) => return Ok(()),
            end => Some(Duration::from_secs(end.saturating_sub(unix_now())) + CLOCKS),
        };
        let value = serde_json::to_vec(&entry).unwrap_or_default();
        self.write(&entry.key(), Some(value), lasts).await
    }

    async fn write(&self, key: &str, value: Option<Vec<u8>>, lasts: Option<Duration>) -> Result<(), OperationError> {
        let value = value.map(bytes::Bytes::from);
        let mut attempt = 1;
        loop {
            match self.ledger.put(key, value.clone(), None, lasts).await {
                Ok(_) => break,
                // Writing it twice does no harm.
                Err(LedgerError::Indeterminate | LedgerError::Unavailable { .. }) if attempt < ATTEMPTS => {
                    attempt += 1;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.access.look.notify_one();
        Ok(())
    }
}

fn check_id(field: &'static str, id: &str) -> Result<(), OperationError> {
    let chars = id.chars().count();
    if !(1..=MAX_ID_CHARS).contains(&chars) {
        let reason = format!("{chars} characters, allowed are 1 to {MAX_ID_CHARS}");
        return Err(OperationError::BadRequest { field, reason });
    }
    Ok(())
}
