-- Keeps retained messages of one realm, each unless a later one is there.
-- KEYS: their hash, the set of realms. ARGV: the realm; then topic, stamp (16 hexadecimal digits) and message of each.
redis.call('SADD', KEYS[2], ARGV[1])
for at = 2, #ARGV, 3 do
  local old = redis.call('HGET', KEYS[1], ARGV[at])
  if not old or string.sub(old, 1, 16) <= ARGV[at + 1] then
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1] .. ARGV[at + 2])
  end
end
