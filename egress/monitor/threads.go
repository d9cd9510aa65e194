package monitor

import (
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// timerSlack is by how much a timer of the gateway's may be late, in nanoseconds.
// While there is work the Go runtime looks after its threads every 20 µs, for
// which alone the kernel, whose own slack is 50 µs, wakes a processor up ten
// thousand times a second. What the gateway waits for is told in milliseconds.
const timerSlack = 1_000_000

// unhurry has the gateway interrupt nobody: its threads do not take a processor
// from whom they were woken up by (sched(7), SCHED_BATCH), so that they find more
// to do when they get one, and their timers may be late
// (proc_pid_timerslack_ns(5)). That saves a fifth of what short connections cost.
// Threads and processes that are started later inherit both: a worker does. Where
// a host forbids it all works as well, and slower.
func unhurry() {
	for range 2 { // a thread may be made by one whose turn has not come
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return
		}
		for _, t := range threads {
			_ = os.WriteFile("/proc/"+t.Name()+"/timerslack_ns", []byte(strconv.Itoa(timerSlack)), 0)
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			if attr, err := unix.SchedGetAttr(tid, 0); err == nil {
				_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Policy: unix.SCHED_BATCH, Nice: attr.Nice}, 0)
			}
		}
	}
}
