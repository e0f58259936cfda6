-- Counts a member unless so many others are there.
-- KEYS: the incarnations that count somebody here. ARGV: own incarnation, member, limit, life in milliseconds, incarnations
-- that are alive. Answer: -1 when it is counted, else how many others there are.
local base, own, member, limit, life = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local mine = base .. ':m:' .. own
if redis.call('SISMEMBER', mine, member) == 1 then return -1 end
local alive = {}
for i = 5, #ARGV do alive[ARGV[i]] = true end
local found = 0
local elsewhere = false
for _, one in ipairs(redis.call('SMEMBERS', base)) do
  if alive[one] then
    found = found + redis.call('SCARD', base .. ':m:' .. one)
    if redis.call('SISMEMBER', base .. ':m:' .. one, member) == 1 then elsewhere = true end
  end
end
if elsewhere then found = found - 1 end
if found >= limit then return found end
local renew = redis.call('PTTL', mine) < life / 2

redis.call('SADD', mine, member)
redis.call('SADD', base, own)
if renew then
  redis.call('PEXPIRE', mine, life)
  redis.call('PEXPIRE', base, life)
end
return -1
