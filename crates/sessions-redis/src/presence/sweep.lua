-- Removes a piece of what an incarnation left behind: some of its users, and once they are gone all of its entries.
-- KEYS: the channel's incarnations. ARGV: incarnation, users at most. Answer: 1 when nothing is left.
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
local settled = {}
local incarnations = redis.call('SMEMBERS', base)
for _, client in ipairs(redis.call('SMEMBERS', double)) do
  local others = 0
  for _, other in ipairs(incarnations) do
    if other ~= incarnation then others = others + redis.call('HEXISTS', base .. ':m:' .. other, client) end
  end
  if others <= 1 then settled[#settled + 1] = client end
end

for _, user in ipairs(piece) do
  if redis.call('HINCRBY', all, user, -1) <= 0 then redis.call('HDEL', all, user) end
end
for _, client in ipairs(settled) do redis.call('SREM', double, client) end
redis.call('UNLINK', members, users)
redis.call('SREM', base, incarnation)
return 1
