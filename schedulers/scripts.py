"""The steps on a queue that must not be seen half done, as Lua for Redis 6.2 and later. No script decodes a message.

In each: `unacked` holds what is leased, as `[<message>, "", "<list>"]`, `index` when it was leased or last renewed.
A step writes the new place before it clears the old one, so that an error in the middle repeats and never loses. A Redis
without memory refuses only a script's first write, and only one that needs memory: the steps that lead to a message's
end begin with a write that needs none, or a full Redis could not be emptied.
"""

from __future__ import annotations

_NOW = "local t = redis.call('TIME'); local now = t[1] + t[2] / 1000000\n"

# KEYS: list, unacked, index, strikes. ARGV: token, most, max bytes, end of a lease's value.
# Returns the messages and, if any message is under suspicion, for each its deaths or -1.
PULL = (
    _NOW
    + """
local token, most, most_bytes, tail = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
redis.call('HDEL', KEYS[2], '')
local suspects = redis.call('EXISTS', KEYS[4]) == 1
local raws, deaths, bytes, full = {}, {}, 0, false
repeat
  local first = #raws
  local some = redis.call('LRANGE', KEYS[1], -first - math.min(most - first, 32), -1 - first)
  local values, times = {}, {}
  for i = #some, 1, -1 do
    local raw = some[i]
    bytes = bytes + #raw
    full = bytes > most_bytes and #raws > 0
    if full then break end
    raws[#raws + 1] = raw
    if suspects then deaths[#raws] = tonumber(redis.call('HGET', KEYS[4], redis.sha1hex(raw)) or -1) end
    local field = string.format('%s:%05d', token, #raws)
    values[#values + 1], values[#values + 2] = field, '[' .. raw .. tail
    times[#times + 1], times[#times + 2] = now, field
  end
  if #values > 0 then
    redis.call('ZADD', KEYS[3], unpack(times))
    redis.call('HSET', KEYS[2], unpack(values))
  end
until full or #raws == most or #raws == first
if #raws > 0 then redis.call('LTRIM', KEYS[1], 0, -1 - #raws) end
return {raws, deaths}
"""
)

# KEYS: unacked, index, strikes. ARGV: how many pairs, pairs of field and hash of a suspect, other fields.
# Returns how many were still leased under these fields.
ACK = """
local held, pairs_end = 0, 1 + 2 * tonumber(ARGV[1])
for i = 2, pairs_end, 2 do
  if redis.call('HDEL', KEYS[1], ARGV[i]) == 1 then
    held = held + 1
    redis.call('HDEL', KEYS[3], ARGV[i + 1])
  end
  redis.call('ZREM', KEYS[2], ARGV[i])
end
for i = pairs_end + 1, #ARGV, 1000 do
  local last = math.min(i + 999, #ARGV)
  held = held + redis.call('HDEL', KEYS[1], unpack(ARGV, i, last))
  redis.call('ZREM', KEYS[2], unpack(ARGV, i, last))
end
return held
"""

# KEYS: index. ARGV: fields.
RENEW = (
    _NOW
    + """
local held = 0
redis.call('ZREM', KEYS[1], '')
for _, field in ipairs(ARGV) do
  if redis.call('ZSCORE', KEYS[1], field) then
    redis.call('ZADD', KEYS[1], 'XX', now, field)
    held = held + 1
  end
end
return held
"""
)

_GIVE_BACK = """
local function give_back(field, tail)
  local value = redis.call('HGET', KEYS[2], field)
  local raw = value and string.sub(value, 2, -1 - #tail)
  if raw then redis.call('RPUSH', KEYS[1], raw) end
  redis.call('HDEL', KEYS[2], field)
  redis.call('ZREM', KEYS[3], field)
  return raw
end
redis.call('HDEL', KEYS[2], '')
"""

# KEYS: list, unacked, index, strikes. ARGV: end of a value, then pairs of field and deaths at its pull, '' for no suspect.
# The last goes back first, so that the first is the next to be pulled. A start that was counted did not kill: as before.
RELEASE = (
    _GIVE_BACK
    + """
local held = 0
for i = #ARGV - 1, 2, -2 do
  local raw = give_back(ARGV[i], ARGV[1])
  if raw then
    held = held + 1
    if ARGV[i + 1] ~= '' then redis.call('HSET', KEYS[4], redis.sha1hex(raw), ARGV[i + 1]) end
  end
end
return held
"""
)

# KEYS: list, unacked, index, strikes. ARGV: end of a value, lease in seconds, most.
RESTORE = (
    _NOW
    + _GIVE_BACK
    + """
local due = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - tonumber(ARGV[2]), 'LIMIT', 0, ARGV[3])
local back = 0
for i = #due, 1, -1 do
  local raw = give_back(due[i], ARGV[1])
  if raw then
    back = back + 1
    redis.call('HSETNX', KEYS[4], redis.sha1hex(raw), 0)
  end
end
return back
"""
)

# KEYS: unacked, strikes. ARGV: field, hash of the message, deaths. Set, not added: it may be repeated. Returns whether ours.
BEGIN_ALONE = """
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
return 1
"""

# KEYS: unacked, index, strikes, dead. ARGV: field, hash of the message, letter, most letters.
# Returns how many letters there were then, before the oldest above `most` were dropped; 0: not ours.
BURY = """
redis.call('HDEL', KEYS[1], '')
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
local letters = redis.call('LPUSH', KEYS[4], ARGV[3])
redis.call('LTRIM', KEYS[4], 0, tonumber(ARGV[4]) - 1)
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[2])
return letters
"""

# KEYS: list, dead. ARGV: pairs of letter and message. The messages go to the end of the queue.
REPLAY = """
local back = 0
for i = 1, #ARGV, 2 do
  if redis.call('LPOS', KEYS[2], ARGV[i]) then
    redis.call('LPUSH', KEYS[1], ARGV[i + 1])
    redis.call('LREM', KEYS[2], 1, ARGV[i])
    back = back + 1
  end
end
return back
"""

# KEYS: list. ARGV: most waiting, messages. Returns how many wait; -1 - that number: refused.
SEND = """
local waiting = redis.call('LLEN', KEYS[1])
if waiting + #ARGV - 1 > tonumber(ARGV[1]) then return -1 - waiting end
for i = 2, #ARGV, 1000 do waiting = redis.call('LPUSH', KEYS[1], unpack(ARGV, i, math.min(i + 999, #ARGV))) end
return waiting
"""

# KEYS: workers of a pool. ARGV: name, seconds after which others are forgotten.
ALIVE = (
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - tonumber(ARGV[2]))
redis.call('ZADD', KEYS[1], now, ARGV[1])
"""
)

# KEYS: workers of a pool, their reports. ARGV: name, report, seconds after which others are forgotten, the same of all reports.
REPORT = (
    _NOW
    + """
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[4])
local since = now - tonumber(ARGV[3])
if redis.call('HLEN', KEYS[2]) > redis.call('ZCOUNT', KEYS[1], since, '+inf') then
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if tonumber(redis.call('ZSCORE', KEYS[1], name) or 0) < since then redis.call('HDEL', KEYS[2], name) end
  end
end
"""
)

# KEYS: workers of a pool, their reports. ARGV: seconds. Returns name, report, name, report of those that said so long that they live.
REPORTS = (
    _NOW
    + """
local found = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now - tonumber(ARGV[1]), '+inf')) do
  local report = redis.call('HGET', KEYS[2], name)
  if report then found[#found + 1], found[#found + 2] = name, report end
end
return found
"""
)

# KEYS: workers of a pool. ARGV: seconds.
WORKERS = _NOW + "return redis.call('ZCOUNT', KEYS[1], now - tonumber(ARGV[1]), '+inf')"

# The same.
LIVING = _NOW + "return redis.call('ZRANGEBYSCORE', KEYS[1], now - tonumber(ARGV[1]), '+inf')"
