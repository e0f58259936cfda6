-- Takes a member back. KEYS: the incarnations that count somebody here. ARGV: own incarnation, member.
local mine = KEYS[1] .. ':m:' .. ARGV[1]
redis.call('SREM', mine, ARGV[2])
if redis.call('EXISTS', mine) == 0 then redis.call('SREM', KEYS[1], ARGV[1]) end
return 1
