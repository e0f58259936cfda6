//! The scripts of the session store. Offsets are those of [`super::record`]; Lua counts from 1.

use crate::script::Script;

/// Creates unless a session is there; an earlier attempt of the same call is known by the incarnation that it chose.
/// KEYS: session. ARGV: record, ttl in ms. Answers: done, the header that was there.
pub(super) static CREATE: Script = Script::new(
    "session_create/1",
    "local h = redis.call('GETRANGE', KEYS[1], 0, 81)
if #h > 0 and string.sub(h, 2, 9) == string.sub(ARGV[1], 2, 9) then return {1, h} end
if string.byte(h, 1) == 1 then return {0, h} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, h}",
);

/// Replaces the state if version and, where given, mark are as expected. An earlier attempt of the same call is known by
/// its own mark. KEYS: session. ARGV: expected version, its mark or '', the new mark, state, ttl in ms.
/// Answers: done, header that was there, user.
pub(super) static UPDATE: Script = Script::new(
    "session_update/1",
    "local h = redis.call('GETRANGE', KEYS[1], 0, 81)
if string.byte(h, 1) ~= 1 then return {0, h, ''} end
local e = tonumber(ARGV[1])
local v = struct.unpack('>I8', h, 10)
local n = string.byte(h, 82)
local u = ''
if n > 0 then u = redis.call('GETRANGE', KEYS[1], 82, 81 + n) end
local back = v - e - 1
if back >= 0 and back < 16 and string.sub(h, 78 - 4 * back, 81 - 4 * back) == ARGV[3] then return {2, h, u} end
if v ~= e or (ARGV[2] ~= '' and string.sub(h, 78, 81) ~= ARGV[2]) then return {0, h, u} end
redis.call('SET', KEYS[1], string.sub(h, 1, 9) .. struct.pack('>I8', v + 1) .. string.sub(h, 22, 81) .. ARGV[3]
  .. string.sub(h, 82, 82) .. u .. ARGV[4], 'PX', ARGV[5])
return {1, h, u}",
);

/// Leaves the record of a deletion instead of the session, one version further. An empty expected version deletes any.
/// KEYS: session. ARGV: expected version or '', its mark or '', the new mark, ttl of the record in ms.
/// Answers: done, header that was there, user.
pub(super) static DELETE: Script = Script::new(
    "session_delete/1",
    "local h = redis.call('GETRANGE', KEYS[1], 0, 81)
if string.byte(h, 1) ~= 1 then
  if string.sub(h, 78, 81) == ARGV[3] then return {2, h, ''} end
  return {0, h, ''}
end
local v = struct.unpack('>I8', h, 10)
local n = string.byte(h, 82)
local u = ''
if n > 0 then u = redis.call('GETRANGE', KEYS[1], 82, 81 + n) end
if ARGV[1] ~= '' and (v ~= tonumber(ARGV[1]) or (ARGV[2] ~= '' and string.sub(h, 78, 81) ~= ARGV[2])) then
  return {0, h, u}
end
redis.call('SET', KEYS[1], string.char(0) .. string.sub(h, 2, 9) .. struct.pack('>I8', v + 1) .. string.sub(h, 22, 81)
  .. ARGV[3] .. string.char(0), 'PX', ARGV[4])
return {1, h, u}",
);

/// Enters a session among its user's, and drops those that expired and those beyond the bound. KEYS: the user's list.
/// ARGV: entry, ttl in ms, bound.
pub(super) static LIST: Script = Script::new(
    "session_list/1",
    "local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[3])
local left = redis.call('PTTL', KEYS[1])
if left < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1",
);

/// The entries of a user's sessions that have not expired, latest expiry first. KEYS: the user's list. ARGV: how many.
pub(super) static LISTED: Script = Script::new(
    "session_listed/2",
    "local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
return redis.call('ZREVRANGEBYSCORE', KEYS[1], '+inf', '(' .. now, 'LIMIT', 0, ARGV[1])",
);

/// Keeps a snapshot unless one at the same or a later offset of the same epoch is there. Offsets are 20 decimal digits:
/// a server's language does not change their order, and no number loses digits. KEYS: snapshot.
/// ARGV: epoch, offset, time, state, ttl in ms. Answers: 1 when it was kept.
pub(super) static KEEP: Script = Script::new(
    "snapshot_keep/2",
    "local h = redis.call('GETRANGE', KEYS[1], 0, 275)
if #h > 0 then
  local n = string.byte(h, 1)
  if string.sub(h, 2, 1 + n) == ARGV[1] and string.sub(h, 2 + n, 21 + n) >= ARGV[2] then return 0 end
end
redis.call('SET', KEYS[1], string.char(#ARGV[1]) .. ARGV[1] .. ARGV[2] .. ARGV[3] .. ARGV[4], 'PX', ARGV[5])
return 1",
);

/// Removes a snapshot at this position. KEYS: snapshot. ARGV: epoch, offset. Answers: 1 when it was there.
pub(super) static DISCARD: Script = Script::new(
    "snapshot_discard/1",
    "local h = redis.call('GETRANGE', KEYS[1], 0, 275)
local n = string.byte(h, 1)
if not n or string.sub(h, 2, 1 + n) ~= ARGV[1] or string.sub(h, 2 + n, 21 + n) ~= ARGV[2] then return 0 end
redis.call('GETDEL', KEYS[1])
return 1",
);

#[cfg(test)]
pub(crate) static ALL: [&Script; 7] = [&CREATE, &UPDATE, &DELETE, &LIST, &LISTED, &KEEP, &DISCARD];
