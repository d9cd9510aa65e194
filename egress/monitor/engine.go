package monitor

import (
	"sync"

	"nemoclaw/egress/control"
	"nemoclaw/egress/limits"
)

// dials makes a worker's connections to the engine's resolver. The monitor hands
// them on as they are: the question is asked, and the answer read, by the
// worker.
type dials struct {
	m    *Monitor
	conn *control.Conn
	room chan struct{}
	wg   sync.WaitGroup
}

func (m *Monitor) newDials(conn *control.Conn) *dials {
	return &dials{m: m, conn: conn, room: make(chan struct{}, limits.EngineDials)}
}

// dial answers the worker's nth demand, by and by.
func (d *dials) dial(n uint64) {
	select {
	case d.room <- struct{}{}:
	default:
		_ = d.conn.Send(control.ToWorker{Dialed: &control.Dialed{N: n, Fault: "the engine's resolver is asked too much at once"}})
		return
	}
	d.wg.Go(func() {
		defer func() { <-d.room }()
		c, err := d.m.Engine(d.m.inner)
		if err != nil {
			_ = d.conn.Send(control.ToWorker{Dialed: &control.Dialed{N: n, Fault: err.Error()}})
			return
		}
		defer c.Close()
		_ = d.conn.Send(control.ToWorker{Dialed: &control.Dialed{N: n}}, c)
	})
}

// wait returns once nothing is being dialed: the namespace is not ours for
// longer.
func (d *dials) wait() { d.wg.Wait() }
