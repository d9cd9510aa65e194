package monitor

import (
	"os"
	"strconv"
)

// timerSlack is by how much a timer of the gateway's may be late, in nanoseconds.
// While there is work the Go runtime looks after its threads every 20 µs, for
// which alone the kernel, whose own slack is 50 µs, wakes a processor up ten
// thousand times a second. What the gateway waits for is told in milliseconds.
const timerSlack = 1_000_000

// unhurry lets timers be late (proc_pid_timerslack_ns(5)), which saves a tenth of
// what short connections cost. Threads and processes that are started later
// inherit it: a worker does. Where a host forbids it all works as well, and
// slower.
func unhurry() {
	for range 2 { // a thread may be made by one whose turn has not come
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(strconv.Itoa(timerSlack)), 0)
		}
	}
}
