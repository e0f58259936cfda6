-- Takes tokens out of a bucket, whatever is in it.
-- KEYS: the bucket. ARGV: taken, tokens that fit in, milliseconds in which it fills. Answer: thousandths missing now.
local taken, tokens, period = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local missing = 0
local state = redis.call('GET', KEYS[1])
if state then
  local before, at = string.match(state, '^(%d+) (%d+)$')
  if before then missing = math.max(0, before - math.max(0, now - at) * tokens * 1000 / period) end
end
missing = math.floor(missing + taken * 1000)

redis.call('SET', KEYS[1], string.format('%.0f %.0f', missing, now), 'PX', math.ceil(missing / 1000 / tokens * period) + 1000)
return missing
