package runtime

import (
	"os"
	"os/signal"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// attendant stays with a process: what is sent to us is sent on to it, its
// terminal follows the size of ours, and its end is ours.
type attendant struct{ signals chan os.Signal }

// newAttendant starts catching signals; nothing that comes from here on is
// lost. With subreaper, orphans of the container become our children.
func newAttendant(subreaper bool) *attendant {
	if subreaper {
		_ = unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
	}
	a := &attendant{make(chan os.Signal, 2048)}
	signal.Notify(a.signals, unix.SIGCHLD) // first, and at once
	signal.Notify(a.signals)
	return a
}

// wait returns the exit status of p, 128 and the signal's number if one ended
// it.
func (a *attendant) wait(p *libcontainer.Process, io *stdio) (int, error) {
	pid, err := p.Pid()
	if err != nil {
		return -1, err
	}
	io.resize()
	for s := range a.signals {
		switch s {
		case unix.SIGWINCH:
			io.resize()
		case unix.SIGCHLD:
			if status, ended := reap(pid); ended {
				_, _ = p.Wait() // its pipes are flushed when this returns
				return status, nil
			}
		case unix.SIGURG: // the Go runtime's own
		default:
			_ = p.Signal(s) // it may have ended; then SIGCHLD follows
		}
	}
	return -1, nil
}

// reap collects every child that has ended and reports on pid.
func reap(pid int) (status int, ended bool) {
	for {
		var ws unix.WaitStatus
		child, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || child <= 0 {
			return status, ended
		}
		if child == pid {
			ended, status = true, ws.ExitStatus()
			if ws.Signaled() {
				status = 128 + int(ws.Signal())
			}
		}
	}
}
