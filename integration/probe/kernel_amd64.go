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
	kernelVerbs["i386"] = func(a []string) (string, error) {
		nr := uint32(number(a[0]))
		return inChild(func() uintptr { return uintptr(-min(int80(nr), 0)) })
	}
	// traceme: lets the parent trace, in a child without Go's own signals, which
	// would stop it.
	kernelVerbs["traceme"] = func([]string) (string, error) {
		return inChild(func() uintptr {
			_, _, e := unix.RawSyscall(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0)
			return uintptr(e)
		})
	}
	// x32 NUMBER: with the bit that makes it a call of the x32 ABI.
	kernelVerbs["x32"] = func(a []string) (string, error) {
		nr := 0x40000000 | number(a[0])
		return inChild(func() uintptr {
			_, _, e := unix.RawSyscall(nr, 0, 0, 0)
			return uintptr(e)
		})
	}
}

// inChild makes a call, which returns an errno, in a child: a filter made for
// one architecture may kill who calls another's.
func inChild(call func() uintptr) (string, error) {
	pid, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		return "", e
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, call(), 0, 0)
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
