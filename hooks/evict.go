package hooks

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// evictWait is how long a process may take to die.
const evictWait = time.Second

// Evict ends the processes of inner that hold the gateway's addresses, which they
// took while there was no gateway, and says which these were. Their sockets cannot
// be taken from them otherwise: what was bound to a port stays so until its last
// descriptor is closed (SOCK_DESTROY of sock_diag(7) ends connections, and
// shutdown(2) a listener).
func Evict(inner *os.File) (ended []string, err error) {
	var pids []int
	if err := inhabitants(inner, func(pid int) bool { pids = append(pids, pid); return true }); err != nil {
		return nil, fmt.Errorf("cannot free the gateway's addresses: %w", err)
	}
	for _, pid := range pids {
		at, taken := squats(pid)
		if !taken {
			continue
		}
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err := end(pid, inner); err != nil {
			return ended, fmt.Errorf("cannot free the gateway's address %s of process %d: %w", at, pid, err)
		}
		ended = append(ended, fmt.Sprintf("process %d (%q) had taken the gateway's address %s and was ended", pid, strings.TrimSpace(string(name)), at))
	}
	return ended, nil
}

// squats tells whether a process holds a socket that keeps a listener from its
// address. Its threads need not share their descriptors, nor need the first of them
// have lived as long as the others.
func squats(pid int) (at netip.AddrPort, taken bool) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return at, false
	}
	for _, t := range threads {
		if tid, err := strconv.Atoi(t.Name()); err == nil {
			if at, taken = threadSquats(tid, pid); taken {
				return at, true
			}
		}
	}
	return at, false
}

func threadSquats(tid, pid int) (at netip.AddrPort, taken bool) {
	dir := fmt.Sprintf("/proc/%d/task/%d/fd/", pid, tid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return at, false
	}
	flags := 0
	if tid != pid {
		flags = unix.PIDFD_THREAD // Linux 6.9; nobody can copy from it before
	}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if link, lerr := os.Readlink(dir + e.Name()); err != nil || lerr != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		copied, err := copyOf(tid, flags, fd)
		if err != nil {
			continue
		}
		at, taken = inTheWay(copied)
		unix.Close(copied)
		if taken {
			return at, true
		}
	}
	return at, false
}

// inTheWay tells whether a socket has the port of a listener at its address, or at
// all addresses.
func inTheWay(fd int) (at netip.AddrPort, taken bool) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return at, false
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		at = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		at = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	default:
		return at, false
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	taken = err == nil && slices.ContainsFunc(listeners, func(l listener) bool {
		return l.at.Port() == at.Port() && l.udp == (kind == unix.SOCK_DGRAM) && (at.Addr().IsUnspecified() || at.Addr() == l.at.Addr())
	})
	return at, taken
}

// end kills a process that lives in ns, and waits.
func end(pid int, ns *os.File) error {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended by itself
	}
	defer unix.Close(pidfd)
	want, err := ns.Stat()
	if err != nil {
		return err
	}
	if !lives(pid, want) {
		return nil // another has its number by now
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("pidfd_send_signal: %w", err)
	}
	if !Ended(pidfd, evictWait) {
		return fmt.Errorf("it does not end")
	}
	return nil
}
