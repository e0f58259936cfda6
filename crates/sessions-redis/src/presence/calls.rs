//! The calls of presence. Everything of a channel has the channel's hash tag; `<prefix>:p:{tag}` is the set of its
//! incarnations, and the scripts name the other keys after it: `…:m:<incarnation>` client → entry, `…:u:<incarnation>`
//! user → number of entries there, `…:u` user → number of incarnations that have it, `…:d` clients that two of them have.

use std::time::Duration;

use plenum_channels::{Census, Incarnation};
use plenum_protocol::ClientInfo;

use super::canary::{Canary, LIFE};
use super::entry::{Stamp, encode, incarnation};
use crate::client::{Call, Value};
use crate::keys::{Key, Keys, Tag};
use crate::script::Script;

static JOIN: Script = Script::new("presence_join/1", include_str!("join.lua"));
static LEAVE: Script = Script::new("presence_leave/1", include_str!("leave.lua"));
static STATS: Script = Script::new("presence_stats/2", include_str!("stats.lua"));
static TOUCH: Script = Script::new("presence_touch/1", include_str!("touch.lua"));
static SWEEP: Script = Script::new("presence_sweep/2", include_str!("sweep.lua"));
static TELL: Script = Script::new("presence_tell/1", include_str!("tell.lua"));

#[cfg(test)]
pub(crate) static SCRIPTS: [&Script; 6] = [&JOIN, &LEAVE, &STATS, &TOUCH, &SWEEP, &TELL];

/// Users that one call of a sweep removes, and clients that it looks at one by one.
const SWEPT_AT_ONCE: i64 = 500;

pub(super) fn base(keys: &Keys, channel: &str) -> Key {
    keys.key("p", &keys.tag(&[channel]))
}

fn text(text: &str) -> Value {
    Value::String(text.into())
}

fn millis(duration: Duration) -> Value {
    Value::Integer(duration.as_millis() as i64)
}

pub(super) fn join(base: &Key, own: Incarnation, stamp: Stamp, member: &ClientInfo, life: Duration) -> Call {
    let entry = Value::Bytes(encode(stamp, member));
    let arguments = [text(&incarnation(own)), text(&member.client), text(&member.user), entry, millis(life)];
    Call::script(&JOIN, &[base], arguments).repeatable()
}

pub(super) fn leave(base: &Key, own: Incarnation, client: &str, stamp: Stamp) -> Call {
    let arguments = [text(&incarnation(own)), text(client), Value::Integer(stamp as i64)];
    Call::script(&LEAVE, &[base], arguments).repeatable()
}

/// Incarnations that count.
pub(super) fn alive(census: &Census) -> impl Iterator<Item = Incarnation> {
    census.alive.iter().map(|(replica, generation)| Incarnation { replica: *replica, generation: *generation })
}

pub(super) fn stats(base: &Key, census: &Census) -> Call {
    Call::script(&STATS, &[base], alive(census).map(|alive| text(&incarnation(alive)))).reading()
}

pub(super) fn touch(base: &Key, own: Incarnation, life: Duration) -> Call {
    Call::script(&TOUCH, &[base], [text(&incarnation(own)), millis(life)]).repeatable()
}

pub(super) fn sweep(base: &Key, of: Incarnation) -> Call {
    Call::script(&SWEEP, &[base], [text(&incarnation(of)), Value::Integer(SWEPT_AT_ONCE)]).repeatable()
}

pub(super) fn incarnations(base: &Key) -> Call {
    Call::command("SMEMBERS", base, []).reading()
}

pub(super) fn entries(keys: &Keys, channel: &str, of: Incarnation) -> Call {
    let key = keys.part("p", &keys.tag(&[channel]), &format!("m:{}", incarnation(of)));
    Call::command("HGETALL", &key, []).reading()
}

/// Where an incarnation says which history of a primary's data has everything of its own.
fn told_key(keys: &Keys, tag: &Tag, of: Incarnation) -> Key {
    keys.part("told", tag, &incarnation(of))
}

/// What these said of the primary that the tag is of, in their order; `None` for nobody.
pub(super) fn told(keys: &Keys, tag: &Tag, of: &[Incarnation]) -> Option<Call> {
    let (first, others) = of.split_first()?;
    let others = others.iter().map(|of| text(told_key(keys, tag, *of).as_str()));
    Some(Call::command("MGET", &told_key(keys, tag, *first), others).reading())
}

pub(super) fn tell(keys: &Keys, canary: &Canary, of: Incarnation) -> Call {
    let life = Value::Integer(LIFE.as_millis() as i64);
    let arguments = [text(&canary.value.to_string()), text(&canary.data), life];
    Call::script(&TELL, &[&canary.key, &told_key(keys, &canary.tag, of)], arguments).repeatable()
}

/// Written before anything of an incarnation is swept; whoever finds that of its own has lost what it had.
pub(super) fn fence(keys: &Keys, of: Incarnation) -> Key {
    let name = incarnation(of);
    keys.key("swept", &keys.tag(&[&name]))
}
