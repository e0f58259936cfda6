//! Snapshots of states at a position of the log: length of the epoch, epoch, offset and time in 20 decimal digits
//! each, state.

use std::time::Duration;

use bytes::Bytes;
use plenum_channels::{Epoch, MAX_CHANNEL_BYTES, MAX_SESSION_BYTES, Position, SessionError, Snapshot};

use super::{RedisSessions, check_size, failed, millis, scripts, text};
use crate::client::{Call, Value};
use crate::keys::Key;

/// Of an offset, and of a time.
const DIGITS: usize = 20;
/// Longest epoch, in bytes.
const MAX_EPOCH_BYTES: usize = 255;

impl RedisSessions {
    fn snapshot_of(&self, channel: &str) -> Result<Key, SessionError> {
        check_size("channel", channel.len(), 1, MAX_CHANNEL_BYTES)?;
        Ok(self.keys.key("ss", &self.keys.tag(&["snapshot", channel])))
    }

    pub(super) async fn read_snapshot(&self, channel: &str) -> Result<Option<Snapshot>, SessionError> {
        let key = self.snapshot_of(channel)?;
        let answer = self.client.call(Call::command("GET", &key, []).reading()).await.map_err(failed)?;
        Ok(answer.into_bytes().and_then(|bytes| parse(&bytes)))
    }

    pub(super) async fn write_snapshot(
        &self,
        channel: &str,
        snapshot: Snapshot,
        ttl: Duration,
    ) -> Result<bool, SessionError> {
        let key = self.snapshot_of(channel)?;
        let Snapshot { position, time, state } = snapshot;
        check_size("epoch", position.epoch.as_str().len(), 0, MAX_EPOCH_BYTES)?;
        check_size("state", state.len(), 0, MAX_SESSION_BYTES)?;
        let time = text(&format!("{time:0DIGITS$}"));
        let arguments = [text(position.epoch.as_str()), offset(&position), time, Value::Bytes(state), millis(ttl)];
        let call = Call::script(&scripts::KEEP, &[&key], arguments);
        Ok(self.client.call(call).await.map_err(failed)?.as_i64() == Some(1))
    }

    pub(super) async fn remove_snapshot(&self, channel: &str, position: &Position) -> Result<bool, SessionError> {
        let key = self.snapshot_of(channel)?;
        let call = Call::script(&scripts::DISCARD, &[&key], [text(position.epoch.as_str()), offset(position)]);
        Ok(self.client.call(call).await.map_err(failed)?.as_i64() == Some(1))
    }
}

fn offset(position: &Position) -> Value {
    text(&format!("{:0DIGITS$}", position.offset))
}

/// What cannot be read is no snapshot: it is made again from the log.
fn parse(bytes: &Bytes) -> Option<Snapshot> {
    let epoch_ends = 1 + usize::from(*bytes.first()?);
    let offset_ends = epoch_ends + DIGITS;
    let time_ends = offset_ends + DIGITS;
    let epoch = std::str::from_utf8(bytes.get(1..epoch_ends)?).ok()?;
    let offset = std::str::from_utf8(bytes.get(epoch_ends..offset_ends)?).ok()?.parse().ok()?;
    let time = std::str::from_utf8(bytes.get(offset_ends..time_ends)?).ok()?.parse().ok()?;
    Some(Snapshot { position: Position { offset, epoch: Epoch::from(epoch) }, time, state: bytes.slice(time_ends..) })
}
