package denials

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/kaudit"
)

const (
	// held is how long a denial waits for the record that says whose it is:
	// the kernel writes that one right behind it.
	held = 100 * time.Millisecond
	// maxHeld bounds the denials that wait.
	maxHeld = 1024
	// maxDomains bounds the domains that are remembered: one for each container
	// and each exec that runs.
	maxDomains = 1 << 14
	// batch is how many records are read before others get their turn.
	batch = 256
	// fresh is how long the cgroup of a process is remembered. No number is
	// given to another process so soon.
	fresh = 100 * time.Millisecond
	// first is how long a reader waits for the monitor that started it, and
	// for any to say which sandbox it is of.
	first = 5 * time.Second
)

// Reader reads for all sandboxes of a run directory.
type Reader struct {
	// Records is kaudit.Open's socket.
	Records *os.File
	// Listener is control.DenialsSocket, on which only root may connect.
	Listener *net.UnixListener
	// Lock is what makes this the only reader; closed when it takes no more
	// sandboxes.
	Lock *os.File
	// Cgroups reads /proc/PID/cgroup; nil: it does.
	Cgroups func(pid int) (string, error)

	mu        sync.Mutex // guards what follows
	sandboxes map[string]*sandbox
	domains   map[string]domain
	waiting   []waiting
	expire    *time.Timer    // nil: nothing waits
	events    bool           // the kernel also tells the process behind an event
	recent    map[int]string // pid: launcher name, "" for a stranger
	since     time.Time      // of recent
	drops     uint32         // of Records, as last seen
	ending    bool
	buf       []byte
	ended     chan struct{}
}

// domain is a Landlock domain; the zero domain is of no sandbox.
type domain struct {
	launcher string
	control.Domain
}

// waiting is a denial that still lacks its domain, or its process.
type waiting struct {
	denial control.Denial
	domain string
	serial uint64
	until  time.Time
}

// Run reads until the last sandbox has gone.
func (r *Reader) Run() error {
	r.sandboxes, r.domains, r.recent = map[string]*sandbox{}, map[string]domain{}, map[int]string{}
	r.buf, r.ended = make([]byte, kaudit.BufferSize), make(chan struct{})
	if err := r.acceptFirst(); err != nil {
		return err
	}
	go r.accept()
	raw, err := r.Records.SyscallConn()
	if err != nil {
		return err
	}
	var fault error
	err = raw.Read(func(fd uintptr) bool {
		for {
			r.mu.Lock()
			fault = r.read(int(fd), batch)
			r.mu.Unlock()
			if fault != nil {
				return !errors.Is(fault, unix.EAGAIN)
			}
		}
	})
	select {
	case <-r.ended:
		return nil
	default:
		return errors.Join(err, fault)
	}
}

// read takes what the kernel has said, up to limit records.
func (r *Reader) read(fd, limit int) error {
	err := kaudit.Read(fd, limit, r.buf, r.record)
	if drops, derr := kaudit.Lost(fd); derr == nil && drops != r.drops {
		for _, s := range r.sandboxes {
			s.told.Lost += int(drops - r.drops)
			s.countLater()
		}
		r.drops = drops
	}
	r.wake()
	return err
}

// acceptFirst returns when all monitors are known that came while there was no
// reader: the records that wait may be about any of them.
func (r *Reader) acceptFirst() error {
	var known sync.WaitGroup
	defer known.Wait()
	for wait := first; ; wait = time.Millisecond {
		if err := r.Listener.SetDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		conn, err := control.AcceptRuntime(r.Listener)
		if err != nil && wait == first {
			return fmt.Errorf("cannot read denials for nobody: %w", err)
		}
		if err != nil {
			return r.Listener.SetDeadline(time.Time{})
		}
		known.Add(1)
		go r.serve(conn, known.Done)
	}
}

// accept serves the monitors that come later.
func (r *Reader) accept() {
	for {
		conn, err := control.AcceptRuntime(r.Listener)
		if err != nil {
			return
		}
		go r.serve(conn, func() {})
	}
}

// serve is the conversation with one monitor.
func (r *Reader) serve(conn *control.Conn, known func()) {
	defer conn.Close()
	s, err := r.hello(conn)
	known()
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.endIfAlone()
		return
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		s.send()
	}()
	for err == nil { // a monitor says nothing more until it leaves
		var files []*os.File
		files, err = conn.Recv(new(control.Watch))
		control.CloseAll(files)
	}
	r.drain(s, errors.Is(err, io.EOF))
	<-sent
	r.leave(s)
}

// hello hears which sandbox a monitor is of.
func (r *Reader) hello(conn *control.Conn) (*sandbox, error) {
	if uid, err := conn.PeerUID(); err != nil || uid != 0 {
		return nil, errors.New("only root has sandboxes")
	}
	late := time.AfterFunc(first, func() { conn.Close() })
	defer late.Stop()
	var w control.Watch
	files, err := conn.Recv(&w)
	control.CloseAll(files)
	if err != nil {
		return nil, err
	}
	s := newSandbox(&r.mu, conn, w)
	return s, r.enter(s)
}

// enter makes a sandbox known; a monitor that was started again replaces the
// one before it.
func (r *Reader) enter(s *sandbox) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending || s.watch.Launcher == "" {
		return errors.New("the sandbox comes too late, or has no name")
	}
	r.sandboxes[s.watch.Launcher] = s
	clear(r.recent)
	for _, d := range r.domains { // described a moment ago
		if d.launcher == s.watch.Launcher {
			s.told.Domains = append(s.told.Domains, d.Domain)
		}
	}
	for _, d := range s.watch.Domains {
		r.remember(d.ID, domain{s.watch.Launcher, d})
	}
	return nil
}

// drain reads what the kernel has said until now, so that the sandbox hears of
// its last denials.
func (r *Reader) drain(s *sandbox, whole bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if raw, err := r.Records.SyscallConn(); err == nil && whole {
		_ = raw.Control(func(fd uintptr) { _ = r.read(int(fd), 1<<16) })
		r.release(time.Now().Add(held))
	}
	s.end()
}

func (r *Reader) leave(s *sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sandboxes[s.watch.Launcher] == s {
		delete(r.sandboxes, s.watch.Launcher)
	}
	r.endIfAlone()
}

// endIfAlone lets go of everything once no sandbox is left: the next one starts
// another reader. The lock goes before the conversation that is waited for.
func (r *Reader) endIfAlone() {
	if len(r.sandboxes) > 0 || r.ending {
		return
	}
	r.ending = true
	close(r.ended)
	r.Listener.Close()
	r.Lock.Close()
	r.Records.Close()
}

// record takes one record. The caller holds r.mu.
func (r *Reader) record(rec kaudit.Record) {
	switch rec.Type {
	case kaudit.LandlockAccess:
		r.denied(rec)
	case kaudit.LandlockDomain:
		r.described(rec)
	case kaudit.Seccomp:
		if quiet[callName(rec.Field("arch"), rec.Int("syscall"))] {
			return
		}
		s, known := r.ofProcess(rec.Int("pid"))
		switch {
		case s != nil:
			s.denied(control.LayerSeccomp, func() control.Denial { return call(rec) })
		case !known:
			r.unknown()
		}
	case kaudit.Syscall:
		r.process(rec)
	}
}

// denied takes a denial of Landlock's, which names a domain.
func (r *Reader) denied(rec kaudit.Record) {
	id := rec.Field("domain")
	d, known := r.domains[id]
	switch {
	case known && (!r.events || r.full(d)):
		r.tell(d, func() control.Denial { return landlock(rec) })
	case len(r.waiting) >= maxHeld:
		r.unknown()
	default:
		r.waiting = append(r.waiting, waiting{landlock(rec), id, rec.Serial, time.Now().Add(held)})
		r.expireLater()
	}
}

// full reports whether a denial in d would only be counted.
func (r *Reader) full(d domain) bool {
	s := r.sandboxes[d.launcher]
	return s == nil || s.room.Tokens() < 1
}

// described takes the description of a domain, which follows its first denial.
func (r *Reader) described(rec kaudit.Record) {
	id := rec.Field("domain")
	if rec.Field("status") != "allocated" {
		if s := r.sandboxes[r.domains[id].launcher]; s != nil {
			s.told.Ended = append(s.told.Ended, id)
		}
		delete(r.domains, id)
		return
	}
	d := domain{launcherOf(rec), control.Domain{ID: id, PID: rec.Int("pid"), UID: rec.Int("uid")}}
	s := r.sandboxes[d.launcher]
	if s != nil && r.elsewhere(d.PID, s) {
		d.launcher, s = "", nil
	}
	r.remember(id, d)
	for i := range r.waiting {
		if w := &r.waiting[i]; w.domain == id && (!r.events || s == nil || w.denial.PID != 0) {
			w.until = time.Time{}
		}
	}
	if s != nil {
		r.waiting = slices.DeleteFunc(r.waiting, func(w waiting) bool { return w.domain == id && isCanary(w.denial) })
		s.told.Domains = append(s.told.Domains, d.Domain)
	}
	r.release(time.Now())
}

// elsewhere reports that a process lives outside of a sandbox whose name it
// bears: any program may give its memory files what names it likes.
func (r *Reader) elsewhere(pid int, s *sandbox) bool {
	text, err := r.cgroups(pid)
	return err == nil && compare(s.watch.Cgroups, text) == stranger
}

func (r *Reader) remember(id string, d domain) {
	if len(r.domains) >= maxDomains {
		clear(r.domains) // descriptions of their ends were lost
	}
	r.domains[id] = d
}

// process takes the record of a system call, which the kernel adds to an event
// where its processes are prepared for that.
func (r *Reader) process(rec kaudit.Record) {
	for i := range r.waiting {
		if w := &r.waiting[i]; w.serial == rec.Serial && w.denial.PID == 0 {
			r.events = true
			ofProcess(&w.denial, rec)
			if _, known := r.domains[w.domain]; known {
				w.until = time.Time{}
			}
		}
	}
	r.release(time.Now())
}

// release passes on what has waited long enough.
func (r *Reader) release(now time.Time) {
	kept := r.waiting[:0]
	for _, w := range r.waiting {
		if w.until.After(now) {
			kept = append(kept, w)
			continue
		}
		r.give(w)
	}
	r.waiting = kept
	if len(kept) > 0 {
		r.expireLater()
	}
	r.wake()
}

func (r *Reader) expireLater() {
	if r.expire != nil {
		return
	}
	r.expire = time.AfterFunc(held, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.expire = nil
		r.release(time.Now())
	})
}

// wake has every sandbox told what there is to tell.
func (r *Reader) wake() {
	for _, s := range r.sandboxes {
		s.wakeIfSome()
	}
}

// give passes on a denial that waits no longer.
func (r *Reader) give(w waiting) {
	d, known := r.domains[w.domain]
	if known {
		r.tell(d, func() control.Denial { return w.denial })
		return
	}
	if w.denial.PID != 0 {
		if s, _ := r.ofProcess(w.denial.PID); s != nil {
			s.denied(control.LayerLandlock, func() control.Denial { return w.denial })
			return
		}
	}
	r.unknown()
}

// tell gives a denial in a domain to its sandbox.
func (r *Reader) tell(d domain, denial func() control.Denial) {
	s := r.sandboxes[d.launcher]
	if s == nil {
		return // of another program, or its monitor is being started again
	}
	s.denied(control.LayerLandlock, func() control.Denial {
		n := denial()
		if n.PID == 0 {
			n.PID, n.UID, n.OrChild = d.PID, d.UID, true
		}
		return n
	})
}

// unknown counts a denial that nobody can be told of.
func (r *Reader) unknown() {
	for _, s := range r.sandboxes {
		s.told.Unknown++
		s.countLater()
	}
}

// ofProcess finds the sandbox that a process is in. known is false if that
// cannot be told.
func (r *Reader) ofProcess(pid int) (s *sandbox, known bool) {
	if now := time.Now(); now.Sub(r.since) > fresh || len(r.recent) > maxHeld {
		clear(r.recent)
		r.since = now
	}
	if name, ok := r.recent[pid]; ok {
		return r.sandboxes[name], true
	}
	text, err := r.cgroups(pid)
	if err == nil {
		strangers := 0
		for name, s := range r.sandboxes {
			switch compare(s.watch.Cgroups, text) {
			case inside:
				r.recent[pid] = name
				return s, true
			case stranger:
				strangers++
			}
		}
		if strangers == len(r.sandboxes) {
			r.recent[pid] = ""
			return nil, true
		}
	}
	return r.byNumber(pid)
}

// byNumber finds the sandbox whose first program, or that of an exec, pid was.
func (r *Reader) byNumber(pid int) (*sandbox, bool) {
	for _, s := range r.sandboxes {
		if s.watch.InitPID == pid {
			return s, true
		}
	}
	for _, d := range r.domains {
		if s := r.sandboxes[d.launcher]; s != nil && d.PID == pid {
			return s, true
		}
	}
	return nil, false
}

func (r *Reader) cgroups(pid int) (string, error) {
	if r.Cgroups != nil {
		return r.Cgroups(pid)
	}
	return readCgroups(pid, r.buf)
}
