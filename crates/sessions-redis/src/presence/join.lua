-- Adds or replaces one entry of an incarnation. Does nothing when a newer entry is there.
-- KEYS: the channel's incarnations. ARGV: incarnation, client, user, entry, life in milliseconds.
local base, incarnation, client, user, entry, life = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local members, users, all = base .. ':m:' .. incarnation, base .. ':u:' .. incarnation, base .. ':u'
local before = redis.call('HGET', members, client)
local user_before
if before then
  if struct.unpack('>I8', before) > struct.unpack('>I8', entry) then return 0 end
  user_before = struct.unpack('>I4c0', before, 9)
end
local incarnations = redis.call('SMEMBERS', base)
local elsewhere = false
if not before then
  for _, other in ipairs(incarnations) do
    if other ~= incarnation and redis.call('HEXISTS', base .. ':m:' .. other, client) == 1 then elsewhere = true break end
  end
end
local renew = redis.call('PTTL', members) < life / 2

redis.call('HSET', members, client, entry)
if user_before ~= user then
  if redis.call('HINCRBY', users, user, 1) == 1 then redis.call('HINCRBY', all, user, 1) end
  if user_before and redis.call('HINCRBY', users, user_before, -1) <= 0 then
    redis.call('HDEL', users, user_before)
    if redis.call('HINCRBY', all, user_before, -1) <= 0 then redis.call('HDEL', all, user_before) end
  end
end
redis.call('SADD', base, incarnation)
if elsewhere then
  redis.call('SADD', base .. ':d', client)
  redis.call('PEXPIRE', base .. ':d', life)
end
if renew then
  incarnations[#incarnations + 1] = incarnation
  for _, one in ipairs(incarnations) do
    redis.call('PEXPIRE', base .. ':m:' .. one, life)
    redis.call('PEXPIRE', base .. ':u:' .. one, life)
  end
  redis.call('PEXPIRE', base, life)
  redis.call('PEXPIRE', all, life)
  redis.call('PEXPIRE', base .. ':d', life)
end
return 1
