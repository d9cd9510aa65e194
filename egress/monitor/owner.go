package monitor

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
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
	// fresh is how long what was read of a process and its ancestors stands for
	// it, unless it executes another program: programs open connections in
	// bursts, and reading it all is half of their cost.
	fresh = 100 * time.Millisecond
	// maxKnown is how many processes are known at once; then all are forgotten.
	maxKnown = 256
	// tick is the unit of times in /proc, in nanoseconds (proc_pid_stat(5); every
	// architecture that Go runs on has a hundred in a second).
	tick = uint64(time.Second / 100)
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
				whois.Process, whois.Gone = m.owners.ask(q.Src, q.Dst)
			}
			_ = conn.Send(control.ToWorker{Process: &whois}) // its end shows in Recv
		}
	}()
	return questions
}

// owners finds out which process of a network namespace owns a connection: by
// a hook that saw it connect, or else by looking for who holds the socket.
type owners struct {
	inner string // the namespace, as /proc/PID/ns/net reads
	// whose tells the id of the container that a process is part of; nil: there
	// is none but one.
	whose func(pid int) string

	mu   sync.Mutex // guards what follows
	diag *diag
	hook *hook // nil: connections are not seen being made
	// seesAll: hook is attached to every container. What it forgot was crowded
	// out, by programs that connect a lot.
	seesAll  bool
	attached bool // to some container, or not for a reason
	known    map[int]known
	last     lastHolder
}

// known is a process as it was read.
type known struct {
	stat    stat
	name    string    // of the thread that connected last; empty: not seen
	at      time.Time // when process was read
	process *control.Process
}

func newOwners(inner *os.File) (*owners, error) {
	ino, err := inode(inner)
	if err != nil {
		return nil, err
	}
	d, err := newDiag(inner)
	if err != nil {
		return nil, err
	}
	return &owners{inner: fmt.Sprintf("net:[%d]", ino), diag: d, known: map[int]known{}}, nil
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Ino, nil
}

// load prepares to watch.
func (o *owners) load() error {
	if o == nil {
		return nil
	}
	h, err := newHook()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hook = h
	return err
}

// watch sees the connections that a container's processes make from now on,
// each with the process that makes it. Every container of the namespace is
// watched by a call of its own. cgroups is where these are mounted.
func (o *owners) watch(cgroups string, init int) error {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hook == nil {
		return nil // load has said why
	}
	err := o.hook.attach(cgroups, init)
	o.seesAll = err == nil && (o.seesAll || !o.attached)
	o.attached = true
	return err
}

// unwatch lets go of a container that has ended.
func (o *owners) unwatch(init int) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hook != nil {
		o.hook.detach(init)
	}
}

func (o *owners) close() {
	if o != nil {
		o.diag.close()
		o.hook.close()
	}
}

// find returns the process that connected src to dst, for the log, or nil if it
// cannot be found before the deadline.
func (o *owners) find(src, dst netip.AddrPort, deadline time.Time) *control.Process {
	p, _ := o.lookup(src, dst, false, deadline)
	return p
}

// ask does the same for a decision: nothing is taken as known, and a search
// goes on until it is certain that there is one owner. It also tells whether the
// socket is gone.
func (o *owners) ask(src, dst netip.AddrPort) (p *control.Process, gone bool) {
	return o.lookup(src, dst, true, time.Now().Add(scanBudget))
}

// lookup finds a socket and whose it is. It is gone once no descriptor refers to
// it: the kernel then tells no inode, or knows of none.
func (o *owners) lookup(src, dst netip.AddrPort, thorough bool, deadline time.Time) (p *control.Process, gone bool) {
	if o == nil {
		return nil, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	sock, err := o.diag.lookup(src, dst)
	if err != nil {
		return nil, errors.Is(err, unix.ENOENT)
	}
	return o.ofSocket(sock, thorough, deadline), sock.inode == 0
}

// Why a datagram may be another's than it seems.
const (
	tooManySockets = "too many sockets have its port"
	severalSockets = "several processes have sockets with its port"
	socketIsClosed = "it was the last to send there; the socket is closed"
	notSeenToSend  = "it has a socket with its port, and was not the last to send there"
)

// sender returns the process that sent a datagram from src to dst, for the log
// alone: nobody's permission depends on it. With an invalid dst it is a question
// that still waits for its answer, to whatever name server.
func (o *owners) sender(src, dst netip.AddrPort, deadline time.Time) (found *control.Process) {
	if o == nil || time.Now().After(deadline) {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	sockets, err := o.diag.datagrams(src, dst)
	crowded := err == errCrowd
	if err != nil && !crowded {
		return nil
	}
	last, seen := o.hook.sender(dst)
	if seen && (crowded || len(sockets) == 0) {
		doubt := socketIsClosed
		if crowded {
			doubt = tooManySockets
		}
		if found = o.called(last, false); found != nil {
			found = as(found, found.UID, cmp.Or(found.Unsure, doubt))
		}
		return found
	}
	for _, s := range sockets {
		p := o.ofSocket(s.socket, false, deadline)
		switch {
		case p == nil:
			continue
		case crowded:
			return as(p, p.UID, tooManySockets)
		case found != nil && p.PID != found.PID:
			return as(found, found.UID, severalSockets)
		case o.hook != nil && dst.IsValid() && s.dst != dst && (!seen || int(last.Process) != p.PID):
			// Ports go from one to the other, and a program may have left its own
			// to another for the blame.
			p = as(p, p.UID, cmp.Or(p.Unsure, notSeenToSend))
		}
		found = p
	}
	return found
}

// ofSocket returns whose a socket is.
func (o *owners) ofSocket(sock socket, thorough bool, deadline time.Time) *control.Process {
	if c, ok := o.hook.of(sock.cookie); ok {
		return o.called(c, thorough)
	}
	if h := o.search(sock.inode, thorough, deadline); h.pid != 0 {
		if thorough && o.seesAll {
			h.unsure = "it was not seen to connect" // so who holds the socket proves nothing
		}
		return o.describe(h.pid, sock.uid, h.unsure, thorough)
	}
	return nil
}

// called returns the process that was seen to connect. It may have ended, and
// its number may be another's by now.
func (o *owners) called(c caller, thorough bool) *control.Process {
	pid := int(c.Process)
	if k, ok := o.known[pid]; ok && !thorough && k.name == c.name() && time.Since(k.at) < fresh {
		return as(k.process, c.UID, "")
	}
	p := o.describe(pid, c.UID, "", thorough)
	k := o.known[pid]
	if p == nil || k.stat.start > c.At/tick {
		return &control.Process{PID: pid, Name: c.name(), UID: c.UID, Unsure: "it has ended"}
	}
	k.name = c.name()
	o.known[pid] = k
	return p
}

// describe reads what the log says of a process, or nil if it has ended. What it
// reads anew it does not take for known: a process can have another program look
// like the one before it, by name and by arguments.
func (o *owners) describe(pid int, uid uint32, unsure string, anew bool) *control.Process {
	st, err := readStat(pid)
	if err != nil {
		return nil
	}
	k := o.known[pid]
	if anew || st != k.stat || time.Since(k.at) > fresh {
		p := o.read(pid, st)
		if again, err := readStat(pid); err != nil || again.start != st.start {
			return nil
		}
		if len(o.known) >= maxKnown {
			clear(o.known)
		}
		k = known{stat: st, at: time.Now(), process: p}
		o.known[pid] = k
	}
	return as(k.process, uid, unsure)
}

// as is p with what differs from connection to connection.
func as(p *control.Process, uid uint32, unsure string) *control.Process {
	if p.UID == uid && p.Unsure == unsure {
		return p
	}
	c := *p
	c.UID, c.Unsure = uid, unsure
	return &c
}

// read reads what is known of a process by itself.
func (o *owners) read(pid int, st stat) *control.Process {
	p := &control.Process{PID: pid, Name: st.name, Exe: exe(pid)}
	if o.whose != nil {
		p.Container = o.whose(pid)
	}
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
	name, _ := linkOf(pid, "exe")
	return name
}
