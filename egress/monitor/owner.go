package monitor

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
)

const (
	// scanBudget bounds the search for the process behind one connection:
	// the answer is for the log, and the program waits for it.
	scanBudget = 5 * time.Millisecond
	// maxWait is how old a question may grow in the queue.
	maxWait = 100 * time.Millisecond
	// maxQuestions is the length of the queue.
	maxQuestions = 256
	maxArgCount  = 32
	// fresh is how long what was read of a process, its ancestors and its
	// command line stands for it, unless it executes another program: programs
	// open connections in bursts, and reading it all is half of their cost.
	fresh = 100 * time.Millisecond
)

// question is a Who and when it came.
type question struct {
	control.Who
	asked time.Time
}

// answerQuestions answers what is sent to the channel it returns, one after
// the other, until that is closed. Records need not wait for it.
func (m *Monitor) answerQuestions(conn *control.Conn) chan<- question {
	questions := make(chan question, maxQuestions)
	go func() {
		for q := range questions {
			whois := control.Whois{N: q.N}
			if time.Since(q.asked) < maxWait {
				whois.Process = m.owners.find(q.Src, q.Dst, time.Now().Add(scanBudget))
			}
			_ = conn.Send(control.ToWorker{Process: &whois}) // its end shows in Recv
		}
	}()
	return questions
}

// owners finds out which process of a network namespace owns a connection.
type owners struct {
	mu    sync.Mutex
	diag  int    // a NETLINK_SOCK_DIAG socket that was opened in the namespace
	inner string // the namespace, as /proc/PID/ns/net reads
	seq   uint32
	last  known // it asks again, as a rule
}

// known is the process that was found last.
type known struct {
	pid     int
	fd      int // the connection's number in it
	stat    stat
	at      time.Time // when process was read
	process *control.Process
}

// newOwners opens the socket; sockets stay in the namespace of the thread that
// made them.
func newOwners(inner *os.File) (*owners, error) {
	ino, err := inode(inner)
	if err != nil {
		return nil, err
	}
	o := &owners{inner: fmt.Sprintf("net:[%d]", ino)}
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends here
		err := unix.Setns(int(inner.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			o.diag, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, fmt.Errorf("cannot ask for the sandbox's sockets: %w", err)
	}
	// The kernel answers at once, or not at all.
	timeout := unix.NsecToTimeval(scanBudget.Nanoseconds())
	_ = unix.SetsockoptTimeval(o.diag, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)
	return o, nil
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

func (o *owners) close() {
	if o != nil {
		unix.Close(o.diag)
	}
}

// find returns the process that connected src to dst, or nil if it cannot be
// found before the deadline.
func (o *owners) find(src, dst netip.AddrPort, deadline time.Time) *control.Process {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	sock, err := o.lookup(src, dst)
	if err != nil {
		return nil
	}
	link := fmt.Appendf(nil, "socket:[%d]", sock.inode)
	if o.heldByLast(link, deadline) {
		return o.describe(o.last.pid, sock.uid)
	}
	for _, pid := range pids() {
		if time.Now().After(deadline) {
			return nil
		}
		if pid == o.last.pid || !o.inside(pid) {
			continue
		}
		if fd, ok := holds(pid, link, deadline); ok {
			o.last = known{pid: pid, fd: fd}
			return o.describe(pid, sock.uid)
		}
	}
	return nil
}

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

// socket is what the kernel knows of one.
type socket struct{ inode, uid uint32 }

// Layout of a request and an answer, from linux/inet_diag.h and netlink(7): a
// header of 16 bytes, then inet_diag_req_v2 or inet_diag_msg.
const (
	headerSize      = 16
	requestSize     = headerSize + 56
	sockDiagBy      = 20 // SOCK_DIAG_BY_FAMILY
	answerUID       = headerSize + 64
	answerInode     = headerSize + 68
	answerSize      = headerSize + 72
	requestID       = headerSize + 8 // inet_diag_sockid
	requestSrc      = requestID + 4
	requestDst      = requestID + 20
	requestCookie   = requestID + 40
	allStates       = ^uint32(0)
	anyCookie       = ^uint64(0)
	answerTypeError = unix.NLMSG_ERROR
)

// lookup asks for the one TCP socket whose local end is src and whose remote
// end is dst (sock_diag(7)).
func (o *owners) lookup(src, dst netip.AddrPort) (socket, error) {
	o.seq++
	if err := unix.Sendto(o.diag, o.request(src, dst), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return socket{}, err
	}
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(o.diag, buf, 0)
		if err != nil {
			return socket{}, err
		}
		if n < headerSize+4 {
			return socket{}, io.ErrUnexpectedEOF
		}
		host := binary.NativeEndian
		switch answer := buf[:n]; {
		case host.Uint32(answer[8:]) != o.seq: // of a question that was given up
		case host.Uint16(answer[4:]) == answerTypeError:
			return socket{}, unix.Errno(-int32(host.Uint32(answer[headerSize:])))
		case n < answerSize:
			return socket{}, io.ErrUnexpectedEOF
		default:
			return socket{inode: host.Uint32(answer[answerInode:]), uid: host.Uint32(answer[answerUID:])}, nil
		}
	}
}

func (o *owners) request(src, dst netip.AddrPort) []byte {
	req := make([]byte, requestSize)
	host := binary.NativeEndian
	host.PutUint32(req[0:], requestSize)
	host.PutUint16(req[4:], sockDiagBy)
	host.PutUint16(req[6:], unix.NLM_F_REQUEST)
	host.PutUint32(req[8:], o.seq)
	req[headerSize] = unix.AF_INET6
	if src.Addr().Unmap().Is4() {
		req[headerSize] = unix.AF_INET
	}
	req[headerSize+1] = unix.IPPROTO_TCP
	host.PutUint32(req[headerSize+4:], allStates)
	binary.BigEndian.PutUint16(req[requestID:], src.Port())
	binary.BigEndian.PutUint16(req[requestID+2:], dst.Port())
	copy(req[requestSrc:], src.Addr().Unmap().AsSlice())
	copy(req[requestDst:], dst.Addr().Unmap().AsSlice())
	host.PutUint64(req[requestCookie:], anyCookie)
	return req
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
	ns, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/net")
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

// describe reads what the log says of the process found last, or nil if it has
// ended and its number is another's.
func (o *owners) describe(pid int, uid uint32) *control.Process {
	st, err := readStat(pid)
	if err != nil {
		return nil
	}
	if st != o.last.stat || time.Since(o.last.at) > fresh {
		p := o.read(pid, st)
		if again, err := readStat(pid); err != nil || again.start != st.start {
			return nil
		}
		o.last.stat, o.last.at, o.last.process = st, time.Now(), p
	}
	p := *o.last.process
	p.UID = uid
	return &p
}

// read reads what is known of a process by itself.
func (o *owners) read(pid int, st stat) *control.Process {
	p := &control.Process{PID: pid, Name: st.name, Exe: exe(pid), Args: args(pid)}
	for kin := st.ppid; kin > 0 && len(p.Ancestors) < maxKin && o.inside(kin); {
		p.Ancestors = append(p.Ancestors, exe(kin))
		parent, err := readStat(kin)
		if err != nil {
			break
		}
		kin = parent.ppid
	}
	return p
}

func exe(pid int) string {
	name, _ := os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
	return name
}

// args reads the command line, which is the program's own claim.
func args(pid int) []string {
	b, err := readProc("/proc/"+strconv.Itoa(pid)+"/cmdline", make([]byte, maxArgs))
	if err != nil || len(b) == 0 {
		return nil
	}
	b = bytes.TrimRight(b, "\x00")
	var list []string
	for arg := range bytes.SplitSeq(b, []byte{0}) {
		if len(list) == maxArgCount {
			break
		}
		list = append(list, string(arg))
	}
	return list
}
