package hooks

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EngineResolver is where Docker's resolver stands in a container's namespace.
// It knows the names of a user-defined network, and passes others on from the
// host's namespace.
var EngineResolver = netip.MustParseAddr("127.0.0.11")

// engineWait is how long the engine's resolver may take to accept.
const engineWait = time.Second

// An Engine asks the resolver that an engine keeps in the sandbox's namespace.
// The zero Engine is ready; it may be used by several goroutines.
//
// It asks by TCP only. Programs of the sandbox see every port of the namespace
// (/proc/net/udp) and choose the source address of a datagram freely (ip(7),
// IP_PKTINFO): over UDP nothing but a number of sixteen bits would tell their
// answers from the engine's.
type Engine struct {
	mu    sync.Mutex
	known uint64 // cookie of the listener that was last found to be the engine's
}

// An ear is a TCP listener at EngineResolver.
type ear struct {
	port   uint16
	inode  uint32
	cookie uint64 // SO_COOKIE: never given twice (socket(7))
}

// Dial connects to the engine's resolver inside a fenced namespace. Nothing of
// what the sandbox may have put in its place is connected to: the listener has
// to be held by a process of the caller's own network namespace, before and
// after. The connection carries Mark, and is non-blocking.
func (e *Engine) Dial(inner *os.File) (*os.File, error) {
	var c *os.File
	err := In(inner, func() error {
		found, err := e.find()
		if err != nil {
			return err
		}
		if c, err = dialMarked(netip.AddrPortFrom(EngineResolver, found.port)); err != nil {
			return err
		}
		// The same one still listens: nobody else did in between.
		now, err := listening()
		if err == nil && !slices.Contains(now, found) {
			err = errors.New("its listener is gone")
		}
		if err != nil {
			c.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot ask the engine's resolver: %w", err)
	}
	return c, nil
}

// find returns the engine's listener in the thread's namespace.
func (e *Engine) find() (ear, error) {
	ears, err := listening()
	if err != nil {
		return ear{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range ears {
		if l.cookie == e.known {
			return l, nil
		}
	}
	for _, l := range ears {
		if l.heldOutside() {
			e.known = l.cookie
			return l, nil
		}
	}
	return ear{}, fmt.Errorf("no engine listens at %s", EngineResolver)
}

// listening lists the TCP listeners at EngineResolver, in the thread's
// namespace.
func listening() ([]ear, error) {
	all, err := netlink.SocketDiagTCP(unix.AF_INET)
	if err != nil {
		return nil, fmt.Errorf("cannot list the sandbox's sockets: %w", err)
	}
	var ears []ear
	for _, s := range all {
		if s.State == netlink.TCP_LISTEN && addrOf(s.ID.Source) == EngineResolver {
			cookie := uint64(s.ID.Cookie[1])<<32 | uint64(s.ID.Cookie[0])
			ears = append(ears, ear{s.ID.SourcePort, s.INode, cookie})
		}
	}
	return ears, nil
}

// heldOutside tells whether a process of our own network namespace holds the
// listener. No program of a sandbox lives there, and none can hand a socket to
// who does.
func (l ear) heldOutside() bool {
	own, err := os.Stat("/proc/self/ns/net") // of the first thread, which never leaves
	if err != nil {
		return false
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, proc := range processes {
		if ns, err := os.Stat(proc + "/ns/net"); err != nil || !os.SameFile(ns, own) {
			continue
		}
		if fd, ok := l.descriptorIn(proc); ok && l.isThat(proc, fd) {
			return true
		}
	}
	return false
}

// descriptorIn finds the listener's inode among a process's descriptors.
func (l ear) descriptorIn(proc string) (fd int, ok bool) {
	entries, err := os.ReadDir(proc + "/fd")
	if err != nil {
		return 0, false
	}
	want := fmt.Sprintf("socket:[%d]", l.inode)
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(proc, "fd", e.Name())); err == nil && link == want {
			fd, err := strconv.Atoi(e.Name())
			return fd, err == nil
		}
	}
	return 0, false
}

// isThat tells whether descriptor fd of a process listens where l does, which
// only one socket can. The number of its inode says less: it comes again after
// four billion sockets, which a program can make. Nor is its cookie the one that
// sock_diag tells, if it is a listener for MPTCP.
func (l ear) isThat(proc string, fd int) bool {
	pid, err := strconv.Atoi(filepath.Base(proc))
	if err != nil {
		return false
	}
	copied, err := copyOf(pid, 0, fd)
	if err != nil {
		return false
	}
	defer unix.Close(copied)
	listens, err := unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listens != 1 {
		return false
	}
	shared, err := unix.GetsockoptInt(copied, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	if err != nil || shared != 0 {
		return false
	}
	sa, err := unix.Getsockname(copied)
	at, ok := sa.(*unix.SockaddrInet4)
	return err == nil && ok && at.Port == int(l.port) && at.Addr == EngineResolver.As4() && isHere(copied)
}

// copyOf makes descriptor fd of a process one of ours as well, or of a thread if
// flags are PIDFD_THREAD (pidfd_open(2)).
func copyOf(pid, flags, fd int) (int, error) {
	process, err := unix.PidfdOpen(pid, flags)
	if err != nil {
		return -1, err
	}
	defer unix.Close(process)
	return unix.PidfdGetfd(process, fd, 0)
}

// isHere tells whether a socket is of the thread's network namespace
// (SO_NETNS_COOKIE, Linux 5.14).
func isHere(fd int) bool {
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(own)
	here, err := unix.GetsockoptUint64(own, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return false
	}
	there, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return err == nil && here == there
}

// dialMarked connects to an address of the thread's namespace that the fence
// keeps for whoever has the mark.
func dialMarked(to netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "tcp "+to.String())
	patience := unix.NsecToTimeval(engineWait.Nanoseconds()) // connect(2) heeds it too: socket(7)
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, Mark); err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &patience)
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
	}
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot connect to %s: %w", to, err)
	}
	return f, nil
}
