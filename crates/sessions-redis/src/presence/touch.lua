-- Gives every key of a channel its whole life again.
-- KEYS: the channel's incarnations. ARGV: own incarnation, life in milliseconds.
-- Answer: number of the own entries, the channel's incarnations.
local base, own, life = KEYS[1], ARGV[1], ARGV[2]
local incarnations = redis.call('SMEMBERS', base)
local entries = redis.call('HLEN', base .. ':m:' .. own)
for _, one in ipairs(incarnations) do
  redis.call('PEXPIRE', base .. ':m:' .. one, life)
  redis.call('PEXPIRE', base .. ':u:' .. one, life)
end
redis.call('PEXPIRE', base, life)
redis.call('PEXPIRE', base .. ':u', life)
redis.call('PEXPIRE', base .. ':d', life)
return {entries, incarnations}
