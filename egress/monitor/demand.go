package monitor

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// awaitDemand returns true once something waits in the listeners for a worker,
// and false if ctx is done before. It takes nothing from the queues.
func (m *Monitor) awaitDemand(ctx context.Context) bool {
	queues, err := watchQueues(m.listeners)
	if err != nil {
		m.note(err.Error() + ": a worker runs all the time")
		return ctx.Err() == nil
	}
	defer queues.Close()
	defer context.AfterFunc(ctx, func() { queues.Close() })()
	if raw, err := queues.SyscallConn(); err == nil {
		var ready [1]unix.EpollEvent
		// An error is as good as demand: a worker too many harms nobody.
		_ = raw.Read(func(fd uintptr) bool {
			n, err := unix.EpollWait(int(fd), ready[:], 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
	}
	return ctx.Err() == nil
}

// watchQueues returns what is readable while one of the sockets is: an epoll
// descriptor, which another can watch (epoll(7)). The runtime's own poller is
// not given the sockets: it would wake the monitor up for each connection that
// a worker accepts.
func watchQueues(sockets []*os.File) (*os.File, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot watch the listeners: %w", err)
	}
	for _, s := range sockets {
		if err == nil {
			err = unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, int(s.Fd()), &unix.EpollEvent{Events: unix.EPOLLIN})
		}
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("cannot watch the listeners: %w", err)
	}
	return os.NewFile(uintptr(fd), "queues"), nil
}
