package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// harmfulHere are the harmful calls that only amd64 has.
func harmfulHere(nr uintptr) bool {
	switch nr {
	case unix.SYS_FORK, unix.SYS_VFORK, unix.SYS_PAUSE, unix.SYS_ALARM, unix.SYS_ARCH_PRCTL:
		return true
	}
	return nr > 334 && nr < 424 // no such calls
}

// int80 makes a 32-bit system call without arguments; it is written in
// assembly.
func int80(nr uint32) int32

func init() {
	// i386 NUMBER: through the 32-bit entry, whose numbers are others.
	kernelVerbs["i386"] = func(a []string) (string, error) { return inChild(callI386, number(a[0])) }
	// traceme: lets the parent trace, in a child without Go's own signals, which
	// would stop it.
	kernelVerbs["traceme"] = func([]string) (string, error) { return inChild(callTraceMe, 0) }
	// x32 NUMBER: with the bit that makes it a call of the x32 ABI.
	kernelVerbs["x32"] = func(a []string) (string, error) { return inChild(callX32, number(a[0])) }
}

//go:nosplit
func callI386(nr uintptr) (errno uintptr) { return uintptr(-min(int80(uint32(nr)), 0)) }

//go:nosplit
func callX32(nr uintptr) (errno uintptr) {
	_, _, e := unix.RawSyscall(0x40000000|nr, 0, 0, 0)
	return uintptr(e)
}

//go:nosplit
func callTraceMe(uintptr) (errno uintptr) {
	_, _, e := unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
	return uintptr(e)
}

// inChild makes a call, which returns an errno, in a child: a filter made for
// one architecture may kill who calls another's. The call must be nosplit: the
// child has one thread, on which Go's scheduler would wait for the others if its
// goroutine were to make room, as a function's first instructions find out.
func inChild(call func(nr uintptr) (errno uintptr), nr uintptr) (string, error) {
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return "", e
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, call(nr), 0, 0)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &ws, 0, nil); err != nil {
		return "", err
	}
	switch {
	case ws.Signaled():
		return "", fmt.Errorf("killed by %s", unix.SignalName(ws.Signal()))
	case ws.ExitStatus() != 0:
		return "", unix.Errno(ws.ExitStatus())
	}
	return "", nil
}
