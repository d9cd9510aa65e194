package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nemoclaw/egress/audit"
	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
)

const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = limits.MaxBackoff
	// steady is how long a worker lives before its death counts as a first.
	steady = 10 * time.Second
	// hopeless is how many workers in a row must have ended before they put
	// rules into force for whatever waits to be refused.
	hopeless = 3
	// lastWords is how much of what a worker wrote to its standard error is
	// kept for the line about its end, in bytes.
	lastWords = 2 << 10
)

// worker is the process that decides connections; the zero worker is none.
type worker struct {
	conn     *control.Conn
	process  *os.Process
	pid      int
	ready    bool                        // it has put rules into force
	open     map[string]*control.Process // connections passing, by their request, and whose they are
	wanted   bool                        // it is being started
	restarts int
}

// maxOpen bounds what a worker can make its monitor remember; an honest one has
// fewer connections at once.
const maxOpen = 4096

func (w *worker) opened(request string, owner *control.Process) {
	if w.open == nil {
		w.open = map[string]*control.Process{}
	}
	if len(w.open) < maxOpen {
		w.open[clip(request, maxHost)] = owner
	}
}

func (w *worker) closed(request string) { delete(w.open, clip(request, maxHost)) }

func (w worker) kill() {
	if w.process != nil {
		_ = w.process.Kill()
	}
}

// superviseWorker starts a worker when the first connection or question waits
// for it, and another for the next one after its end, until ctx is done. The
// first restart may be immediate; a worker that keeps dying is restarted less
// and less often. Meanwhile connections queue in the listeners, but not for one
// that cannot be had.
func (m *Monitor) superviseWorker(ctx context.Context) {
	var backoff time.Duration
	failed := 0
	for m.awaitDemand(ctx) {
		begun := time.Now()
		why := m.runWorker(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begun) > steady {
			backoff = 0
		}
		if failed++; m.workerEnded(why) {
			failed = 0
		}
		if failed >= hopeless {
			m.refuseWaiting()
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
		}
		backoff = min(max(2*backoff, minBackoff), maxBackoff)
	}
}

// workerEnded writes down why a worker has ended. Its connections ended with
// it, and the next one begins with the rules as they are then: whoever waits for
// them to come into force need not wait any more. It reports whether the worker
// had put rules into force.
func (m *Monitor) workerEnded(why error) (ready bool) {
	m.mu.Lock()
	open := len(m.worker.open)
	ready = m.worker.ready
	m.worker = worker{restarts: m.worker.restarts + 1}
	m.pending.releaseAll()
	m.tally.ended()
	m.rules.setApplied(control.Applied{Generation: m.rules.generation, Cut: open})
	m.mu.Unlock()
	line := m.change(audit.KindWorker, fmt.Sprintf("worker ended with %d open connections and is started again when it is needed: %v", open, why))
	line.SeverityID = audit.High
	line.StatusID = 2
	_ = m.log.Append(line) // its fault shows in Status
	return ready
}

// runWorker starts a worker, serves its conversation, and says why it ended.
func (m *Monitor) runWorker(ctx context.Context) error {
	conn, theirs, err := control.Pair()
	if err != nil {
		return err
	}
	defer conn.Close()
	words := new(tail)
	cmd := exec.Command(m.Worker[0], m.Worker[1:]...)
	cmd.Env = []string{} // nothing of the host's environment
	cmd.Dir = "/"
	cmd.Stderr = words
	cmd.WaitDelay = time.Second
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	unhurry()
	m.mu.Lock()
	m.worker.wanted = true
	born := m.cgroup // which a child inherits
	m.mu.Unlock()
	err = startIn(m.uplink, cmd)
	theirs.Close()
	if err != nil {
		return fmt.Errorf("cannot start the worker: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	err = m.converse(conn, cmd.Process, born)
	conn.Close()
	patience := time.AfterFunc(drainWait, func() { _ = cmd.Process.Kill() })
	werr := cmd.Wait()
	patience.Stop()
	if said := words.String(); said != "" {
		return fmt.Errorf("%w: %s", errors.Join(err, werr), said)
	}
	return errors.Join(err, werr)
}

// startIn starts cmd in a network namespace: a child begins in the namespace
// of the thread that forks it. The thread is not used again: it ends with its
// goroutine, which stays locked to it.
func startIn(ns *os.File, cmd *exec.Cmd) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("cannot enter the uplink's namespace: %w", err)
			return
		}
		done <- cmd.Start()
	}()
	return <-done
}

// converse hands a new worker what it works with and answers it until the
// conversation ends. born is the cgroup that it was started in.
func (m *Monitor) converse(conn *control.Conn, p *os.Process, born *cgroup) error {
	a := &m.attached
	setup := control.Setup{ID: a.ID, Nameservers: a.Nameservers, Search: a.Search, Hosts: a.Hosts, Proxy: m.proxy, HostUplink: a.HostUplink, EngineDNS: a.EngineDNS && m.Engine != nil}
	files := append(append([]*os.File{}, m.listeners...), m.names)
	if err := conn.Send(control.ToWorker{Setup: &setup}, files...); err != nil {
		return err
	}
	questions := m.answerQuestions(conn)
	defer close(questions)
	dials := m.newDials(conn)
	defer dials.wait()
	m.mu.Lock()
	m.worker.conn, m.worker.process, m.worker.pid = conn, p, p.Pid
	m.rules.latest = control.Applied{} // nothing is in force until it says so
	m.tellRules()
	var err error
	if m.cgroup != born { // the monitor has moved meanwhile
		err = m.cgroup.join(p.Pid)
	}
	m.mu.Unlock()
	if err != nil {
		m.note(err.Error())
	}
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid), []byte("0"), 0) // it dies before its monitor
	for {
		var msg control.ToMonitorFromWorker
		files, err := conn.Recv(&msg)
		control.CloseAll(files)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case msg.Applied != nil:
			m.noteApplied(*msg.Applied)
		case msg.Who != nil:
			select {
			case questions <- question{*msg.Who, time.Now()}:
			default: // a connection without a process is better than one that waits
				_ = conn.Send(control.ToWorker{Process: &control.Whois{N: msg.Who.N}})
			}
		case msg.Use != nil:
			used, last := m.spend(msg.Use)
			if err := conn.Send(control.ToWorker{Used: &used}); err != nil {
				return err
			}
			if last { // so that the next one is refused, or held, by the worker itself
				m.mu.Lock()
				m.rules.generation++
				m.tellRules()
				m.mu.Unlock()
			}
		case msg.Engine != nil && setup.EngineDNS:
			dials.dial(msg.Engine.N)
		case msg.Counted != nil:
			m.heard(msg.Counted)
		case msg.Records != nil:
			if err := conn.Send(control.ToWorker{Written: m.record(msg.Records)}); err != nil {
				return err
			}
		default:
			return errors.New("the worker said nothing that the monitor understands")
		}
	}
}

// drain waits for the End records of connections that end with the sandbox,
// then has the worker cut those that do not.
func (m *Monitor) drain() {
	m.changes.Lock()
	defer m.changes.Unlock()
	if !m.awaitIdle(drainWait / 2) {
		m.mu.Lock()
		m.rules.plugged = false
		m.rules.generation++
		m.tellRules()
		m.mu.Unlock()
		m.awaitIdle(drainWait / 2)
	}
}

// awaitIdle waits until no connection passes.
func (m *Monitor) awaitIdle(wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	for {
		m.mu.Lock()
		idle := len(m.worker.open) == 0 && (m.worker.ready || !m.worker.wanted)
		m.mu.Unlock()
		if idle {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if over := len(t.b) - lastWords; over > 0 {
		t.b = append([]byte(nil), t.b[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(string(t.b)) }
