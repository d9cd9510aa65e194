package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/denials"
	"nemoclaw/specs/seccomp"
)

// readerMemory is what the collector keeps the reader's heap below, in bytes.
const readerMemory = 32 << 20

// runDenials gives everything up but what the monitor handed in, then reads the
// kernel's audit records for all sandboxes.
func runDenials() error {
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(readerMemory)
	var files [3]*os.File
	for i, name := range []string{"lock", "listener", "records"} {
		fd := conversation + i
		unix.CloseOnExec(fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("cannot read denials: descriptor %d, the %s: %w", fd, name, err)
		}
		files[i] = os.NewFile(uintptr(fd), name)
	}
	l, err := net.FileListener(files[1])
	if err != nil {
		return fmt.Errorf("cannot read denials: %w", err)
	}
	files[1].Close()
	listener, ok := l.(*net.UnixListener)
	if !ok {
		return errors.New("cannot read denials: descriptor 4 is not a unix socket")
	}
	signal.Ignore(syscall.SIGPIPE, syscall.SIGINT)
	if err := confine(seccomp.Reader, "/proc"); err != nil {
		return fmt.Errorf("cannot confine the reader of denials: %w", err)
	}
	return (&denials.Reader{Records: files[2], Listener: listener, Lock: files[0]}).Run()
}
