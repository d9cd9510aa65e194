package monitor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nemoclaw/egress/control"
	"nemoclaw/specs/policy"
)

// rules are what the worker is to decide by, and what it has said about them.
type rules struct {
	generation uint64
	policy     *policy.Policy // in force
	created    *policy.Policy // what layers 1 to 3 were made from
	source     []byte         // of policy
	warnings   []string       // what is hardly meant in policy
	links      []string
	plugged    bool // there is a way out

	// fault is why the policy file is not in force as it stands; faulty is
	// the digest of what it held, so that it is said once.
	fault  string
	faulty string

	latest  control.Applied // the worker's last answer
	applied chan struct{}   // closed when latest changes
}

// message is what the worker is told.
func (r *rules) message(file string, l *ledger) control.Rules {
	return control.Rules{
		Generation: r.generation,
		File:       file,
		Policy:     r.source,
		Grants:     l.grants(),
		Began:      l.began(),
		NoUplink:   !r.plugged,
	}
}

// put changes the rules, tells the worker, and waits until they are in force.
// Without a worker they are at once: nothing passes, and the next one begins
// with them. An error means that they are not yet. The caller holds m.changes.
func (m *Monitor) put(change func(*rules)) (control.Applied, error) {
	m.mu.Lock()
	change(&m.rules)
	m.rules.generation++
	generation := m.rules.generation
	if m.worker.conn == nil {
		m.rules.setApplied(control.Applied{Generation: generation})
	}
	m.tellRules()
	m.mu.Unlock()
	return m.awaitApplied(generation)
}

// tellRules sends the rules as they are to the worker, if one is there, and
// sees to it that they come into force. The caller holds m.mu.
func (m *Monitor) tellRules() {
	w := m.worker
	if w.conn == nil {
		return
	}
	generation := m.rules.generation
	wait := applyWait
	if !w.ready {
		wait = changeWait // it has only just been started
	}
	time.AfterFunc(wait, func() {
		if !m.isApplied(w.pid, generation) {
			w.kill()
		}
	})
	rules := m.rules.message(m.attached.PolicyFile, m.ledger)
	if err := w.conn.Send(control.ToWorker{Rules: &rules}); err != nil {
		w.kill()
	}
}

// isApplied reports whether the worker pid has put a generation into force, or
// is not there any more.
func (m *Monitor) isApplied(pid int, generation uint64) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.worker.pid != pid || m.rules.latest.Generation >= generation
}

// noteApplied takes the worker's answer.
func (m *Monitor) noteApplied(a control.Applied) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.worker.ready = true
	m.rules.setApplied(a)
}

// setApplied notes which rules are in force and tells whoever waits for them.
func (r *rules) setApplied(a control.Applied) {
	r.latest = a
	close(r.applied)
	r.applied = make(chan struct{})
}

func (m *Monitor) awaitApplied(generation uint64) (control.Applied, error) {
	ctx, cancel := context.WithTimeout(context.Background(), changeWait)
	defer cancel()
	for {
		m.mu.Lock()
		latest, changed := m.rules.latest, m.rules.applied
		m.mu.Unlock()
		if latest.Generation >= generation {
			if latest.Fault != "" {
				return latest, fmt.Errorf("cannot put the rules into force: %s", latest.Fault)
			}
			return latest, nil
		}
		select {
		case <-changed:
		case <-m.ending:
			return latest, errors.New("cannot put the rules into force: the sandbox ends")
		case <-ctx.Done():
			return latest, errors.New("cannot put the rules into force: the gateway's worker does not answer")
		}
	}
}
