package seccomp

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// Worker returns the filter of the gateway's worker process, whose pid is pid.
func Worker(pid int) ([]unix.SockFilter, error) {
	denials, err := Denials(nil, nil, slices.Concat(workerGroup.Denials, takenOver(uint32(pid))))
	if err != nil {
		return nil, fmt.Errorf("cannot make the worker's filter: %w", err)
	}
	return Compile(denials)
}

// Reader returns the filter of the reader of denials, whose pid is pid: that of a
// worker, which may open files (those that its Landlock rules name, which is
// /proc) and makes no socket of any kind.
func Reader(pid int) ([]unix.SockFilter, error) {
	list := slices.Concat(workerGroup.Denials, takenOver(uint32(pid)), calls(eperm, "socket", "connect", "bind"))
	list = slices.DeleteFunc(list, func(d Denial) bool { return d.Call == "openat" })
	denials, err := Denials(nil, nil, list)
	if err != nil {
		return nil, fmt.Errorf("cannot make the reader's filter: %w", err)
	}
	return Compile(denials)
}

// takenOver is what a worker that obeys its sandbox could do to others. All
// workers have one user, which is also that of other daemons of the host, and
// where the policy's uplink is the host's network a worker lives in it.
func takenOver(pid uint32) []Denial {
	forNobodyElse := func(call string, arg int, own ...uint32) Denial {
		return Denial{Call: call, Errno: eperm, If: []Test{{Arg: arg, In: false, Values: own}}}
	}
	// A child would outlive the worker, with the listeners, in the uplink.
	list := []Denial{{Call: "clone", Errno: eperm, If: []Test{{Arg: 0, Mask: unix.CLONE_THREAD, In: true, Values: []uint32{0}}}}}
	// Signals to others of the same user: the Go runtime sends its own to threads.
	list = append(list, forNobodyElse("tgkill", 0, pid), forNobodyElse("prlimit64", 0, 0, pid),
		Denial{Call: "fcntl", Errno: eperm, If: []Test{{Arg: 1, In: true, Values: []uint32{unix.F_SETOWN, unix.F_SETOWN_EX, unix.F_SETSIG}}}},
		Denial{Call: "ioctl", Errno: eperm, If: []Test{{Arg: 1, In: true, Values: []uint32{fioSetOwn, sioSetPgrp}}}})
	list = append(list, calls(eperm, "rt_sigqueueinfo", "rt_tgsigqueueinfo",
		"setpriority", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "ioprio_set")...)
	// Landlock before ABI 9 does not stop connect(2) to a socket that is a file,
	// and some of the host's are everybody's to write to. Listening is the
	// monitor's; a server in the uplink would be a way in.
	list = append(list, Denial{Call: "socket", Errno: eperm, If: []Test{{Arg: 0, In: true, Values: []uint32{unix.AF_UNIX}}}})
	list = append(list, calls(eperm, "socketpair", "listen")...)
	// IPC of System V and POSIX is the host's.
	return append(list, calls(eperm, "shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl",
		"msgget", "msgsnd", "msgrcv", "msgctl", "mq_open", "mq_unlink")...)
}

// FIOSETOWN and SIOCSPGRP (asm-generic/sockios.h) choose who gets SIGIO.
const (
	fioSetOwn  = 0x8901
	sioSetPgrp = 0x8902
)
