package integration

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// loadFilter puts this thread, and what it becomes, under a seccomp filter.
// Root needs no no_new_privs for it (seccomp(2)), and must not set it: it
// would be set in the container whether or not nemoclaw does.
func loadFilter(code []unix.SockFilter) error {
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return e
	}
	return nil
}
