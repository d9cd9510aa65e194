package monitor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"nemoclaw/egress/control"
)

// serveRuntime answers on the runtime socket, and returns the function that
// ends it.
func (m *Monitor) serveRuntime() func() {
	// A monitor that was killed leaves its socket behind.
	os.Remove(filepath.Join(m.Dir, control.RuntimeSocket))
	l, err := control.Listen("unixpacket", m.Dir, control.RuntimeSocket)
	if err != nil {
		m.note(err.Error())
		return func() {}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := control.AcceptRuntime(l)
			if err != nil {
				return
			}
			wg.Go(func() { m.answer(conn) })
		}
	})
	return func() { l.Close() }
}

// answer serves one conversation of one request.
func (m *Monitor) answer(conn *control.Conn) {
	defer conn.Close()
	var req control.ToMonitor
	files, err := conn.Recv(&req)
	if err != nil {
		return
	}
	if req.Join != nil {
		if err = m.join(req.Join, files); err == nil {
			files = nil // the member's
		}
	}
	control.CloseAll(files)
	var answer control.FromMonitor
	var reply []*os.File
	switch {
	case req.Join != nil:
	case req.Leave != nil:
		answer.Others = m.leave(req.Leave.Box)
	case req.Started != nil:
		err = m.started(req.Started)
	case req.Ruleset != nil:
		var ruleset *os.File
		if ruleset, err = m.members.ruleset(req.Ruleset.Box); err == nil {
			defer ruleset.Close()
			reply = []*os.File{ruleset}
		}
	default:
		err = errors.New("cannot answer: the request is none that this gateway knows")
	}
	if err != nil {
		_ = conn.Send(control.FromMonitor{Fault: err.Error()})
		return
	}
	_ = conn.Send(answer, reply...)
}

// started is answered once whoever decides does so by rules that know the
// uplink: the worker, or the one that the first connection starts.
func (m *Monitor) started(s *control.Started) error {
	m.changes.Lock()
	defer m.changes.Unlock()
	links := slices.Clone(s.Links)
	_, err := m.put(func(r *rules) {
		r.links = links
		r.plugged = len(links) > 0 || m.attached.HostUplink
	})
	if err != nil {
		return fmt.Errorf("cannot start: %w", err)
	}
	if s.Entered {
		m.inbound.begin(m)
	}
	m.follow.begin(m)
	m.observers.await()
	return nil
}
