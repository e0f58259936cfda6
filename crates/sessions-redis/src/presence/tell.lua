-- Says that an incarnation has everything of its own on this primary, if no data was lost since the canary was written.
-- KEYS: canary, where it is said. ARGV: the canary's value, what is said, life in milliseconds.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
