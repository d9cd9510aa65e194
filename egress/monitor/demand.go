package monitor

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
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

// maxRefused bounds how many of each queue are refused at a time.
const maxRefused = 4096

// refuseWaiting resets the connections that wait, and drops the questions, all
// unread: nobody can decide them, and nothing hangs.
func (m *Monitor) refuseWaiting() {
	var conns []int
	datagrams := make([]int, len(m.listeners))
	for i, f := range m.listeners {
		fd := int(f.Fd())
		_ = unix.SetNonblock(fd, true) // Fd may have undone it
		for range maxRefused {
			conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err == unix.EOPNOTSUPP { // a datagram's socket (accept(2))
				if _, _, err = unix.Recvfrom(fd, nil, unix.MSG_DONTWAIT); err == nil {
					datagrams[i]++
					continue
				}
			}
			if err != nil {
				break
			}
			conns = append(conns, conn)
		}
	}
	packets := datagrams[control.ReportsFile] // that the fence has refused: one report each
	questions := -packets
	for _, n := range datagrams {
		questions += n
	}
	if len(conns)+questions+packets == 0 {
		return
	}
	line := m.change(audit.KindWorker, fmt.Sprintf("no worker can be started: %d connections and %d packets were refused, %d questions not answered", len(conns), packets, questions))
	line.SeverityID = audit.High
	line.StatusID = 2
	_ = m.log.Append(line) // its fault shows in Status
	m.mu.Lock()
	m.refused += uint64(len(conns) + questions + packets)
	m.mu.Unlock()
	for _, conn := range conns {
		_ = unix.SetsockoptLinger(conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(conn)
	}
}
