-- Forgets a retained message, unless another has taken its place.
-- KEYS: the hash of its realm. ARGV: topic, what was found.
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then
  redis.call('HDEL', KEYS[1], ARGV[1])
end
