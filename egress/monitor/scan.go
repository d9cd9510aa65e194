package monitor

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Where no hook saw a connection, its owner is whoever holds its socket: the
// processes of the sandbox are searched for it, within a budget of time. More
// than one may hold it, and none of them need be the one that connected.

// holder is what a search has found.
type holder struct {
	pid    int
	unsure string // why it may be another
}

// search looks for the process that holds a socket: first in the one found last,
// since it is that one that asks again, as a rule. A thorough search goes on to
// the end, to see whether it is the only one.
func (o *owners) search(inode uint32, thorough bool, deadline time.Time) (found holder) {
	link := fmt.Appendf(nil, "socket:[%d]", inode)
	if o.heldByLast(link, deadline) {
		found.pid = o.last.pid
	}
	if found.pid != 0 && !thorough {
		found.unsure = "it holds the socket; others may too"
		return found
	}
	for _, pid := range pids() {
		if time.Now().After(deadline) {
			found.unsure = "the search took too long"
			break
		}
		if pid == found.pid || !o.inside(pid) {
			continue
		}
		fd, ok := holds(pid, link, deadline)
		switch {
		case ok && found.pid != 0:
			found.unsure = "several processes hold the socket"
			return found
		case ok:
			found.pid, o.last = pid, lastHolder{pid, fd}
			if !thorough {
				found.unsure = "it holds the socket; others may too"
				return found
			}
		}
	}
	return found
}

// lastHolder is the process found last, and the connection's number in it.
type lastHolder struct{ pid, fd int }

// heldByLast reports whether the process found last has this connection too:
// under the number of its last one, if it has closed that, or under the next.
func (o *owners) heldByLast(link []byte, deadline time.Time) bool {
	if o.last.pid == 0 {
		return false
	}
	for fd := o.last.fd; fd <= o.last.fd+1; fd++ {
		if isLink(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/fd/%d", o.last.pid, fd), link) {
			o.last.fd = fd
			return true
		}
	}
	fd, ok := holds(o.last.pid, link, deadline)
	if ok {
		o.last.fd = fd
	}
	return ok
}

// pids returns all processes, the newest first: what connects has often just
// been started.
func pids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var list []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			list = append(list, pid)
		}
	}
	slices.Sort(list)
	slices.Reverse(list)
	return list
}

// inside reports whether a process lives in the namespace.
func (o *owners) inside(pid int) bool {
	ns, err := linkOf(pid, "ns/net")
	return err == nil && ns == o.inner
}

// holds looks for the descriptor that reads as link among those of a process.
func holds(pid int, link []byte, deadline time.Time) (fd int, ok bool) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(dir)
	buf := make([]byte, 4096)
	var names []string
	for !time.Now().After(deadline) {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil || n <= 0 {
			return 0, false
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names[:0])
		for _, name := range names {
			if isLink(dir, name, link) {
				fd, err := strconv.Atoi(name)
				return fd, err == nil
			}
		}
	}
	return 0, false
}

// isLink reports whether the symbolic link name in the directory at reads as
// link.
func isLink(at int, name string, link []byte) bool {
	var buf [64]byte
	n, err := unix.Readlinkat(at, name, buf[:])
	return err == nil && bytes.Equal(buf[:n], link)
}
