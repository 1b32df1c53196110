-- Records the requests that got no answer, with their times. Requires `wrk -tN -cN`, so that each thread has one
-- connection. Then a request is lost if its thread sends the next request before it has received an answer. wrk itself
-- only counts totals, and does not count requests that wait for an answer for ever.

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long seconds; long nanoseconds; } moment;
    int clock_gettime(int clock, moment *now);
]]
local CLOCK_MONOTONIC = 1
local moment = ffi.new("moment")

-- Returns the time in microseconds. Lua's numbers are doubles, which hold this integer exactly.
local function now()
    ffi.C.clock_gettime(CLOCK_MONOTONIC, moment)
    return tonumber(moment.seconds) * 1000000 + math.floor(tonumber(moment.nanoseconds) / 1000)
end

local threads = {}

function setup(thread)
    -- Before the run, wrk calls request() once in the first thread, and does not send the returned request.
    thread:set("rehearses", #threads == 0)
    -- Every second thread keeps its connection. Each other thread opens a new connection for each request.
    thread:set("keeps", #threads % 2 == 0)
    table.insert(threads, thread)
end

function init()
    wrk.headers["Connection"] = keeps and "keep-alive" or "close"
    question = wrk.format("GET", "/")
    asked, answered, active, waiting, losses = 0, 0, now(), false, ""
end

function request()
    if rehearses then
        rehearses = false
        return question
    end
    local time = now()
    if waiting then
        losses = losses .. string.format(",[%.0f,%.0f]", active, time)
    end
    asked, active, waiting = asked + 1, time, true
    return question
end

function response()
    answered, active, waiting = answered + 1, now(), false
end

function done(summary, latency)
    local stopped, connections = now(), {}
    for _, thread in ipairs(threads) do
        local form = '{"keeps":%s,"asked":%.0f,"answered":%.0f,"silent":%.0f,"losses":[%s]}'
        local keeps, asked, answered = thread:get("keeps"), thread:get("asked"), thread:get("answered")
        local silent, losses = stopped - thread:get("active"), thread:get("losses"):sub(2)
        table.insert(connections, string.format(form, tostring(keeps), asked, answered, silent, losses))
    end
    local kinds = {}
    for _, kind in ipairs({ "connect", "read", "write", "timeout", "status" }) do
        table.insert(kinds, string.format('"%s":%.0f', kind, summary.errors[kind]))
    end
    local form = '{"requests":%.0f,"microseconds":%.0f,"errors":{%s},"connections":[%s]}\n'
    local errors, list = table.concat(kinds, ","), table.concat(connections, ",")
    io.stderr:write(string.format(form, summary.requests, summary.duration, errors, list))
end
