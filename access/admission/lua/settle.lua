-- ARGV: the outcome. Only the first settlement of a call counts; a hold that expired has nothing to give back.

local outcome = cjson.decode(ARGV[1])
local done = prefix .. ":done:" .. outcome.id
if not call("SET", done, "1", "NX", "PX", KEEP_MS) then
  return 0
end
expire(outcome.ended)
if call("ZSCORE", holds_key, outcome.id) then
  release(outcome.id)
end
for _, scope in ipairs(outcome.scopes) do
  local sums, field = window_key(scope.id), "t:" .. text(scope.slot)
  if scope.slot > 0 and call("HEXISTS", sums, field) == 1 then
    call("HINCRBY", sums, field, outcome.difference)
    call("HINCRBY", sums, "t", outcome.difference)
  end
end
if outcome.cost[1] == 0 and outcome.cost[2] == 0 then
  return 1
end
for _, budget in ipairs(outcome.budgets) do
  local key = budget_key(budget.id, budget.window)
  local through = tonumber(call("HGET", key, "through:" .. outcome.gateway) or 0)
  if outcome.sequence > through then
    add_amount(key, "unrecorded", outcome.cost)
    local member = write_amount(outcome.cost) .. ":" .. outcome.id
    local waiting = unconfirmed_key(budget.id, budget.window, outcome.gateway)
    call("ZADD", waiting, outcome.sequence, member)
    if budget.keep > 0 then
      call("PEXPIRE", key, budget.keep)
      call("PEXPIRE", waiting, budget.keep)
    end
  end
end
return 1
