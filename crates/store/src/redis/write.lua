-- Brings what changed of one device into its hash. Answers 1, or 0 when who asks does not own the device any more.
-- KEYS: the hash, the list of devices, the number of metrics.
-- ARGV: epoch, device, first_seen, last_seen, events, offset, then of each metric: field, timestamp, offset, text.
local held = redis.call('HMGET', KEYS[1], '@epoch', '@first_seen', '@last_seen')
local epoch = tonumber(ARGV[1])
local first_seen, last_seen = ARGV[3], ARGV[4]
if held[1] then
  if tonumber(held[1]) > epoch then return 0 end
  if tonumber(held[2] or first_seen) < tonumber(first_seen) then first_seen = held[2] end
  if tonumber(held[3] or last_seen) > tonumber(last_seen) then last_seen = held[3] end
end
if not held[1] or tonumber(held[1]) < epoch then redis.call('ZADD', KEYS[2], 0, ARGV[2]) end

local fields = {}
for at = 7, #ARGV, 4 do fields[#fields + 1] = ARGV[at] end
local known = #fields > 0 and redis.call('HMGET', KEYS[1], unpack(fields)) or {}
local write = { '@epoch', ARGV[1], '@first_seen', first_seen, '@last_seen', last_seen, '@events', ARGV[5], '@offset', ARGV[6] }
local added = 0
for number = 1, #fields do
  local at = 3 + 4 * number
  local is_newer = true
  if known[number] then
    -- The newest timestamp wins, of equal ones the later offset.
    local timestamp, offset = string.match(known[number], '^{"timestamp":(%-?%d+),"received_at":%-?%d+,"offset":(%d+),')
    timestamp, offset = tonumber(timestamp), tonumber(offset)
    local mine = tonumber(ARGV[at + 1])
    is_newer = not timestamp or timestamp < mine or (timestamp == mine and offset <= tonumber(ARGV[at + 2]))
  else
    added = added + 1
  end
  if is_newer then
    write[#write + 1] = fields[number]
    write[#write + 1] = ARGV[at + 3]
  end
end
redis.call('HSET', KEYS[1], unpack(write))
if added > 0 then redis.call('INCRBY', KEYS[3], added) end
return 1
