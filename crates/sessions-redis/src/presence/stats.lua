-- Counts a channel's members. Clients that two incarnations have count once; users whom only incarnations have that do
-- not count are subtracted.
-- KEYS: the channel's incarnations. ARGV: incarnations that count. Answer: clients, users, the channel's incarnations,
-- number of users and clients that had to be looked at one by one.
local base = KEYS[1]
local counts = {}
for _, one in ipairs(ARGV) do counts[one] = true end
local incarnations = redis.call('SMEMBERS', base)
local clients, looked_at, living, gone = 0, 0, {}, {}
for _, one in ipairs(incarnations) do
  if counts[one] then
    living[#living + 1] = one
    clients = clients + redis.call('HLEN', base .. ':m:' .. one)
  else
    gone[#gone + 1] = one
  end
end
if #living > 1 then
  for _, client in ipairs(redis.call('SMEMBERS', base .. ':d')) do
    looked_at = looked_at + 1
    local entries = 0
    for _, one in ipairs(living) do entries = entries + redis.call('HEXISTS', base .. ':m:' .. one, client) end
    if entries > 1 then clients = clients - (entries - 1) end
  end
end
local users = 0
if #living > 0 then
  users = redis.call('HLEN', base .. ':u')
  local lost = {}
  for _, one in ipairs(gone) do
    for _, user in ipairs(redis.call('HKEYS', base .. ':u:' .. one)) do lost[user] = (lost[user] or 0) + 1 end
  end
  for user, count in pairs(lost) do
    looked_at = looked_at + 1
    if tonumber(redis.call('HGET', base .. ':u', user) or 0) <= count then users = users - 1 end
  end
end
return {clients, users, incarnations, looked_at}
