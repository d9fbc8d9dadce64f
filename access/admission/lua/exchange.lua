-- ARGV: balances from the record, budgets to report, and now. Answers {spent, held} of each budget.

local balances, budgets = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])
local now = tonumber(ARGV[3])

local function confirm(key, balance, gateway, through)
  local waiting = unconfirmed_key(balance.id, balance.window, gateway)
  for _, member in ipairs(call("ZRANGEBYSCORE", waiting, "-inf", through)) do
    local d, p = string.match(member, "^(-?%d+):(%d+):")
    subtract_amount(key, "unrecorded", { tonumber(d), tonumber(p) })
  end
  call("ZREMRANGEBYSCORE", waiting, "-inf", through)
  call("HSET", key, "through:" .. gateway, text(through))
end

expire(now)
for _, balance in ipairs(balances) do
  local key = budget_key(balance.id, balance.window)
  call("HSET", held_key(balance.id), "known", "1")
  if balance.version > tonumber(call("HGET", key, "version") or -1) then
    call("HSET", key, "version", text(balance.version), "recorded", write_amount(balance.spent))
    for gateway, through in pairs(balance.through) do
      confirm(key, balance, gateway, through)
    end
    if balance.keep > 0 then
      call("PEXPIRE", key, balance.keep)
    end
  end
end
local uses = {}
for i, budget in ipairs(budgets) do
  local held = read_amount(call("HGET", held_key(budget.id), "held"))
  uses[i] = { write_amount(spent_of(budget.id, budget.window)), write_amount(held) }
end
return uses
