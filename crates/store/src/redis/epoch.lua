-- The epoch of a take-over: later than all before, by the server's clock, so that it is so after a wipe, too.
-- KEYS: the last epoch. Answers microseconds.
local now = redis.call('TIME')
local epoch = math.max(now[1] * 1000000 + now[2], (tonumber(redis.call('GET', KEYS[1])) or 0) + 1)
local text = string.format('%.0f', epoch)
redis.call('SET', KEYS[1], text)
return text
