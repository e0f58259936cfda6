-- Says what an incarnation counts here, all of it, and gives its keys their whole life again.
-- KEYS: the incarnations that count somebody here. ARGV: own incarnation, life in milliseconds, 1 to replace what is there
-- or 0 to add, members.
local base, own, life = KEYS[1], ARGV[1], ARGV[2]
local mine = base .. ':m:' .. own
local forgotten = {}
for _, one in ipairs(redis.call('SMEMBERS', base)) do
  if redis.call('EXISTS', base .. ':m:' .. one) == 0 then forgotten[#forgotten + 1] = one end
end

if ARGV[3] == '1' then redis.call('DEL', mine) end
for _, one in ipairs(forgotten) do redis.call('SREM', base, one) end
if #ARGV > 3 then
  for i = 4, #ARGV do redis.call('SADD', mine, ARGV[i]) end
  redis.call('PEXPIRE', mine, life)
  redis.call('SADD', base, own)
  redis.call('PEXPIRE', base, life)
else
  redis.call('SREM', base, own)
end
return 1
