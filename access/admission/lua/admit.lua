-- ARGV: the request, and the hold as it is kept. Answers {1, what the headers say} or {0, obstacles, the same}.

local request = cjson.decode(ARGV[1])
local now, tokens = request.now, request.tokens
local obstacles = {}

local function obstacle(...)
  local fields = { ... }
  for i, field in ipairs(fields) do
    fields[i] = type(field) == "number" and text(field) or field
  end
  table.insert(obstacles, fields)
end

-- Slide the window to now; returns its sums of requests and tokens.
local function slide(scope)
  local sums, queue = window_key(scope), slots_key(scope)
  local newest = tonumber(call("LINDEX", queue, -1) or 0)
  if newest > now + 1000 then
    -- A clock was set back: all of it counts from now, for one window.
    local kept = call("HMGET", sums, "r", "t")
    call("DEL", sums, queue)
    call("HSET", sums, "r", kept[1], "t", kept[2], "r:" .. text(now), kept[1], "t:" .. text(now), kept[2])
    call("RPUSH", queue, text(now))
  end
  while true do
    local oldest = call("LINDEX", queue, 0)
    if not oldest or tonumber(oldest) > now - WINDOW_MS then
      break
    end
    call("LPOP", queue)
    local slot = call("HMGET", sums, "r:" .. oldest, "t:" .. oldest)
    call("HINCRBY", sums, "r", 0 - tonumber(slot[1] or 0)) -- a minus alone would make "-0"
    call("HINCRBY", sums, "t", 0 - tonumber(slot[2] or 0))
    call("HDEL", sums, "r:" .. oldest, "t:" .. oldest)
  end
  local now_in_it = call("HMGET", sums, "r", "t")
  return tonumber(now_in_it[1] or 0), tonumber(now_in_it[2] or 0)
end

-- When enough has left the window for the call to fit, if nobody else calls.
local function wait(scope, kind, excess)
  for _, at in ipairs(call("LRANGE", slots_key(scope), 0, -1)) do
    excess = excess - tonumber(call("HGET", window_key(scope), kind .. at) or 0)
    if excess <= 0 then
      return tonumber(at) + WINDOW_MS - now
    end
  end
  return WINDOW_MS
end

local function check_scope(scope, index)
  if scope.rpm or scope.tpm then
    scope.r, scope.t = slide(scope.id)
    if scope.tpm and tokens > scope.tpm then
      obstacle("too_large", index, "tokens_per_minute", scope.tpm, scope.t, tokens, -1)
    elseif scope.tpm and scope.t + tokens > scope.tpm then
      local ms = wait(scope.id, "t:", scope.t + tokens - scope.tpm)
      obstacle("rate", index, "tokens_per_minute", scope.tpm, scope.t, tokens, ms)
    end
    if scope.rpm and scope.r >= scope.rpm then
      local ms = wait(scope.id, "r:", scope.r + 1 - scope.rpm)
      obstacle("rate", index, "requests_per_minute", scope.rpm, scope.r, 1, ms)
    end
  end
  if scope.rpd then
    scope.d = tonumber(call("GET", day_key(scope.id, now)) or 0)
    if scope.d >= scope.rpd then
      obstacle("rate", index, "requests_per_day", scope.rpd, scope.d, 1, DAY_MS - now % DAY_MS)
    end
  end
  if scope.parallel then
    local used = tonumber(call("GET", parallel_key(scope.id)) or 0)
    if used >= scope.parallel then
      obstacle("parallel", index, "parallel_requests", scope.parallel, used, 1, request.held_retry)
    end
  end
end

local function check_budget(budget, index)
  local held = call("HMGET", held_key(budget.id), "held", "known")
  if not held[2] then
    obstacle("unavailable", index, budget.id, "0:0", "0:0", "0:0", request.held_retry)
  elseif budget.hard then
    local spent = spent_of(budget.id, budget.window)
    local cost = request.cost
    if not request.priced then
      obstacle("no_price", index, budget.id, write_amount(budget.amount), write_amount(spent), "0:0", -1)
    elseif more(plus(spent, cost), budget.amount) then
      obstacle("budget", index, budget.id, write_amount(budget.amount), write_amount(spent), write_amount(cost), -1)
    else
      local used = plus(spent, read_amount(held[1]))
      if more(plus(used, cost), budget.amount) then
        local written = write_amount(used)
        obstacle("budget_held", index, budget.id, write_amount(budget.amount), written, write_amount(cost), request.held_retry)
      end
    end
  end
end

local function take(scope)
  call("INCR", parallel_key(scope.id))
  if scope.rpd then
    scope.d = call("INCR", day_key(scope.id, now))
    call("PEXPIRE", day_key(scope.id, now), KEEP_MS)
  end
  if not (scope.rpm or scope.tpm) then
    return
  end
  local sums, queue = window_key(scope.id), slots_key(scope.id)
  local newest = tonumber(call("LINDEX", queue, -1) or 0)
  scope.slot = math.max(now, newest) -- another gateway's clock may be a little ahead
  if scope.slot ~= newest then
    call("RPUSH", queue, text(scope.slot))
  end
  scope.r = call("HINCRBY", sums, "r", 1)
  scope.t = call("HINCRBY", sums, "t", tokens)
  call("HINCRBY", sums, "r:" .. text(scope.slot), 1)
  call("HINCRBY", sums, "t:" .. text(scope.slot), tokens)
  call("PEXPIRE", sums, KEEP_MS)
  call("PEXPIRE", queue, KEEP_MS)
end

local function figures()
  local all = {}
  for i, scope in ipairs(request.scopes) do
    local newest = tonumber(call("LINDEX", slots_key(scope.id), -1) or 0)
    all[i] = { text(scope.r or 0), text(scope.t or 0), text(scope.d or 0), text(newest), text(scope.slot or 0) }
  end
  return all
end

expire(now)
for i, scope in ipairs(request.scopes) do
  check_scope(scope, i)
end
for i, budget in ipairs(request.budgets) do
  check_budget(budget, i)
end
if #obstacles > 0 then
  return { 0, obstacles, figures() }
end
for _, scope in ipairs(request.scopes) do
  take(scope)
end
for _, budget in ipairs(request.budgets) do
  add_amount(held_key(budget.id), "held", request.cost)
end
call("SET", hold_key(request.id), ARGV[2])
call("ZADD", holds_key, request.expires, request.id)
return { 1, {}, figures() }
