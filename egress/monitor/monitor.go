package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
	"nemoclaw/egress/netfilter"
	"nemoclaw/specs/policy"
)

const (
	// applyWait is how long a worker may take to put rules into force before
	// it is killed: revoked connections are cut within one second.
	applyWait = limits.Apply
	// changeWait is how long a change waits for a worker, which may be
	// starting, to put it into force.
	changeWait = 5 * time.Second
	// drainWait is how long the last records of a sandbox are waited for.
	drainWait = time.Second
	// cgroupDelay keeps the move to a cgroup of its own off create's path:
	// the kernel takes some 10 ms for it.
	cgroupDelay = time.Second
	// maxNotes bounds the notes kept for Status.
	maxNotes = 100
)

// Monitor is the gateway of one sandbox. Its fields are set before Run.
type Monitor struct {
	// Dir is the sandbox's state directory.
	Dir string
	// Worker is the command line of a worker, whose descriptor 3 is its
	// conversation with the monitor.
	Worker []string
	// Listen opens the six sockets of control.Setup inside a namespace.
	Listen func(inner *os.File) ([]*os.File, error)
	// Evict ends the processes of a namespace that hold the addresses of these
	// sockets, and says which they were. Nil: who holds them keeps them.
	Evict func(inner *os.File) ([]string, error)
	// Engine connects to the resolver that the engine keeps inside a namespace.
	// Nil: it is never asked.
	Engine func(inner *os.File) (*os.File, error)
	// Unplug removes every link of the uplink. It is called once init has
	// ended, and only for an uplink that was made for this sandbox.
	Unplug func(uplink *os.File) error
	// Return gives the uplink's links back to a namespace that outlives the
	// sandbox; it is called then in place of Unplug.
	Return func(inner, uplink *os.File) error
	// Follow moves links that an engine plugs in later, and removes those it
	// takes away, until ctx is done; it tells the links that then lead out. It
	// is called once the program runs, and only where the engine's links are
	// the way out. Nil: the first links are all.
	Follow func(ctx context.Context, inner, uplink *os.File, ingress string, moved func([]string, error)) error
	// Inbound begins to hear of connections that come in through the uplink, and
	// of those that are refused there; either may be nil, with the reason. It is
	// called once there is a link to come in by. Nil: they are not recorded.
	Inbound func(uplink *os.File) (*netfilter.Flows, *netfilter.Refusals, error)
	// Refused is how many packets were refused there since it was called last.
	Refused func(uplink *os.File) (uint64, error)
	// Cgroup is where the monitor and its worker make a cgroup of their own,
	// e.g. /sys/fs/cgroup. Empty: they stay where they are.
	Cgroup string
	// Reader is the command line of the reader of the kernel's audit records,
	// which tells what layers 1 and 2 refuse. Its descriptors 3 to 5 are its
	// lock, its listener and the records. Empty: that is not heard.
	Reader []string

	attached  control.Attach
	inner     *os.File
	uplink    *os.File
	listeners []*os.File
	names     *os.File
	proxy     *control.Proxy // nil: connections go straight
	log       *audit.Log
	ledger    *ledger
	since     time.Time
	owners    *owners
	watch     *watcher
	cgroup    *cgroup
	follow    follower
	inbound   inbound

	members   members
	observers observers

	changes sync.Mutex    // one change of the rules at a time, to its end
	ending  chan struct{} // closed when the sandbox ends: no change is waited for

	mu       sync.Mutex // guards what follows; held for moments
	rules    rules
	worker   worker
	pending  pendings
	tally    tally
	allowed  uint64
	refused  uint64
	notes    []string
	stopping bool
}

// Run attaches to a sandbox as creator asks, and serves it until the last init
// of its containers ends, creator goes away before its commit, or ctx is done.
// A receive from reload reads the policy file again.
func (m *Monitor) Run(ctx context.Context, creator *control.Conn, reload <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.ending = make(chan struct{})
	m.tally = newTally()
	m.members.none = make(chan struct{})
	defer m.release()
	if err := m.attach(creator); err != nil {
		_ = creator.Send(control.FromMonitor{Fault: err.Error()})
		creator.Close()
		os.Remove(filepath.Join(m.Dir, control.MonitorFile))
		return err
	}
	// Connections queue from here on: create need not wait for the rest.
	err := creator.Send(control.FromMonitor{})
	tasks := m.serve(ctx, reload)
	if m.Cgroup != "" {
		m.noteSearched(m.owners.load())
	}
	if err == nil {
		err = m.awaitCommit(ctx, creator)
	}
	creator.Close()
	switch {
	case err == nil:
		later := time.AfterFunc(cgroupDelay, m.moveOut)
		abandoned := m.awaitMembers(ctx)
		later.Stop()
		m.follow.end()
		if abandoned {
			m.unplug()
		}
	case ctx.Err() != nil:
		err = nil
	default:
		m.unplug()
	}
	m.end(tasks, cancel)
	return err
}

// attach takes over what the creator hands in. On an error the caller
// releases what was opened.
func (m *Monitor) attach(creator *control.Conn) error {
	if err := m.announce(); err != nil { // while create builds the fence
		return fmt.Errorf("cannot attach: %w", err)
	}
	var req control.ToMonitor
	files, err := creator.Recv(&req)
	if err != nil {
		return fmt.Errorf("cannot attach: %w", err)
	}
	if req.Attach == nil || len(files) != 2 {
		control.CloseAll(files)
		return errors.New("cannot attach: the creator did not hand in two namespaces")
	}
	m.attached, m.inner, m.uplink = *req.Attach, files[0], files[1]
	m.since = time.Now()
	if err := m.loadRules(); err != nil {
		return fmt.Errorf("cannot attach: %w", err)
	}
	if err := m.openLog(); err != nil {
		return err
	}
	if m.listeners, err = m.listen(); err != nil {
		return fmt.Errorf("cannot attach: %w", err)
	}
	m.names, err = os.OpenFile(filepath.Join(m.Dir, control.NamesFile), os.O_RDWR|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot attach: cannot open the journal of names: %w", err)
	}
	if m.owners, err = newOwners(m.inner); err != nil {
		m.note("connections are recorded without their process: " + err.Error())
	} else {
		m.owners.whose = m.members.whose
	}
	return control.WriteAttach(m.Dir, &m.attached)
}

// maxEvictions is how often the addresses of the listeners are freed for them:
// whoever took them may have started others meanwhile.
const maxEvictions = 100

// listen opens the listeners. Where a gateway was lost their addresses may have
// been taken.
func (m *Monitor) listen() ([]*os.File, error) {
	for tries := 0; ; tries++ {
		files, err := m.Listen(m.inner)
		if !errors.Is(err, unix.EADDRINUSE) || m.Evict == nil || tries == maxEvictions {
			return files, err
		}
		ended, eerr := m.Evict(m.inner)
		for _, what := range ended {
			m.note(what)
		}
		if eerr != nil || len(ended) == 0 {
			return nil, errors.Join(err, eerr)
		}
	}
}

// announce tells delete how to signal this process.
func (m *Monitor) announce() error {
	start, err := control.StartTime(os.Getpid())
	if err != nil {
		return err
	}
	return control.WriteMonitor(m.Dir, &control.Monitor{PID: os.Getpid(), Start: start})
}

// loadRules makes the first generation of rules from what create parsed, or from
// the policy and the decisions that a monitor before this one had in force: what
// was revoked must not come back where the file has a fault by now.
func (m *Monitor) loadRules() error {
	a := &m.attached
	created, err := policy.Parse(a.PolicyFile, a.Policy)
	if err != nil {
		return err
	}
	if m.proxy, err = openProxy(created.Network); err != nil {
		return err
	}
	p, source := created, a.Policy
	if len(a.Latest) > 0 {
		if p, err = policy.Parse(a.PolicyFile, a.Latest); err != nil {
			return err
		}
		source = a.Latest
	}
	if m.ledger, err = openLedger(m.Dir); err != nil {
		return err
	}
	if err := m.ledger.begin(p); err != nil {
		return err
	}
	m.rules = rules{
		generation: 1,
		policy:     p,
		created:    created,
		source:     source,
		warnings:   warnings(p, source),
		applied:    make(chan struct{}),
	}
	return nil
}

// openLog begins this sandbox's segment of the audit log.
func (m *Monitor) openLog() error {
	a := &m.attached
	log, err := audit.Open(a.AuditLog)
	if err != nil {
		return err
	}
	m.log = log
	log.Rotate(audit.Rotation(a.Rotation))
	begin := m.change(audit.KindSegment, "sandbox attached")
	begin.Unmapped.Root = a.Root
	begin.Unmapped.PolicyName = a.PolicyName
	begin.Unmapped.PolicyFile = a.PolicyFile
	begin.Unmapped.PolicyDigest = m.rules.policy.Digest
	begin.Unmapped.Generation = m.rules.generation
	lines := []audit.Entry{begin}
	for _, what := range log.Recovered() {
		line := m.change(audit.KindRecovered, what)
		line.SeverityID = audit.High
		line.StatusID = 2
		lines = append(lines, line)
		m.notes = append(m.notes, "audit log: "+what)
	}
	for _, n := range a.Notes {
		lines = append(lines, m.change(audit.KindNote, n))
	}
	if m.rules.policy.Egress.Audit {
		lines = append(lines, m.change(audit.KindNote, notEnforced))
	}
	if m.proxy != nil {
		text := byProxy(m.rules.created.Network)
		lines = append(lines, m.change(audit.KindNote, text))
		m.notes = append(m.notes, text)
	}
	return log.Append(lines...)
}

func (m *Monitor) change(kind, message string) *audit.Change {
	return audit.NewChange(m.attached.ID, kind, clip(message, maxText))
}

// serve starts everything that goes on beside the creator's conversation.
func (m *Monitor) serve(ctx context.Context, reload <-chan os.Signal) *tasks {
	t := &tasks{workerDone: make(chan struct{})}
	go func() {
		defer close(t.workerDone)
		m.superviseWorker(ctx)
	}()
	t.operator = m.serveOperator()
	t.runtime = m.serveRuntime()
	m.watch = m.watchPolicy(ctx, reload)
	return t
}

// tasks are what end has to wait for.
type tasks struct {
	workerDone chan struct{}
	operator   func() // ends the control socket
	runtime    func() // ends the runtime socket
}

// awaitCommit waits for the creator to make the first container this
// monitor's.
func (m *Monitor) awaitCommit(ctx context.Context, creator *control.Conn) error {
	stop := context.AfterFunc(ctx, func() { creator.Close() })
	defer stop()
	var req control.ToMonitor
	files, err := creator.Recv(&req)
	if errors.Is(err, io.EOF) {
		return errors.New("cannot serve: the creator went away before its commit")
	}
	if err != nil {
		return fmt.Errorf("cannot serve: %w", err)
	}
	if req.Commit == nil || len(files) < 1 || len(files) > 2 {
		err = errors.New("cannot commit: the creator did not hand in init")
	} else {
		err = m.commit(req.Commit, files)
	}
	if err != nil {
		control.CloseAll(files)
		_ = creator.Send(control.FromMonitor{Fault: err.Error()})
		return err
	}
	return creator.Send(control.FromMonitor{})
}

func (m *Monitor) commit(c *control.Commit, files []*os.File) error {
	if err := m.noteAll(m.attached.ID, c.Notes); err != nil {
		return err
	}
	if c.Again != nil {
		return m.commitAgain(c, files)
	}
	first := &member{Box: control.Box{ID: m.attached.ID, Root: m.attached.Root}, pid: c.InitPID, pidfd: files[0]}
	if len(files) == 2 {
		first.ruleset = files[1]
	}
	return m.enter(first)
}

// commitAgain takes the place of a monitor that was lost. The policy may have
// been changed since.
func (m *Monitor) commitAgain(c *control.Commit, files []*os.File) error {
	if len(files) != 1 {
		return errors.New("cannot commit: a ruleset cannot come a second time")
	}
	m.inbound.again = true
	if m.attached.PolicyFile != "" {
		_, _ = m.reload() // its fault shows in Status and in the log
	}
	return m.enter(&member{Box: *c.Again, pid: c.InitPID, pidfd: files[0]})
}

// noteAll writes notes about the container id.
func (m *Monitor) noteAll(id string, notes []string) error {
	if len(notes) == 0 {
		return nil
	}
	var lines []audit.Entry
	for _, n := range notes {
		lines = append(lines, audit.NewChange(id, audit.KindNote, clip(n, maxText)))
	}
	return m.log.Append(lines...)
}

// noteSearched says why the owners of connections are searched for, by which one
// cannot always be sure, instead of seen.
func (m *Monitor) noteSearched(why error) {
	if why != nil {
		m.note("whose connections these are is found out by a search: " + why.Error())
	}
}

// unplug takes the uplink's links away at once: Docker's restart gives their
// addresses to the next container.
func (m *Monitor) unplug() {
	if m.Unplug == nil || !m.attached.OwnUplink {
		return
	}
	if m.attached.Namespace != "" && m.Return != nil {
		err := m.Return(m.inner, m.uplink)
		if err == nil {
			return
		}
		m.note(err.Error())
	}
	if err := m.Unplug(m.uplink); err != nil {
		m.note(err.Error())
	}
}

// end lets the last records arrive, closes the chain and removes what only a
// living monitor has use for.
func (m *Monitor) end(t *tasks, cancel context.CancelFunc) {
	m.mu.Lock()
	m.stopping = true
	m.mu.Unlock()
	close(m.ending)
	t.runtime()
	m.drain()
	cancel()
	<-t.workerDone
	m.watch.wait()
	m.inbound.end()
	m.observeNoMore()
	if err := m.log.Append(m.change(audit.KindEnd, "sandbox ended")); err != nil {
		m.note(err.Error())
	}
	m.log.Close() // followers read to the end and leave
	t.operator()
	for _, name := range []string{control.RuntimeSocket, control.ControlSocket, control.MonitorFile} {
		os.Remove(filepath.Join(m.Dir, name))
	}
	m.cgroup.leave()
}

// release closes what is open, whatever became of it.
func (m *Monitor) release() {
	control.CloseAll(m.listeners)
	control.CloseAll([]*os.File{m.inner, m.uplink, m.names})
	m.members.close()
	m.owners.close()
	if m.log != nil {
		m.log.Close()
	}
}

// note keeps a sentence for Status and for the log.
func (m *Monitor) note(text string) {
	m.mu.Lock()
	if len(m.notes) < maxNotes {
		m.notes = append(m.notes, text)
	}
	m.mu.Unlock()
	if m.log != nil {
		_ = m.log.Append(m.change(audit.KindNote, text)) // its fault shows in Status
	}
}

// moveOut takes the monitor and its worker out of whatever cgroup they were
// started in.
func (m *Monitor) moveOut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.Cgroup == "" || m.stopping {
		return
	}
	c, err := newCgroup(m.Cgroup, m.attached.CgroupParent, filepath.Base(m.Dir))
	m.cgroup = c
	pids := []int{os.Getpid()}
	if m.worker.pid != 0 {
		pids = append(pids, m.worker.pid)
	}
	for _, pid := range pids {
		if jerr := c.join(pid); err == nil {
			err = jerr
		}
	}
	if err != nil {
		m.notes = append(m.notes, err.Error())
	}
}
