-- Removes a piece of what an incarnation left behind: some of its users, then, where many clients are two incarnations',
-- some of its entries, and at last all that is left.
-- KEYS: the channel's incarnations. ARGV: incarnation, users and clients at most. Answer: 1 when nothing is left.
local base, incarnation, limit = KEYS[1], ARGV[1], tonumber(ARGV[2])
local members, users, all = base .. ':m:' .. incarnation, base .. ':u:' .. incarnation, base .. ':u'
local double = base .. ':d'
local piece = redis.call('HRANDFIELD', users, limit)
if redis.call('HLEN', users) > #piece then
  for _, user in ipairs(piece) do
    redis.call('HDEL', users, user)
    if redis.call('HINCRBY', all, user, -1) <= 0 then redis.call('HDEL', all, user) end
  end
  return 0
end
local looked_at, whole = nil, true
if redis.call('SCARD', double) <= limit then
  looked_at = redis.call('SMEMBERS', double)
else
  looked_at = redis.call('HRANDFIELD', members, limit)
  whole = redis.call('HLEN', members) <= #looked_at
end
local settled = {}
local incarnations = redis.call('SMEMBERS', base)
for _, client in ipairs(looked_at) do
  local others = 0
  for _, other in ipairs(incarnations) do
    if other ~= incarnation then others = others + redis.call('HEXISTS', base .. ':m:' .. other, client) end
  end
  if others <= 1 then settled[#settled + 1] = client end
end

for _, client in ipairs(settled) do redis.call('SREM', double, client) end
if not whole then
  for _, client in ipairs(looked_at) do redis.call('HDEL', members, client) end
  return 0
end
for _, user in ipairs(piece) do
  if redis.call('HINCRBY', all, user, -1) <= 0 then redis.call('HDEL', all, user) end
end
redis.call('UNLINK', members, users)
redis.call('SREM', base, incarnation)
return 1
