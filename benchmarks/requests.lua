-- wrk's side of `api.py`: asks for the paths of a file, one after the other, and ends with a line of JSON.
local paths, body, turn = {}, os.getenv("BODY"), 0
for path in io.lines(os.getenv("PATHS")) do
  table.insert(paths, path)
end
local headers = { ["Authorization"] = "Bearer " .. os.getenv("KEY"), ["Content-Type"] = "application/json" }

function request()
  turn = turn % #paths + 1
  return wrk.format(body and "POST" or "GET", paths[turn], headers, body)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "failed": %d, "p50_ms": %f, "p99_ms": %f}\n',
    summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000
  ))
end
