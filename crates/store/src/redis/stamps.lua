-- The stamps of retained messages of one realm, empty where there is no message.
-- KEYS: their hash. ARGV: topics.
local stamps = {}
for at, topic in ipairs(ARGV) do
  stamps[at] = string.sub(redis.call('HGET', KEYS[1], topic) or '', 1, 16)
end
return stamps
