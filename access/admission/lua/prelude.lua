-- What the scripts share. A script runs alone, so each decision is atomic over everything it looks at.
--
-- Lua's numbers are doubles: whole up to 2^53, and a budget of a million dollars is 10^18 pico-dollars. So an
-- amount is a pair {whole dollars, pico-dollars below one dollar}, each far below 2^53, and is written "d:p".
-- Nothing else here comes near the bound: tokens, requests and epoch milliseconds.
--
-- KEYS[1] is the prefix "fb:{organization}": its hash tag puts every key of an organization on one node, so
-- that keys whose names are known only here are on the node that runs the script.

local PICO = 1e12
local WINDOW_MS = 60000
local DAY_MS = 86400000
local KEEP_MS = 172800000 -- what is idle this long is forgotten

local prefix = KEYS[1]
local call = redis.call

local function text(number)
  return string.format("%.0f", number)
end

local function plus(a, b)
  local d, p = a[1] + b[1], a[2] + b[2]
  if p >= PICO then
    d, p = d + 1, p - PICO
  end
  return { d, p }
end

local function minus(a, b)
  local d, p = a[1] - b[1], a[2] - b[2]
  if p < 0 then
    d, p = d - 1, p + PICO
  end
  return { d, p }
end

local function more(a, b)
  return a[1] > b[1] or (a[1] == b[1] and a[2] > b[2])
end

local function read_amount(written)
  if not written then
    return { 0, 0 }
  end
  local d, p = string.match(written, "^(-?%d+):(%d+)$")
  return { tonumber(d), tonumber(p) }
end

local function write_amount(amount)
  return text(amount[1]) .. ":" .. text(amount[2])
end

local function add_amount(key, field, amount)
  call("HSET", key, field, write_amount(plus(read_amount(call("HGET", key, field)), amount)))
end

local function subtract_amount(key, field, amount)
  call("HSET", key, field, write_amount(minus(read_amount(call("HGET", key, field)), amount)))
end

local function window_key(scope) return prefix .. ":w:" .. scope end -- sums and slots of the last minute
local function slots_key(scope) return prefix .. ":q:" .. scope end -- the slots' instants, in order
local function day_key(scope, now) return prefix .. ":d:" .. scope .. ":" .. text(math.floor(now / DAY_MS)) end
local function parallel_key(scope) return prefix .. ":p:" .. scope end
local function held_key(budget) return prefix .. ":h:" .. budget end
local function budget_key(budget, window) return prefix .. ":b:" .. budget .. ":" .. text(window) end
local function unconfirmed_key(budget, window, gateway)
  return prefix .. ":u:" .. budget .. ":" .. text(window) .. ":" .. gateway
end
local holds_key = prefix .. ":holds"
local function hold_key(id) return prefix .. ":hold:" .. id end

-- Give back what a hold has reserved; the tokens of its minute stay until they are settled or slide out.
local function release(id)
  local written = call("GET", hold_key(id))
  call("ZREM", holds_key, id)
  if not written then
    return
  end
  call("DEL", hold_key(id))
  local hold = cjson.decode(written)
  for _, scope in ipairs(hold.scopes) do
    if call("DECR", parallel_key(scope)) <= 0 then
      call("DEL", parallel_key(scope))
    end
  end
  for _, budget in ipairs(hold.budgets) do
    subtract_amount(held_key(budget), "held", hold.cost)
  end
end

local function expire(now)
  for _, id in ipairs(call("ZRANGEBYSCORE", holds_key, "-inf", now, "LIMIT", 0, 1000)) do
    release(id)
  end
end

local function spent_of(budget, window)
  local found = call("HMGET", budget_key(budget, window), "recorded", "unrecorded")
  return plus(read_amount(found[1]), read_amount(found[2]))
end
