package main

import (
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"runtime/debug"
	"syscall"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	ll "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/worker"
	"nemoclaw/specs/seccomp"
)

const (
	// workerMemory is what the collector keeps a worker's heap below, in bytes.
	workerMemory = 160 << 20
	// workerProcs is on how many processors a worker runs Go code at once, at the
	// most: its cgroup gives it no more. On a small machine it is half of them:
	// the connections' other ends need the rest, and threads that wake each other
	// up cost more than they gain.
	workerProcs = 2
	// nobody is the user and group of a worker and of the reader of denials.
	nobody = 65534
	// minLandlock is the least Landlock ABI that they run under: the
	// first that mediates truncation (Linux 6.2).
	minLandlock = 3
)

// runWorker gives everything up, then decides connections.
func runWorker() error {
	goruntime.GOMAXPROCS(min(max(goruntime.NumCPU()/2, 1), workerProcs))
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(workerMemory)
	unix.CloseOnExec(conversation)
	conn, err := control.FromFile(os.NewFile(conversation, "monitor"))
	if err != nil {
		return err
	}
	if err := confine(seccomp.Worker); err != nil {
		return fmt.Errorf("cannot confine the worker: %w", err)
	}
	return new(worker.Worker).Run(conn)
}

// confine takes from this process, all threads of it, its user, the file
// system but what readable names, and the system calls that it has no use for.
// It comes before the first byte of the agent's is read, and there is no way
// back.
func confine(filter func(pid int) ([]unix.SockFilter, error), readable ...string) error {
	if err := syscall.Setgroups(nil); err != nil {
		return fmt.Errorf("setgroups: %w", err)
	}
	if err := syscall.Setresgid(nobody, nobody, nobody); err != nil {
		return fmt.Errorf("setresgid: %w", err)
	}
	if err := syscall.Setresuid(nobody, nobody, nobody); err != nil {
		return fmt.Errorf("setresuid: %w", err)
	}
	abi, err := ll.LandlockGetABIVersion()
	if err != nil || abi < minLandlock {
		return errors.Join(fmt.Errorf("this kernel has Landlock ABI %d, and %d is needed", abi, minLandlock), err)
	}
	// All rights of the file system that this kernel knows, and no rule but to
	// read: nothing else can be opened. The ABI has been checked, so "best effort" only
	// leaves out what the kernel has no name for. No_new_privs comes with it.
	var rules []landlock.Rule
	for _, dir := range readable {
		rules = append(rules, landlock.PathAccess(ll.AccessFSReadFile, dir))
	}
	if err := landlock.V9.BestEffort().RestrictPaths(rules...); err != nil {
		return err
	}
	if _, err := os.Open("/"); err == nil {
		return errors.New("the ruleset does not hold")
	}
	return loadFilter(filter)
}

// loadFilter loads the seccomp filter for all threads (seccomp(2), TSYNC since
// Linux 3.17).
func loadFilter(make func(pid int) ([]unix.SockFilter, error)) error {
	filter, err := make(os.Getpid())
	if err != nil {
		return err
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	if r != 0 {
		return fmt.Errorf("seccomp: thread %d would not take the filter", r)
	}
	return nil
}
