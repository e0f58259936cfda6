-- Removes one entry of an incarnation unless it is newer than the leave.
-- KEYS: the channel's incarnations. ARGV: incarnation, client, stamp.
local base, incarnation, client, stamp = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local members, users, all = base .. ':m:' .. incarnation, base .. ':u:' .. incarnation, base .. ':u'
local double = base .. ':d'
local entry = redis.call('HGET', members, client)
if not entry or struct.unpack('>I8', entry) > stamp then return 0 end
local user = struct.unpack('>I4c0', entry, 9)
local settled = redis.call('SISMEMBER', double, client) == 1
if settled then
  local others = 0
  for _, other in ipairs(redis.call('SMEMBERS', base)) do
    if other ~= incarnation then others = others + redis.call('HEXISTS', base .. ':m:' .. other, client) end
  end
  settled = others <= 1
end

redis.call('HDEL', members, client)
if redis.call('HINCRBY', users, user, -1) <= 0 then
  redis.call('HDEL', users, user)
  if redis.call('HINCRBY', all, user, -1) <= 0 then redis.call('HDEL', all, user) end
end
if redis.call('EXISTS', members) == 0 then redis.call('SREM', base, incarnation) end
if settled then redis.call('SREM', double, client) end
return 1
