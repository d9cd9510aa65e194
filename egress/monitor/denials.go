package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/control"
	"nemoclaw/egress/kaudit"
)

const (
	// watchWait is how long the start of the program waits until its denials
	// are heard: the kernel describes a domain only once.
	watchWait = 500 * time.Millisecond
	// readerDelay is how long to wait before looking for a reader again.
	readerDelay = 20 * time.Millisecond
	// maxReaderDelay is how long at the most, where readers keep ending.
	maxReaderDelay = 5 * time.Second
	// lastDenials is how long the sandbox's end waits for its last denials.
	lastDenials = time.Second
	// sweepWait is how long a reader that ends may take to leave its cgroup.
	sweepWait = 100 * time.Millisecond
	// readerCgroup is the reader's own place, beside those of the monitors.
	readerCgroup = "denials"
)

// observers are those of the containers behind this gateway.
type observers struct {
	mu    sync.Mutex
	list  []*observer
	ended sync.WaitGroup
	seen  control.Denials // counts of those that have ended

	domains map[string][]control.Domain // as stored, by launcher
	told    bool                        // that they cannot be
}

// observer keeps a container known to the reader of the kernel's audit records,
// and starts the reader where there is none and the kernel has said something.
type observer struct {
	box    control.Box
	runDir string
	reader []string // the reader's command line
	cgroup string   // where it gets a cgroup of its own, or empty
	watch  control.Watch
	told   func(*observer, *control.Told)
	store  func(launcher string, domains []control.Domain)

	cancel  context.CancelFunc
	ready   chan struct{} // closed when the kernel's records are kept for a reader
	done    chan struct{} // closed when run has ended
	holding sync.WaitGroup

	mu      sync.Mutex
	conn    *control.Conn
	heard   bool   // a reader knows us, or is being started
	fault   error  // why nothing is heard
	before  uint32 // records that the kernel had lost when we began
	counted uint32 // those it lost since, as far as they were told
	seen    control.Denials
	unsaid  int // of seen.Missed, what no line of the log tells yet
}

// observe begins to listen for the denials of a container.
func (m *Monitor) observe(box control.Box, initPID int) {
	if len(m.Reader) == 0 {
		return
	}
	launcher, err := control.LauncherName(control.Dir(filepath.Dir(m.Dir), box.Root, box.ID))
	if err != nil {
		m.note("what layers 1 and 2 refuse is not heard: " + err.Error())
		return
	}
	o := &observer{
		box: box, runDir: filepath.Dir(m.Dir), reader: m.Reader, cgroup: m.Cgroup, told: m.denied, store: m.storeDomains,
		watch: control.Watch{Launcher: launcher, InitPID: initPID, Cgroups: ownCgroups(initPID)},
		ready: make(chan struct{}), done: make(chan struct{}),
	}
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(context.Background())
	s := &m.observers
	s.mu.Lock()
	if s.domains == nil { // those that a monitor before this one knew
		s.domains, _ = control.ReadDomains(m.Dir) // what cannot be read is unknown
	}
	o.watch.Domains = s.domains[o.watch.Launcher]
	s.list = append(s.list, o)
	s.mu.Unlock()
	go o.run(ctx)
}

// storeDomains keeps the domains of a container for a monitor that takes this
// one's place. Without them its denials would be nobody's.
func (m *Monitor) storeDomains(launcher string, domains []control.Domain) {
	s := &m.observers
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.domains == nil {
		s.domains = map[string][]control.Domain{}
	}
	s.domains[launcher] = domains
	if err := control.WriteDomains(m.Dir, s.domains); err != nil && !s.told {
		s.told = true
		go m.note(err.Error())
	}
}

// unobserve ends the observer of a container that has left, beside what else
// goes on: its last denials may take a moment.
func (m *Monitor) unobserve(box control.Box) {
	s := &m.observers
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.list, func(o *observer) bool { return o.box == box })
	if i < 0 {
		return
	}
	o := s.list[i]
	s.list = slices.Delete(s.list, i, i+1)
	s.ended.Go(func() {
		o.end()
		m.noteLost(o)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.seen = sum(s.seen, o.counts())
		delete(s.domains, o.watch.Launcher)
	})
}

// observeNoMore returns when the last denials are in the log.
func (m *Monitor) observeNoMore() {
	s := &m.observers
	s.mu.Lock()
	list := slices.Clone(s.list)
	s.mu.Unlock()
	for _, o := range list {
		m.unobserve(o.box)
	}
	s.ended.Wait()
}

// await waits until denials are heard, or cannot be.
func (s *observers) await() {
	s.mu.Lock()
	list := slices.Clone(s.list)
	s.mu.Unlock()
	late := time.After(watchWait)
	for _, o := range list {
		select {
		case <-o.ready:
		case <-late:
			return
		}
	}
}

// sum joins the counts of two containers. What is counted for the machine is
// the same for both.
func sum(a, b control.Denials) control.Denials {
	a.Recorded += b.Recorded
	a.Folded += b.Folded
	a.Missed = max(a.Missed, b.Missed)
	a.Unknown = max(a.Unknown, b.Unknown)
	return a
}

func (o *observer) counts() control.Denials {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen
}

// ownCgroups are the lines of a process's cgroups that this process does not
// have: what is equal was inherited from whoever started both.
func ownCgroups(pid int) (own []string) {
	ours, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	theirs, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil
	}
	have := strings.Split(string(ours), "\n")
	for _, line := range strings.Split(string(theirs), "\n") {
		if line != "" && !strings.HasSuffix(line, ":/") && !slices.Contains(have, line) {
			own = append(own, line)
		}
	}
	return own
}

// run speaks to whichever reader there is, until ctx is done. Readers that end
// before they know us are tried less and less often.
func (o *observer) run(ctx context.Context) {
	defer close(o.done)
	defer o.holding.Wait()
	ready := sync.OnceFunc(func() { close(o.ready) })
	defer ready()
	if status, err := kaudit.Get(); err == nil {
		o.mu.Lock()
		o.before = status.Lost
		o.mu.Unlock()
	}
	delay := readerDelay
	for ctx.Err() == nil {
		conn, err := control.DialReader(o.runDir)
		if err != nil {
			switch err := o.hold(ctx); {
			case errors.Is(err, unix.EWOULDBLOCK): // another one is about to
				pause(ctx, readerDelay)
			case err != nil:
				o.fail(err)
				return
			}
			continue
		}
		known := false
		if o.begin(conn) {
			ready()
			known = o.listen(conn)
		}
		o.mu.Lock()
		o.conn, o.heard = nil, false
		o.mu.Unlock()
		conn.Close()
		if delay = min(2*delay, maxReaderDelay); known {
			delay = readerDelay
		}
		pause(ctx, delay)
	}
}

// fail keeps why nothing is heard, nil if something is.
func (o *observer) fail(why error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fault = why
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// begin makes the sandbox known. A reader that is not there yet finds this when
// it is.
func (o *observer) begin(conn *control.Conn) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn = conn
	return conn.Send(o.watch) == nil
}

// listen passes on what the reader tells until one of both ends it, and reports
// whether it told anything.
func (o *observer) listen(conn *control.Conn) (known bool) {
	for {
		var t control.Told
		files, err := conn.Recv(&t)
		control.CloseAll(files)
		if err != nil {
			return known
		}
		if !known {
			known = true
			o.mu.Lock()
			o.heard, o.fault = true, nil
			o.mu.Unlock()
		}
		if len(t.Domains)+len(t.Ended) > 0 {
			o.keep(t.Domains, t.Ended)
		}
		o.told(o, &t)
	}
}

// keep remembers the domains that live: the next reader will not hear of them.
func (o *observer) keep(born []control.Domain, ended []string) {
	o.mu.Lock()
	o.watch.Domains = slices.DeleteFunc(slices.Concat(o.watch.Domains, born), func(d control.Domain) bool { return slices.Contains(ended, d.ID) })
	if over := len(o.watch.Domains) - maxDomains; over > 0 {
		o.watch.Domains = o.watch.Domains[over:]
	}
	kept := o.watch.Domains
	o.mu.Unlock()
	o.store(o.watch.Launcher, kept)
}

// maxDomains bounds what a reader can make its monitors remember.
const maxDomains = 4096

// hold takes the place of the reader: it opens the socket for the other monitors
// and the one for the kernel's records, which wait there, and starts the reader
// with the first of them. A host on which nothing is refused has no reader. The
// lock is that of the run directory, and goes with the last who holds it.
func (o *observer) hold(ctx context.Context) error {
	lock, err := control.LockReader(o.runDir)
	if err != nil {
		return err
	}
	files := []*os.File{lock}
	fail := func(err error) error {
		control.CloseAll(files)
		return err
	}
	records, err := kaudit.Open()
	if err != nil {
		return fail(err)
	}
	os.Remove(filepath.Join(o.runDir, control.DenialsSocket)) // of a reader that is gone
	l, err := control.Listen("unixpacket", o.runDir, control.DenialsSocket)
	if err != nil {
		records.Close()
		return fail(err)
	}
	socket, err := l.File()
	l.Close()
	files = append(files, socket, records)
	if err != nil {
		return fail(err)
	}
	o.holding.Go(func() {
		defer control.CloseAll(files) // also of the lock: others may take the place
		if !readable(ctx, records) {
			return
		}
		if err := o.startReader(files); err != nil {
			o.fail(err)
			pause(ctx, lastDenials) // not again and again
		}
	})
	return nil
}

// readable waits until there is something to read, and reads nothing: it is
// text that programs chose.
func readable(ctx context.Context, f *os.File) bool {
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })
	defer stop()
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	some := false
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		some = n > 0 && err == nil
		return some
	})
	return err == nil && some && f.SetReadDeadline(time.Time{}) == nil
}

// startReader starts a reader that outlives us.
func (o *observer) startReader(files []*os.File) error {
	cmd := exec.Command(o.reader[0], o.reader[1:]...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("cannot start the reader of denials: %w", err)
	}
	if o.cgroup != "" {
		if c, err := newCgroup(o.cgroup, "", readerCgroup); err == nil {
			_ = c.join(cmd.Process.Pid) // without one it is where this monitor is
		}
	}
	o.mu.Lock()
	o.heard = true
	o.mu.Unlock()
	go cmd.Wait() // nobody else collects it while we live
	return nil
}

// end takes the last denials, and removes what the reader has left if this was
// the last sandbox.
func (o *observer) end() {
	o.mu.Lock()
	conn, wait := o.conn, o.heard
	o.mu.Unlock()
	if conn != nil && wait && conn.CloseWrite() == nil {
		late := time.AfterFunc(lastDenials, func() { conn.Close() })
		defer late.Stop()
	} else if conn != nil {
		conn.Close()
	}
	o.cancel()
	<-o.done
	var patience time.Duration
	if wait {
		patience = sweepWait
	}
	o.sweep(patience)
}

// sweep removes the socket and the cgroup of a reader if none runs; one that we
// knew may be about to end.
func (o *observer) sweep(patience time.Duration) {
	if !control.SweepReader(o.runDir, 0) || o.cgroup == "" {
		return
	}
	// One wait for all of them: the reader of another run directory may live
	// there for long, and whoever deletes the sandbox waits for us.
	deadline := time.Now().Add(patience)
	for _, h := range hierarchies(o.cgroup) {
		dir := filepath.Join(h, cgroupParent, readerCgroup)
		for errors.Is(unix.Rmdir(dir), unix.EBUSY) && time.Now().Before(deadline) {
			time.Sleep(time.Millisecond) // it is ending
		}
		os.Remove(filepath.Dir(dir))
	}
}

// lost returns how many records the kernel lost since lost was called last.
func (o *observer) lost() int {
	status, err := kaudit.Get()
	if err != nil {
		return 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since := status.Lost - o.before
	n := since - o.counted
	o.counted = since
	return int(n)
}
