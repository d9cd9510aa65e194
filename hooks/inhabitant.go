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
func Inhabitant(ns *os.File) (int, error) {
	want, err := ns.Stat()
	if err != nil {
		return 0, fmt.Errorf("cannot identify a network namespace: %w", err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, fmt.Errorf("cannot list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// A process that ends meanwhile lives nowhere.
		if st, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && os.SameFile(st, want) {
			return pid, nil
		}
	}
	return 0, nil
}
