package hooks

import (
	"fmt"
	"os"
	"strconv"
)

// Nameserver is the address at which the gateway answers DNS questions in every
// sandbox.
const Nameserver = "198.18.0.1"

// Inhabitant returns the pid of a process that lives in ns, or 0.
func Inhabitant(ns *os.File) (pid int, err error) {
	err = inhabitants(ns, func(p int) bool { pid = p; return false })
	return pid, err
}

// inhabitants calls each with the processes that live in ns, until it returns
// false.
func inhabitants(ns *os.File, each func(pid int) bool) error {
	want, err := ns.Stat()
	if err != nil {
		return fmt.Errorf("cannot identify a network namespace: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("cannot list processes: %w", err)
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && lives(pid, want) && !each(pid) {
			break
		}
	}
	return nil
}

// lives tells whether a process is in the namespace want. Of one whose first
// thread has ended only the others are anywhere (a zombie has no namespaces); one
// that ends meanwhile lives nowhere.
func lives(pid int, want os.FileInfo) bool {
	st, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err == nil {
		return os.SameFile(st, want)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return false
	}
	for _, t := range threads {
		if st, err := os.Stat(fmt.Sprintf("/proc/%d/task/%s/ns/net", pid, t.Name())); err == nil && os.SameFile(st, want) {
			return true
		}
	}
	return false
}
