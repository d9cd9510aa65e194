package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
)

// A member is a container behind this gateway: the one that brought it up, and
// those that joined its network namespace later, as the containers of a pod do.
type member struct {
	control.Box
	pid     int    // of its init
	mounts  string // its mount namespace, as /proc/PID/ns/mnt reads
	pidfd   *os.File
	ruleset *os.File // nil: none came
	forget  context.CancelFunc
}

// members are the containers whose init lives. When the last one has left none
// may come: the gateway ends.
type members struct {
	mu   sync.Mutex
	list []*member
	gone bool
	none chan struct{} // closed with gone
}

// enter takes a container in, until its init ends or it leaves. The caller
// closes its files if that fails.
func (m *Monitor) enter(new *member) (err error) {
	if new.mounts, err = os.Readlink("/proc/" + strconv.Itoa(new.pid) + "/ns/mnt"); err != nil {
		return errors.New("cannot take the container in: its init is gone")
	}
	if m.Cgroup != "" {
		m.noteSearched(m.owners.watch(m.Cgroup, new.pid))
	}
	ctx, cancel := context.WithCancel(context.Background())
	new.forget = cancel
	s := &m.members
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		cancel()
		return errors.New("cannot take the container in: the gateway ends, its last container has ended")
	}
	s.list = append(s.list, new)
	go func() {
		if waitExit(ctx, new.pidfd) == nil {
			m.leave(new.Box)
		}
	}()
	m.observe(new.Box, new.pid)
	return nil
}

// leave lets a container go and returns how many are left.
func (m *Monitor) leave(box control.Box) int {
	s := &m.members
	s.mu.Lock()
	i := slices.IndexFunc(s.list, func(o *member) bool { return o.Box == box })
	if i < 0 {
		defer s.mu.Unlock()
		return len(s.list)
	}
	old := s.list[i]
	s.list = slices.Delete(s.list, i, i+1)
	old.forget()
	control.CloseAll([]*os.File{old.ruleset})
	left := len(s.list)
	if left == 0 && !s.gone {
		s.gone = true
		close(s.none)
	}
	s.mu.Unlock()
	if left > 0 {
		m.owners.unwatch(old.pid)
		m.unobserve(box)
		line := audit.NewChange(box.ID, audit.KindLeft, fmt.Sprintf("container left the gateway of %s, which has %d more", m.attached.ID, left))
		_ = m.log.Append(line) // its fault shows in Status
	}
	return left
}

// awaitMembers waits until the last container has left, or ctx is done, and
// reports whether it was the former.
func (m *Monitor) awaitMembers(ctx context.Context) bool {
	select {
	case <-m.members.none:
		return true
	case <-ctx.Done():
		return false
	}
}

// whose is the id of the container that the process pid is part of, or "". Each
// has a mount namespace of its own, which no program in it can leave: the
// second filter knows no setns and no unshare.
func (s *members) whose(pid int) string {
	mounts, err := linkOf(pid, "ns/mnt")
	if err != nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.mounts == mounts {
			return o.ID
		}
	}
	return ""
}

// ruleset returns what the monitor keeps for a container's exec. It is a
// descriptor of the caller's own.
func (s *members) ruleset(box control.Box) (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		if o.Box == box && o.ruleset != nil {
			fd, err := unix.FcntlInt(o.ruleset.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("cannot hand out the ruleset: %w", err)
			}
			return os.NewFile(uintptr(fd), "ruleset"), nil
		}
	}
	return nil, errors.New("cannot hand out the ruleset: this gateway holds none")
}

func (s *members) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range s.list {
		o.forget()
		control.CloseAll([]*os.File{o.ruleset})
	}
	s.list = nil
}

// waitExit waits until the process of a pidfd has ended (pidfd_open(2): it
// becomes readable, Linux 5.3), or ctx is done, and closes it.
func waitExit(ctx context.Context, pidfd *os.File) error {
	defer pidfd.Close()
	cancelled, wake, err := os.Pipe()
	if err != nil {
		return err
	}
	defer cancelled.Close()
	stop := context.AfterFunc(ctx, func() { wake.Close() })
	defer func() {
		if stop() {
			wake.Close()
		}
	}()
	fds := []unix.PollFd{
		{Fd: int32(pidfd.Fd()), Events: unix.POLLIN},
		{Fd: int32(cancelled.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(fds, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("cannot wait for init: %w", err)
		case fds[0].Revents != 0:
			return nil
		case fds[1].Revents != 0:
			return ctx.Err()
		}
	}
}
