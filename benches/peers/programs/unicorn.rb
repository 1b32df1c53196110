# The configuration of unicorn, whose parent loads the application before it forks the workers.

worker_processes 4
preload_app true
pid File.join(__dir__, "unicorn.pid")

after_fork do |_server, _worker|
  now = Process.clock_gettime(Process::CLOCK_MONOTONIC, :nanosecond)
  File.open(ENV["PEERS_LINES"], "a") { |lines| lines.syswrite("#{Process.pid} #{now}\n") }
end
